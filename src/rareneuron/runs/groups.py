"""Groups, geometry and spectrum of a checkpoint as its run folder keeps them.

Where there are too few neurons of a sign, every file says so in place of its numbers.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.errors import RareNeuronError, RunFolderError, TooFewNeurons
from rareneuron.maths.geometry import Geometry
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.spectrum import Spectrum
from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors
from rareneuron.runs.options import with_option

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
    record = asdict(geometry) | {"missing": {name: with_option(error) for name, error in geometry.missing.items()}}
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
        "unit_rows": list(spectrum.unit_rows),
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


def without_random_pairs(folder: Path) -> dict[str, str]:
    """Return why pairs of groups stand beside no random ones, by the pair's name; nothing in most runs."""
    found: dict[str, str] = available(folder / GEOMETRY).get("missing", {})
    return found


def unit_rows(folder: Path) -> tuple[str, ...]:
    """Return the matrices whose rows were brought to length 1 before their spectrum; of older runs none."""
    return tuple(available(folder / SPECTRUM).get("unit_rows", ()))


def read_spectrum(folder: Path) -> pd.DataFrame:
    """One row a matrix, statistic, group and null."""
    record = available(folder / SPECTRUM)
    return pd.DataFrame(record["rows"]).assign(definitions=record["definitions"])
