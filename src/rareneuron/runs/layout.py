"""Names of everything that lies in a run folder, and the rules that turn numbers into places.

A step's folder is named by its number, and the per-context sums of a large study share rows. Whoever reads or writes a
run goes by this page, so a name stands here once. Oracle: docs/run-folder.md, which tests hold against a real run.
"""

import re

import numpy as np
from jaxtyping import Int

FORMAT = 1  # of the run folder
UNIGRAMS = "unigrams.safetensors"  # of a model whose own mean prediction decides what is rare
PARTIAL = ".partial"  # ends the name of what is still being written
LOCK = ".lock"  # held by the process that writes
MANIFEST, CLAIMS, TRAJECTORY, TOKENS, CONTEXTS = (
    "run.json",
    "claims.json",
    "trajectory.parquet",
    "tokens.parquet",
    "contexts.safetensors",
)
STEPS, UNITS, FIGURES, TABLES = "steps", "units", "figures", "tables"  # folders; `units` holds pieces
# In a step's folder.
STEP_RECORD, WEIGHTS, EFFECTS, RANK_CURVE = "step.json", "weights.json", "effects.parquet", "rank_curve.parquet"
CONTEXT_SUMS, TOKEN_LOSS = "context_sums.safetensors", "token_loss.safetensors"
PHASES, PHASE_ARRAYS = "phases.json", "phases.safetensors"
GROUPS, GROUP_DRAWS, GEOMETRY, SPECTRUM = "groups.json", "groups.safetensors", "geometry.json", "spectrum.json"
MODULARITY = "modularity.safetensors"
LAYERS, LAYER_SUMS, LAYERS_RECORD = "layers.parquet", "layers.safetensors", "layers.json"
ROUTING, ROUTING_HEADS, ROUTING_ARRAYS = "routing.json", "routing.parquet", "routing.safetensors"
EXPERIMENTS, EXPERIMENT_ARRAYS = "experiments.json", "experiments.safetensors"
NEURONS, NEURON_ARRAYS = "explorer.json", "explorer.safetensors"
EVALUATIONS = "evaluations"  # a folder in the run, with one for each task
EVALUATION_RECORD, EVALUATION_TABLE, EVALUATION_ITEMS, EVALUATION_DRAWS = (
    "record.json",
    "summary.parquet",
    "items.parquet",
    "draws.parquet",
)
REFITTED = (PHASES, PHASE_ARRAYS)  # made again from the others, so a step doesn't list their checksums
CHECKSUM = "sha256"  # of a JSON file's other content, its last entry
UNKNOWN_STEP_NAME = "final"  # the folder of a checkpoint whose optimiser step is unknown
MOST_CONTEXT_SUMS = 4_096  # beyond this, neighbouring contexts share a row, and the bootstrap resamples rows


def is_step(name: str) -> bool:
    """Return whether a folder's name is that of a checkpoint: a number without leading zeros, or `final`."""
    return name == UNKNOWN_STEP_NAME or re.fullmatch("0|[1-9][0-9]*", name) is not None


def step_folder(step: int | None) -> str:
    """Return the name of a checkpoint's folder."""
    return UNKNOWN_STEP_NAME if step is None else str(step)


def step_of(folder: str) -> int | None:
    """Return the step that a checkpoint's folder is named for; None where it is unknown."""
    return None if folder == UNKNOWN_STEP_NAME else int(folder)


def kept_rows(context: Int[np.ndarray, " any"], n_contexts: int) -> Int[np.ndarray, " any"]:
    """Return the rows of the per-context sums in which some of a study's contexts are kept."""
    return context.astype(np.int64) * min(n_contexts, MOST_CONTEXT_SUMS) // n_contexts
