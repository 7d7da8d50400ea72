"""Computes eigenvalues of many small symmetric matrices, a share of them on each of this process's threads.

LAPACK solves each by itself and leaves Python free meanwhile, so the values are the same to the last bit.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

FEWEST = 64  # matrices worth a second thread
ROUNDING = 1e-12  # of a share of variance; the eigenvalues of 50 neurons round to about 1e-15 of their sum


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


def effective_dimensions(matrix: Float[np.ndarray, "*draw size size"], variance: float) -> Int[np.ndarray, "*draw"]:
    """Return the smallest d whose largest eigenvalues hold `variance` of their sum; NaN counts as no variance."""
    eigenvalues = eigenvalues_of(np.nan_to_num(matrix))[..., ::-1].clip(min=0)
    held = eigenvalues.cumsum(-1)
    return np.asarray((held < (variance - ROUNDING) * held[..., -1:]).sum(-1) + 1)
