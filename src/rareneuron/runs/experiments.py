"""Writes and reads the experiments with whole groups: arrays, and a record that says why there are none."""

from pathlib import Path

import numpy as np

from rareneuron.errors import NotMeasured, RunFolderError, Unavailable
from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors
from rareneuron.runs.layout import EXPERIMENT_ARRAYS, EXPERIMENTS


def write_experiments(folder: Path, found: dict[str, np.ndarray] | Unavailable) -> None:
    """Write the arrays, and a record that says why there are none if so."""
    arrays = {} if isinstance(found, Unavailable) else found
    write_tensors(folder / EXPERIMENT_ARRAYS, arrays)
    write_json(folder / EXPERIMENTS, {"unavailable": found.why if isinstance(found, Unavailable) else None})


def read_experiments(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays. Raises `NotMeasured` with the reason where the study made none."""
    if not (folder / EXPERIMENTS).is_file():
        raise RunFolderError(
            f"{folder / EXPERIMENTS} is missing: this was not the last checkpoint of its study, or the file is lost, "
            f"so whole groups can't be judged. Remove {folder} and run the same study again to have it."
        )
    reason = read_json(folder / EXPERIMENTS)["unavailable"]
    if reason is not None:
        raise NotMeasured(reason)
    arrays = read_tensors(folder / EXPERIMENT_ARRAYS)
    if "joint_at" not in arrays:
        raise RunFolderError(
            f"{folder / EXPERIMENT_ARRAYS} was written by an earlier version, which kept other sums. Remove {folder} "
            "and run the same study again to have them."
        )
    return arrays
