"""Eigenvalues of many small symmetric matrices, a share of them on each of this process's threads.

LAPACK solves each by itself and leaves Python free meanwhile, so the values are the same to the last bit.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

FEWEST = 64  # matrices worth a second thread


def eigenvalues_of(matrices: Float[np.ndarray, "*draw size size"]) -> Float[np.ndarray, "*draw size"]:
    """Return the eigenvalues of each matrix, smallest first."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    n_threads = min(n_processors(), len(flat) // FEWEST)
    if n_threads < 2:
        return np.linalg.eigvalsh(matrices)
    with ThreadPoolExecutor(n_threads) as pool:
        parts = list(pool.map(np.linalg.eigvalsh, np.array_split(flat, n_threads)))
    return np.concatenate(parts).reshape(matrices.shape[:-1])


def n_processors() -> int:
    """Return how many threads numerical libraries may use here: `OMP_NUM_THREADS`, or as many as there are cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
