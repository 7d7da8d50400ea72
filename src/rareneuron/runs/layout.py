"""Names of everything that lies in a run folder, and the two rules that turn numbers into places.

A step's folder is named by its number, and the per-context sums of a large study share rows. Whoever reads or writes a
run goes by this page, so a name stands here once. Oracle: docs/run-folder.md, which tests hold against a real run.
"""

import re

import numpy as np
from jaxtyping import Int

FORMAT = 1  # of the run folder
UNIGRAMS = "unigrams.safetensors"  # of a model whose own mean prediction decides what is rare
PARTIAL = ".partial"  # ends the name of what is still being written
MANIFEST, STEPS, UNITS, TRAJECTORY = "run.json", "steps", "units", "trajectory.parquet"
STEP_RECORD, WEIGHTS = "step.json", "weights.json"  # in a step's folder
REFITTED = ("phases.json", "phases.safetensors")  # of a step: fitted again by themselves, so not in its list of files
CHECKSUM = "sha256"  # of a JSON file's other content, its last entry
UNKNOWN_STEP_NAME = "final"  # the folder of a checkpoint whose optimiser step is unknown
MOST_CONTEXT_SUMS = 4_096  # beyond this, neighbouring contexts share a row, and the bootstrap resamples rows


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: a number as we write it, or `final`."""
    return name == UNKNOWN_STEP_NAME or re.fullmatch("0|[1-9][0-9]*", name) is not None


def kept_rows(context: Int[np.ndarray, " any"], n_contexts: int) -> Int[np.ndarray, " any"]:
    """The rows of the per-context sums that some of a study's contexts are kept in."""
    return context.astype(np.int64) * min(n_contexts, MOST_CONTEXT_SUMS) // n_contexts
