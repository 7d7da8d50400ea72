"""Writes and reads the groups, geometry and spectrum of a checkpoint.

Where there are too few neurons of a sign, every file holds the reason in place of its numbers.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from rareneuron.errors import NotMeasured, RareNeuronError, RunFolderError
from rareneuron.maths.geometry import Geometry
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.spectrum import Spectrum
from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors
from rareneuron.runs.layout import GEOMETRY, GROUP_DRAWS, GROUPS, MODULARITY, SPECTRUM, STEP_RECORD
from rareneuron.runs.options import with_option

# How far ablation moves the residual stream, E|n̄ − n| · ‖w_out‖. Mean |Δ| follows that in any model, a random one too
# (Spearman 0.96), so groups differ from neurons in general by it alone.
MATCHED_ON = "move"
MOST_CANDIDATES = 4096  # neurons that random groups are drawn from; in a wider layer, a random sample of that many
UNAVAILABLE = "unavailable"
MOST_SHARED = 0.5  # of the neurons in matched random groups may be the group's own


def mostly_itself(
    group: str, members: Int[np.ndarray, " size"], matched: Int[np.ndarray, "draw other"] | None
) -> str | None:
    """Return a warning where random groups matched to a group are mostly made of its own neurons; else None."""
    share = 0.0 if matched is None else float(np.isin(matched, members).mean())
    if share <= MOST_SHARED:
        return None
    return (
        f"Of the neurons in random groups matched to the {group} one, {100 * share:.0f} % are its own: it holds most "
        "neurons that move the residual stream as far, so a comparison with matched groups says little. A study with a "
        "smaller --group-size leaves others to compare with."
    )


@dataclass(frozen=True, kw_only=True)
class ComparedGroups:
    """The groups of one checkpoint and their statistics; an error in place of a part says why there is none."""

    groups: NeuronGroups | RareNeuronError
    balance: dict[str, dict[str, float]]  # how well matched draws match the groups
    geometry: Geometry | RareNeuronError
    spectrum: Spectrum | RareNeuronError
    modularity: dict[str, np.ndarray] | None = None  # at the last checkpoint: Q of groups and of their nulls, by name

    @property
    def role(self) -> dict[str, np.ndarray]:
        """The neurons of each role; empty where there are no groups."""
        found = self.groups
        return {"boosting": found.boosting, "suppressing": found.suppressing} if isinstance(found, NeuronGroups) else {}


def write_groups(folder: Path, compared: ComparedGroups) -> None:
    """Write four files: short records as JSON, the draws as tensors."""
    groups = compared.groups
    if isinstance(groups, RareNeuronError):
        record: dict[str, Any] = {UNAVAILABLE: with_option(groups)}
    else:
        draws = {
            "random": groups.random,
            "matched_random": groups.matched_random,
            "matched_pairs": groups.matched_pairs,
        }
        write_tensors(folder / GROUP_DRAWS, {k: v.astype(np.int32) for k, v in draws.items() if v is not None})
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
    if compared.modularity is not None:
        write_tensors(folder / MODULARITY, compared.modularity)


def geometry_record(geometry: Geometry | RareNeuronError) -> dict[str, Any]:
    """Return geometry.json: the rows, and what they were computed from."""
    if isinstance(geometry, RareNeuronError):
        return {UNAVAILABLE: with_option(geometry)}
    record = asdict(geometry) | {"missing": {name: with_option(error) for name, error in geometry.missing.items()}}
    return {k: v for k, v in record.items() if k not in ("within", "between")} | {"rows": geometry.rows()}


def spectrum_record(spectrum: Spectrum | RareNeuronError) -> dict[str, Any]:
    """Return spectrum.json: the rows, and each group's eigenvalues (for `random`, the mean over draws at each rank)."""
    if isinstance(spectrum, RareNeuronError):
        return {UNAVAILABLE: with_option(spectrum)}
    eigenvalues: dict[str, dict[str, list[float]]] = {}
    for (matrix, group), values in spectrum.eigenvalues.items():
        eigenvalues.setdefault(matrix, {})[group] = values.tolist()
    return {
        "definitions": spectrum.definitions,
        "k": spectrum.k,
        "unit_rows": list(spectrum.unit_rows),
        "rows": spectrum.rows(),
        "eigenvalues": eigenvalues,
        "edges": {f"{matrix} {group}": edge for (matrix, group), edge in spectrum.edges.items()},
    }


def read_part(path: Path) -> dict[str, Any]:
    """Return the record of a part. Raises `NotMeasured` with the reason where the part couldn't be computed."""
    record = read_json(path)
    if UNAVAILABLE in record:
        raise NotMeasured(record[UNAVAILABLE])
    return record


def read_groups(folder: Path) -> NeuronGroups:
    """Return the groups of a checkpoint."""
    record = read_part(folder / GROUPS)
    draws = read_tensors(folder / GROUP_DRAWS)
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
            f"{folder / GROUPS} and {folder / GROUP_DRAWS} hold groups of different sizes, so they belong to "
            f"different checkpoints. Remove {folder} and run the same study again: only that checkpoint is computed "
            "again."
        )
    return groups


def read_geometry(folder: Path) -> pd.DataFrame:
    """Return a table of a checkpoint's geometry: one row for each statistic, group and null."""
    return pd.DataFrame(read_part(folder / GEOMETRY)["rows"])


def read_modularity(folder: Path) -> dict[str, np.ndarray]:
    """Return the modularity of a checkpoint's groups and of their nulls. Raises `NotMeasured` where there is none."""
    if not (folder / MODULARITY).is_file():
        read_part(folder / GEOMETRY)  # says why there are no groups, or no correlations
        record = folder / STEP_RECORD
        if record.is_file() and MODULARITY in read_json(record)["files"]:
            raise RunFolderError(
                f"{folder / MODULARITY} is missing, and this checkpoint once had it. Run the same study again: it is "
                "computed again."
            )
        raise NotMeasured(
            "The modularity of the groups' correlations is measured at the last planned checkpoint of a run of this "
            "version. Run the study again in another folder."
        )
    return read_tensors(folder / MODULARITY)


def without_random_pairs(folder: Path) -> dict[str, str]:
    """Return why pairs of groups stand beside no random ones, by the pair's name; nothing in most runs."""
    found: dict[str, str] = read_part(folder / GEOMETRY).get("missing", {})
    return found


def unit_rows(folder: Path) -> tuple[str, ...]:
    """Return the matrices whose rows were brought to length 1 before their spectrum; of older runs none."""
    return tuple(read_part(folder / SPECTRUM).get("unit_rows", ()))


def read_spectrum(folder: Path) -> pd.DataFrame:
    """Return a table of a checkpoint's spectra: one row for each matrix, statistic, group and null."""
    record = read_part(folder / SPECTRUM)
    return pd.DataFrame(record["rows"]).assign(definitions=record["definitions"])
