"""The groups of a checkpoint, how their neurons act together, and what their weights look like, as a run keeps them.

Groups are known once effects are, so activations are gone through once more: those of the groups' neurons at rare
targets, whose second moments stream in float64. Where there are too few neurons of a sign, every file says so.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rareneuron.errors import NotMeasured, RareNeuronError, RunFolderError, TooFewNeurons
from rareneuron.maths import Definitions
from rareneuron.maths.geometry import Geometry, geometry_of, members
from rareneuron.maths.groups import NeuronGroups, neuron_groups
from rareneuron.maths.moments import SecondMoments
from rareneuron.maths.spectrum import Spectrum
from rareneuron.maths.weights import spectrum
from rareneuron.pipeline.capture import TokenSource
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.options import with_option
from rareneuron.pipeline.store import read_json, read_tensors, write_json, write_tensors

# How far ablation moves the residual stream, E|n̄ − n| · ‖w_out‖. Mean |Δ| follows that in any model, a random one too
# (Spearman 0.96), so groups differ from neurons in general by it alone.
MATCHED_ON = "move"
MOST_CANDIDATES = 4096  # neurons that random groups are drawn from; of a wider layer, that many at random
GROUPS, DRAWS, GEOMETRY, SPECTRUM = "groups.json", "groups.safetensors", "geometry.json", "spectrum.json"
UNAVAILABLE = "unavailable"


@dataclass(frozen=True, kw_only=True)
class ComparedGroups:
    """What is said about the groups of one checkpoint; in place of a part, why there is none."""

    groups: NeuronGroups | RareNeuronError
    balance: dict[str, dict[str, float]]  # how alike groups and matched draws are
    geometry: Geometry | RareNeuronError
    spectrum: Spectrum | RareNeuronError

    @property
    def role(self) -> dict[str, np.ndarray]:
        """Neurons by role."""
        found = self.groups
        return {"boosting": found.boosting, "suppressing": found.suppressing} if isinstance(found, NeuronGroups) else {}


def compare_groups(config: StudyConfig, source: TokenSource, effects: pd.DataFrame) -> ComparedGroups:
    """Choose the groups and compare them with random ones."""
    groups = chosen_groups(config, effects)
    if isinstance(groups, RareNeuronError):
        return ComparedGroups(groups=groups, balance={}, geometry=groups, spectrum=groups)
    found: list[Any] = []
    for compute in (geometry_at, spectrum_at):
        try:
            found.append(compute(config, source, groups))
        except NotMeasured as error:
            found.append(error)
    balance = matching(groups, effects[MATCHED_ON].to_numpy())
    return ComparedGroups(groups=groups, balance=balance, geometry=found[0], spectrum=found[1])


def chosen_groups(config: StudyConfig, effects: pd.DataFrame) -> NeuronGroups | TooFewNeurons:
    """Groups, or why there are none: too few neurons of a sign is recorded, not skipped."""
    try:
        return neuron_groups(
            effects["delta_loss"].to_numpy(),
            effects["abs_delta_loss"].to_numpy(),
            size=config.group_size,
            n_draws=config.n_random,
            most=MOST_CANDIDATES,
            covariate=effects[MATCHED_ON].to_numpy(),
            matched_on=MATCHED_ON,
            rng=np.random.default_rng([config.seed, 2]),
        )
    except TooFewNeurons as error:
        return error


def geometry_at(config: StudyConfig, source: TokenSource, groups: NeuronGroups) -> Geometry:
    """On the analysed rare tokens, all groups on the same ones."""
    moments = SecondMoments(members(groups))
    for batch in source.again():
        rare = torch.from_numpy(batch.rare).to(batch.act.device)
        moments.add(batch.act[rare])
    rng = np.random.default_rng([config.seed, 4])
    return geometry_of(moments, groups, rng, definitions=whose(config))


def whose(config: StudyConfig) -> Definitions:
    """The definitions asked for."""
    return "released" if config.definitions == "released" else "paper"


def spectrum_at(config: StudyConfig, source: TokenSource, groups: NeuronGroups) -> Spectrum:
    """Of every matrix that the layer's MLP has."""
    weights = source.adapter.weights(source.layer)
    given = {"W_in": weights.W_in, "W_out": weights.W_out, "W_gate": weights.W_gate}
    rng = np.random.default_rng([config.seed, 5])
    return spectrum({name: W for name, W in given.items() if W is not None}, groups, definitions=whose(config), rng=rng)


def matching(groups: NeuronGroups, covariate: np.ndarray) -> dict[str, dict[str, float]]:
    """How well matched draws are matched: mean covariate of group, matched and uniform draws; what they share.

    `shared` is the mean share of a matched draw that belongs to the group itself, `distinct` the neurons of all draws.
    """
    return {
        role: {
            "group": float(covariate[getattr(groups, role)].mean()),
            "matched": float(covariate[drawn].mean()),
            "uniform": float(covariate[groups.random].mean()),
            "shared": float(np.isin(drawn, getattr(groups, role)).mean()),
            "distinct": len(np.unique(drawn)),
        }
        for role, drawn in groups.matched.items()
    }


def write_groups(folder: Path, compared: ComparedGroups) -> None:
    """Four files: what is short and read by people as JSON, the draws as tensors."""
    groups = compared.groups
    if isinstance(groups, RareNeuronError):
        record: dict[str, Any] = {UNAVAILABLE: with_option(groups)}
    else:
        draws = {
            "random": groups.random,
            "matched_random": groups.matched_random,
            "matched_pairs": groups.matched_pairs,
        }
        write_tensors(folder / DRAWS, {k: v.astype(np.int32) for k, v in draws.items() if v is not None})
        record = {
            "boosting": groups.boosting.tolist(),
            "suppressing": groups.suppressing.tolist(),
            "n_random": len(groups.random),
            "matched_on": groups.matched_on,
            "matching": compared.balance,
        }
    write_json(folder / GROUPS, record)
    write_json(folder / GEOMETRY, geometry_record(compared.geometry))
    write_json(folder / SPECTRUM, spectrum_record(compared.spectrum))


def geometry_record(geometry: Geometry | RareNeuronError) -> dict[str, Any]:
    """Its rows, and what they rest on."""
    if isinstance(geometry, RareNeuronError):
        return {UNAVAILABLE: with_option(geometry)}
    record = asdict(geometry)
    return {k: v for k, v in record.items() if k not in ("within", "between")} | {"rows": geometry.rows()}


def spectrum_record(spectrum: Spectrum | RareNeuronError) -> dict[str, Any]:
    """Its rows, and the eigenvalues of each group: of `random` the mean over draws, rank by rank."""
    if isinstance(spectrum, RareNeuronError):
        return {UNAVAILABLE: with_option(spectrum)}
    eigenvalues: dict[str, dict[str, list[float]]] = {}
    for (matrix, group), values in spectrum.eigenvalues.items():
        eigenvalues.setdefault(matrix, {})[group] = values.tolist()
    return {
        "definitions": spectrum.definitions,
        "k": spectrum.k,
        "rows": spectrum.rows(),
        "eigenvalues": eigenvalues,
        "edges": {f"{matrix} {group}": edge for (matrix, group), edge in spectrum.edges.items()},
    }


def available(path: Path) -> dict[str, Any]:
    """A record of a part that could be computed."""
    record = read_json(path)
    if UNAVAILABLE in record:
        raise TooFewNeurons(record[UNAVAILABLE])
    return record


def read_groups(folder: Path) -> NeuronGroups:
    """The groups of a checkpoint."""
    record = available(folder / GROUPS)
    draws = read_tensors(folder / DRAWS)
    matched, pairs = draws.get("matched_random"), draws.get("matched_pairs")
    groups = NeuronGroups(
        boosting=np.array(record["boosting"], np.int64),
        suppressing=np.array(record["suppressing"], np.int64),
        random=draws["random"].astype(np.int64),
        matched_random=None if matched is None else matched.astype(np.int64),
        matched_on=record["matched_on"],
        matched_pairs=None if pairs is None else pairs.astype(np.int64),
    )
    if not len(groups.boosting) == len(groups.suppressing) == groups.random.shape[-1]:
        raise RunFolderError(
            f"{folder / GROUPS} and {folder / DRAWS} hold groups of different sizes, so they are not of one "
            f"checkpoint. Remove {folder} and run the same study again: only that checkpoint is computed again."
        )
    return groups


def read_geometry(folder: Path) -> pd.DataFrame:
    """One row a statistic, group and null."""
    return pd.DataFrame(available(folder / GEOMETRY)["rows"])


def read_spectrum(folder: Path) -> pd.DataFrame:
    """One row a matrix, statistic, group and null."""
    record = available(folder / SPECTRUM)
    return pd.DataFrame(record["rows"]).assign(definitions=record["definitions"])
