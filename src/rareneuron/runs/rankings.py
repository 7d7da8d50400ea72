"""Ranks a layer's neurons in four ways, fits each rank curve's phases, and writes and reads them.

`all`: mean |Δ| at rare targets (Eq. 1, the paper); `boosting` and `suppressing`: neurons of one sign by |mean Δ|;
`common`: mean |Δ| at matched common targets, the contrast that says whether phases are about rare tokens at all. The
released scripts rank one sign at a time only; their numbers cost so little that they are computed when asked for.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from rareneuron.errors import InvalidConfig, NotMeasured, RunFolderError, TooFewNeurons, Unavailable
from rareneuron.maths.phase_fit import fit_phases
from rareneuron.maths.phases import ContextSums, Phases
from rareneuron.maths.rank_curve import RankCurve, local_slope, rank_curve
from rareneuron.maths.released import ReleasedPhases, released_phases
from rareneuron.maths.significance import Z
from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors
from rareneuron.runs.layout import PHASE_ARRAYS, PHASES
from rareneuron.runs.options import with_option
from rareneuron.runs.seeds import generator

Ranking = Literal["all", "boosting", "suppressing", "common"]
Found = Phases | ReleasedPhases
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
SIGNS: tuple[Ranking, ...] = ("boosting", "suppressing")  # the rankings of the released scripts
COLUMN = {
    "all": "abs_delta_loss",
    "boosting": "delta_loss",
    "suppressing": "delta_loss",
    "common": "common_abs_delta_loss",
}
N_DRAWS = 100  # per null and bootstrap: the least p is 1/101
LAST_DRAWS = 600  # of the ranking `all` at the last checkpoint, which a claim rests on: Holm asks for p near 1/500
UNAVAILABLE = "unavailable"  # holds the reason why a ranking has no phases
NOT_IN_JSON = ("deviation", "band", "slope")  # arrays


def layer_curve(effects: pd.DataFrame, ranking: str = "all") -> RankCurve:
    """Return the rank curve of one ranking; `neuron` is the index in the layer."""
    if ranking not in RANKINGS:
        raise InvalidConfig(
            f"There is no ranking {ranking!r}, so no neurons to sort. Choose one of {', '.join(RANKINGS)}."
        )
    if COLUMN[ranking] not in effects:
        raise NotMeasured(
            "No common target was analysed at this checkpoint, so no neuron has an effect there to be ranked by. Give "
            "more text (--data), or use another ranking."
        )
    value = sign(ranking) * effects[COLUMN[ranking]].to_numpy()
    neuron = np.flatnonzero(value > 0) if COLUMN[ranking] == "delta_loss" else np.arange(len(value))
    if len(neuron) == 0:
        raise TooFewNeurons(
            f"No neuron is {ranking} at this checkpoint, so there is nothing to rank. Use another ranking or step."
        )
    curve = rank_curve(value[neuron])
    return RankCurve(value=curve.value, neuron=neuron[curve.neuron])


def sign(ranking: str) -> int:
    """Return the sign that turns a ranking's column into the sizes that it sorts."""
    return -1 if ranking == "suppressing" else 1


def fit_rankings(
    effects: pd.DataFrame,
    context_sums: Mapping[str, np.ndarray],
    seed: int,
    definitions: str = "paper",
    *,
    is_last: bool = False,
) -> dict[Ranking, Found | Unavailable]:
    """Return the phases of every ranking of these definitions, or why it has none."""
    out: dict[Ranking, Found | Unavailable] = {}
    for ranking in RANKINGS if definitions == "paper" else SIGNS:
        try:
            out[ranking] = (
                fit_ranking(
                    effects, context_sums, ranking, seed, LAST_DRAWS if is_last and ranking == "all" else N_DRAWS
                )
                if definitions == "paper"
                else released_ranking(effects, ranking)
            )
        except NotMeasured as error:
            out[ranking] = Unavailable(with_option(error))
    return out


def fit_ranking(
    effects: pd.DataFrame,
    context_sums: Mapping[str, np.ndarray],
    ranking: Ranking,
    seed: int,
    n_draws: int = N_DRAWS,
) -> Phases:
    """Return one ranking's phases by the paper's definitions, with nulls and bootstrap."""
    curve = layer_curve(effects, ranking)
    by_rank = RankCurve(value=curve.value, neuron=curve.rank - 1)  # as the columns of its sums
    sums = ranked_sums(curve, context_sums, ranking, effects)
    return fit_phases(by_rank, sums, generator(seed, "phases", RANKINGS.index(ranking)), n_draws=n_draws)


def released_ranking(effects: pd.DataFrame, ranking: str) -> ReleasedPhases:
    """Return one sign's numbers as the released scripts compute them."""
    if ranking not in SIGNS:
        raise InvalidConfig(
            f"The released scripts rank neurons of one sign, so there are no released phases of the ranking {ranking!r}"
            f". Choose one of {', '.join(SIGNS)}, or use the definitions `paper`."
        )
    return released_phases(layer_curve(effects, ranking))


def ranked_sums(
    curve: RankCurve, context_sums: Mapping[str, np.ndarray], ranking: Ranking, effects: pd.DataFrame
) -> ContextSums | None:
    """Return the sums that the bootstrap resamples: columns by rank, for contexts that have such targets.

    What verification left open about estimated means widens the intervals too. None, so no bootstrap, with fewer than
    two contexts, and for the rankings of one sign: a mean that crosses 0 in a draw has no logarithm there, and any
    substitute would decide the interval.
    """
    if COLUMN[ranking] == "delta_loss":
        return None
    n_tokens = context_sums["common_n_tokens" if ranking == "common" else "n_tokens"]
    has_tokens = n_tokens > 0
    if has_tokens.sum() < 2:
        return None
    sums: Shaped[np.ndarray, "context neuron"] = context_sums[COLUMN[ranking]][has_tokens][:, curve.neuron]
    half_width = effects.get(f"{COLUMN[ranking]}_half_width")  # of estimates; other engines leave nothing open
    error = None if half_width is None else half_width.to_numpy()[curve.neuron] / Z
    return ContextSums(sums=sums, n_tokens=n_tokens[has_tokens], error=error)


def as_record(phases: Found | Unavailable) -> dict[str, Any]:
    """Return phases as plain JSON, without their arrays."""
    if isinstance(phases, Unavailable):
        return {UNAVAILABLE: phases.why}
    return {k: v for k, v in asdict(phases).items() if k not in NOT_IN_JSON}


def stored_form(
    phases: Mapping[Ranking, Found | Unavailable], definitions: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the contents of the two files: the record for JSON, and the arrays."""
    record = {"definitions": definitions} | {ranking: as_record(p) for ranking, p in phases.items()}
    arrays = {f"{ranking}.{name}": getattr(p, name, None) for ranking, p in phases.items() for name in NOT_IN_JSON}
    return record, {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def write_phases(folder: Path, phases: Mapping[Ranking, Found | Unavailable], definitions: str = "paper") -> None:
    """Write both files, `phases.json` last: once it is there, the phases are complete."""
    record, arrays = stored_form(phases, definitions)
    write_tensors(folder / PHASE_ARRAYS, arrays)
    write_json(folder / PHASES, record)


def read_phases(folder: Path, ranking: Ranking, effects: pd.DataFrame) -> Phases:
    """Read one ranking's phases by the paper's definitions; only κ(u) is computed again, from the curve."""
    curve = layer_curve(effects, ranking)
    if not (folder / PHASES).is_file():
        raise RunFolderError(
            f"{folder} has no {PHASES}, as in a run of an earlier version, so its phases are unknown. Run the same "
            "study again: phases are added, and effects kept."
        )
    stored, arrays = read_json(folder / PHASES)[ranking], read_tensors(folder / PHASE_ARRAYS)
    if UNAVAILABLE in stored:
        raise NotMeasured(stored[UNAVAILABLE])
    scalars: dict[str, Any] = {f.name: stored[f.name] for f in fields(Phases) if f.name in stored}
    scalars |= {
        "n_draws": stored.get("n_draws", N_DRAWS),
        "breaks": tuple(stored["breaks"]),
        "intervals": {name: tuple(interval) for name, interval in stored["intervals"].items()},
        "null_p": dict(stored["null_p"]),
    }
    return Phases(
        **scalars,
        deviation=arrays[f"{ranking}.deviation"],
        band=arrays.get(f"{ranking}.band"),
        slope=local_slope(np.log(curve.value[: curve.n_positive].astype(np.float64))),
    )


def phases_are_whole(folder: Path, effects: pd.DataFrame, definitions: str) -> bool:
    """Return whether every ranking's phases, or why it has none, can be read and follow these definitions."""
    try:
        if definitions == "released":
            record, arrays = stored_form(fit_rankings(effects, {}, 0, definitions), definitions)
            there = read_tensors(folder / PHASE_ARRAYS)
            return read_json(folder / PHASES) == record and there.keys() == arrays.keys()
        if read_json(folder / PHASES)["definitions"] != definitions:
            return False
        for ranking in RANKINGS:
            with suppress(NotMeasured):
                read_phases(folder, ranking, effects)
    except RunFolderError:
        return False
    return True
