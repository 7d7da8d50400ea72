r"""Sums p_v (e^{x_v} − 1) over the vocabulary in one loop, compiled by numba where that is installed.

x = b B_i + Σ_k a_k D_k − x₀, with directions D_k that belong to the token. Torch needs six passes over memory for what
this loop keeps in registers, and so a third of the time. numba is optional (`pip install rareneuron[fast]`): without it
`full_sum` takes torch, and the results agree to 2e-6 nats. Compiled code is never stored, since numba stores pickles.
Oracle: tests/maths/test_fused.py, the same sum in float64.
"""

import importlib.util
import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import InvalidConfig

LANES = 256  # running totals, in float32: each adds few enough terms for its rounding not to grow
SMALLEST_VOCAB = 2**13  # with fewer types, sums are too cheap to pay for seconds of compilation
# Token · neuron · vocab from which compiling costs less than it saves where 2 % of pairs are summed in full: seconds.
LEAST_WORK = 2**35
SIGNATURE = "void(f4[:,::1], f4[:,::1], f4[:,:,::1], i8[:,::1], f4[:,:,::1], f4[:,::1], f8[:,::1])"
# log 2 in two parts, of which the first has few digits, so that its product with a whole number is exact.
LOG2_E, LOG2_HIGH, LOG2_LOW = (np.float32(x) for x in (1 / math.log(2), 0.693359375, -2.12194440e-4))
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))
ONE, LOWEST = np.float32(1), np.float32(-87)  # e^−87 is the smallest that float32 holds in full


def takes_compiled_sums(vocab: int, device: torch.device, wish: bool | None = None) -> bool:
    """Return whether to sum by the compiled loop: as wished, or where numba is installed and compiling it pays.

    The answer hangs on the model alone, not on its effects, so that a study's parts all sum in the same way.
    """
    installed = importlib.util.find_spec("numba") is not None
    if wish and (not installed or device.type != "cpu"):
        raise InvalidConfig(
            "Compiled sums need numba and a model on the CPU, and here one of them is missing. Install it by "
            "`pip install rareneuron[fast]`, or leave the choice to the engine, which has another way."
        )
    return installed and device.type == "cpu" and vocab >= SMALLEST_VOCAB if wish is None else wish


def compiling_pays(n_tokens: int, n_neurons: int, vocab: int) -> bool:
    """Return whether so many effects may be worth seconds of compilation; their sizes play no part."""
    return n_tokens * n_neurons * vocab >= LEAST_WORK


def sum_pairs(
    p: Float[np.ndarray, "token vocab"],
    B: Float[np.ndarray, "neuron vocab"],
    directions: Float[np.ndarray, "direction token vocab"],
    pairs: Int[np.ndarray, "pair 2"],
    factors: Float[np.ndarray, "kind pair term"],
    origin: Float[np.ndarray, "kind pair"],
    out: Float[np.ndarray, "kind pair"],
) -> None:
    """Write Σ_v p_v (e^{x_v} − 1) to `out` [kind, pair]; `factors` [kind, pair, 1 + direction] begins with B's."""
    x, total = np.empty(LANES, np.float32), np.empty((out.shape[0], LANES), np.float32)
    for pair in range(len(pairs)):
        t, neuron = pairs[pair, 0], pairs[pair, 1]
        total[:] = 0
        for start in range(0, B.shape[1], LANES):
            n = min(LANES, B.shape[1] - start)
            of_B, of_p = B[neuron, start : start + n], p[t, start : start + n]
            for kind in range(out.shape[0]):
                b, x0, sums = factors[kind, pair, 0], origin[kind, pair], total[kind]
                for i in range(n):
                    x[i] = b * of_B[i] - x0
                for k in range(directions.shape[0]):
                    a = factors[kind, pair, 1 + k]
                    if a != 0:
                        of_D = directions[k, t, start : start + n]
                        for i in range(n):
                            x[i] += a * of_D[i]
                # e^x − 1 = 2^m (e^f − 1) + (2^m − 1) with |f| ≤ log 2 / 2, where eight terms are enough for float32.
                for i in range(n):
                    y = max(x[i], LOWEST)
                    m = np.rint(y * LOG2_E)
                    f = (y - m * LOG2_HIGH) - m * LOG2_LOW
                    scale = np.int32((np.int32(m) + np.int32(127)) << np.int32(23)).view(np.float32)
                    square = f * f
                    rest = square * (C2 + f * (C3 + f * (C4 + f * (C5 + f * (C6 + f * C7)))))
                    sums[i] += of_p[i] * (scale * (f + rest) + (scale - ONE))
        for kind in range(out.shape[0]):
            whole = 0.0
            for i in range(LANES):
                whole += total[kind, i]
            out[kind, pair] = whole


@cache
def compiled() -> Callable[..., None]:
    """Compile the loop, once a process; with a signature, so for one layout only and at once."""
    import numba

    # `contract` allows fused multiply-adds and nothing else: reassociation would undo the two parts of log 2.
    return numba.njit(SIGNATURE, nogil=True, fastmath={"contract"}, error_model="numpy")(inspect.unwrap(sum_pairs))


def fused_sums(
    p: Float[Tensor, "token vocab"],
    B: Float[Tensor, "neuron vocab"],
    directions: Float[Tensor, "direction token vocab"],
    pairs: Int[Tensor, "pair 2"],
    factors: Float[Tensor, "kind pair term"],
    target: Int[Tensor, " token"],
    origin: Float[Tensor, "kind pair"],
) -> Float[Tensor, "kind pair"]:
    """Return log E_p[exp(δ − δ_target − origin)] of single pairs, δ = factors · (B_i, D_1, …), in float64.

    δ_target is formed in float64, and what float32 rounds off the point x₀ is put back, since it is the same for the
    whole vocabulary and would not average out.
    """
    at = target[pairs[:, 0]]
    terms = torch.cat([B[pairs[:, 1], at][None], directions[:, pairs[:, 0], at]])
    exact = (factors.double() * terms.T.double()).sum(-1) + origin.double()
    point = exact.float()
    out = np.empty(tuple(point.shape))
    loop = compiled()
    tables = [x.contiguous().numpy() for x in (p, B, directions)]
    # Each thread has its own pairs and no sum is shared, so their number changes no bit.
    workers = max(1, min(torch.get_num_threads(), len(pairs)))
    edges = [len(pairs) * k // workers for k in range(workers + 1)]

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        sums = np.empty((len(point), stop - start))
        few = [np.ascontiguousarray(x.numpy()) for x in (pairs[part], factors[:, part], point[:, part])]
        loop(*tables, *few, sums)
        out[:, part] = sums

    if workers == 1:
        work(0, len(pairs))
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))
    return torch.from_numpy(out).log1p_() + (point.double() - exact)
