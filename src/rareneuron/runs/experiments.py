"""Experiments with whole groups as a run folder keeps them: arrays, and a record that says why there are none."""

from pathlib import Path

import numpy as np

from rareneuron.errors import NotMeasured, RunFolderError, Unavailable
from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors

RECORD, ARRAYS = "experiments.json", "experiments.safetensors"


def write_experiments(folder: Path, found: dict[str, np.ndarray] | Unavailable) -> None:
    """Write the arrays, and a record that says why there are none where that is so."""
    arrays = {} if isinstance(found, Unavailable) else found
    write_tensors(folder / ARRAYS, arrays)
    write_json(folder / RECORD, {"unavailable": found.why if isinstance(found, Unavailable) else None})


def read_experiments(folder: Path) -> dict[str, np.ndarray]:
    """The arrays; an error that says why where there are none."""
    if not (folder / RECORD).is_file():
        raise RunFolderError(
            f"{folder / RECORD} is missing: this was not the last checkpoint of its study, or the file is lost, and "
            f"nothing is known of whole groups. Remove {folder} and run the same study again to have it."
        )
    reason = read_json(folder / RECORD)["unavailable"]
    if reason is not None:
        raise NotMeasured(reason)
    arrays = read_tensors(folder / ARRAYS)
    if "joint_at" not in arrays:
        raise RunFolderError(
            f"{folder / ARRAYS} was written by an earlier version, which kept other sums. Remove {folder} and run the "
            "same study again to have them."
        )
    return arrays
