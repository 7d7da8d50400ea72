r"""Sums p_v (e^{x_v} − 1) over the vocabulary in one loop, compiled by numba where that is installed.

x = b B_i + Σ_k h_k D_k − x₀, with directions D_k that belong to the token. Torch needs six passes over memory for what
this loop keeps in registers and the first cache. Where the total effect is wanted beside the direct one, its exponent
is (1 + a) x + a G (`following`), so it takes two more sums in place of a second exponential.

numba is optional (`pip install rareneuron[fast]`): without it `full_sum` takes torch, and the results agree to 2e-6
nats. Compiled code is never stored, since numba stores pickles. Oracle: tests/maths/test_fused.py, the same sums in
float64.
"""

import importlib.util
import inspect
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import InvalidConfig

AT_ONCE = 2**10  # of the vocabulary: float32 totals go no further, and what lies between two loops stays in the cache
TOKENS_TOGETHER = 32  # so many pieces of p and G stay in the second cache
SMALLEST_VOCAB = 2**13  # with fewer types, sums are too cheap to pay for a second of compilation
# Token · neuron · vocab from which compiling costs less than it saves where 2 % of pairs are summed in full: seconds.
LEAST_WORK = 2**35
FOLLOWING = 5e-7  # nats, a tenth of the tolerance: what the total effect may lack that follows from the direct one
SIGNATURE = "void(f4[:,::1], f4[:,::1], f4[:,::1], f4[:,:,::1], i8[:,::1], f4[:,::1], f4[::1], f8[:,::1])"
LOG_2 = math.log(2)
LOG2_E_EXACT = 1 / LOG_2
LOG2_E = np.float32(LOG2_E_EXACT)
# 2^f ≈ 1 + f (C1 + f (C2 + …)) for |f| ≤ 1/2, off by at most 1e-7 of 2^f; tests/maths/test_fused.py.
C1, C2, C3, C4, C5 = (np.float32(c) for c in ("0.693147", "0.24022247", "0.055507112", "0.009671298", "0.0013269456"))
ONE, NEAREST = np.float32(1), np.float32(1.5 * 2**23)  # the latter has no room for digits behind the point


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


def power_less_one(y: np.float32) -> np.float32:
    """Return 2^y − 1 for |y| < 120, to 2e-7 of the larger of 2^y and 1.

    y = m + f with a whole number m: adding `NEAREST` rounds y to m and leaves m in the lowest bits, from where it is
    moved to the exponent of 2^f.
    """
    rounded = y + NEAREST
    f = y - (rounded - NEAREST)
    power = ONE + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * C5))))
    bits = np.float32(power).view(np.int32) + np.int32(np.float32(rounded).view(np.int32) << np.int32(23))
    return np.int32(bits).view(np.float32) - ONE


def loop_over_pairs(power_less_one: Callable[[np.float32], np.float32]) -> Callable[..., None]:
    """Return the loop, in which sums may be added in any order, around an exponential in which nothing may move."""

    def sum_pairs(
        p: Float[np.ndarray, "token vocab"],
        B: Float[np.ndarray, "neuron vocab"],
        G: Float[np.ndarray, "token vocab"],
        directions: Float[np.ndarray, "direction token vocab"],
        pairs: Int[np.ndarray, "pair 2"],
        factors: Float[np.ndarray, "pair term"],
        origin: Float[np.ndarray, " pair"],
        out: Float[np.ndarray, "sum pair"],
    ) -> None:
        """Write Σ p (2^y − 1) and Σ p 2^y wⁿ for n = 1, 2, 3, y = factors · (B_i, D_1, …) − origin, w = y + G/log 2.

        A piece of the vocabulary at a time, for all pairs, which share what is in the cache. The loops over a piece are
        short ones: in one long loop, too few exponentials would be under way at once.
        """
        y, less_one = np.empty(AT_ONCE, np.float32), np.empty(AT_ONCE, np.float32)
        out[:] = 0
        for start in range(0, B.shape[1], AT_ONCE):
            n = min(AT_ONCE, B.shape[1] - start)
            for pair in range(len(pairs)):
                t, neuron = pairs[pair, 0], pairs[pair, 1]
                b, y0 = factors[pair, 0], origin[pair]
                of_B, of_p, of_G = B[neuron, start : start + n], p[t, start : start + n], G[t, start : start + n]
                for k in range(directions.shape[0]):
                    h, of_D = factors[pair, 1 + k], directions[k, t, start : start + n]
                    for i in range(n):
                        y[i] = (h * of_D[i] - y0) if k == 0 else h * of_D[i] + y[i]
                if directions.shape[0]:
                    for i in range(n):
                        y[i] += b * of_B[i]
                        less_one[i] = power_less_one(y[i])
                else:
                    for i in range(n):
                        y[i] = b * of_B[i] - y0
                        less_one[i] = power_less_one(y[i])
                total = linear = square = cube = np.float32(0)
                for i in range(n):
                    w = y[i] + LOG2_E * of_G[i]
                    term = of_p[i] * less_one[i]
                    first = (term + of_p[i]) * w
                    second = first * w
                    total += term
                    linear += first
                    square += second
                    cube += second * w
                out[0, pair] += total
                out[1, pair] += linear
                out[2, pair] += square
                out[3, pair] += cube

    return inspect.unwrap(sum_pairs)


@cache
def compilation() -> Future[Callable[..., None]]:
    """Start to compile the loop, once a process, beside what the engine does until it needs it."""
    return ThreadPoolExecutor(1).submit(compiled_loop)


def compiled_loop() -> Callable[..., None]:
    """Return the compiled loop; with a signature, so for one layout only and at once."""
    import numba

    # `contract` allows fused multiply-adds and nothing else, `reassoc` sums in any order as well.
    strict = numba.njit("f4(f4)", fastmath={"contract"}, error_model="numpy")(inspect.unwrap(power_less_one))
    how = {"nogil": True, "fastmath": {"contract", "reassoc"}, "error_model": "numpy"}
    return numba.njit(SIGNATURE, **how)(loop_over_pairs(strict))


def fused_sums(
    p: Float[Tensor, "token vocab"],
    X: Float[Tensor, "direction token vocab"],
    B: Float[Tensor, "neuron vocab"],
    target: Int[Tensor, " token"],
    pairs: Int[Tensor, "pair 2"],
    along: Float[Tensor, "kind direction pair"],
    b: Float[Tensor, "kind pair"],
    origin: Float[Tensor, "kind pair"],
    reach: Float[Tensor, " pair"],
) -> Float[Tensor, "kind pair"]:
    r"""Return log E_p[exp(δ − δ_target − origin)] of single pairs, δ = Σ along_k X_k + b B_i, in float64.

    Of two kinds the second is the direct effect r, without G = X_0, and the first the total one, r + a (r + G) with
    a = along_0. With x = r − r_target − origin, E e^((1 + a) x + a G) = Σ_n aⁿ/n! E[e^x wⁿ], w = x + G. By the series
    of e^(a w), the terms after the third sum to at most a²/2 E[e^x w²] · (M²/12)/(1 − M/5) where |a w| ≤ M < 5.
    `reach` bounds |w|. Where more than `FOLLOWING` may be left out, the total effect is summed by itself.
    """
    t, neuron = pairs.T
    at = target[t]
    of_B, of_X = B[neuron, at].double(), X[:, t, at].double()
    if len(b) == 1:
        factors = torch.cat([b, along[0]])
        sums, late = sums_of_powers(p, X[0], X, B, pairs, factors, torch.cat([of_B[None], of_X]), origin[0])
        return (sums[0].log1p_() + late)[None]
    factors = torch.cat([b[1:], along[1, 1:]])
    sums, late = sums_of_powers(p, X[0], X[1:], B, pairs, factors, torch.cat([of_B[None], of_X[1:]]), origin[1])
    a = along[0, 0].double()
    curved = sums[2] * a.square() / 2
    follows = sums[0] + a * sums[1] + curved + sums[3] * a**3 / 6
    total = follows.log1p() + a * (late + origin[1] - of_X[0]) + late + origin[1] - origin[0]
    M = a.abs() * reach
    hard = ~((curved * M.square() / (12 - 2.4 * M) <= FOLLOWING * (1 + follows)) & (M < 5))
    if hard.any():
        few = pairs[hard], along[:1, :, hard], b[:1, hard], origin[:1, hard], reach[hard]
        total[hard] = fused_sums(p, X, B, target, *few)[0]
    return torch.stack([total, sums[0].log1p_() + late])


def sums_of_powers(
    p: Float[Tensor, "token vocab"],
    G: Float[Tensor, "token vocab"],
    directions: Float[Tensor, "direction token vocab"],
    B: Float[Tensor, "neuron vocab"],
    pairs: Int[Tensor, "pair 2"],
    factors: Float[Tensor, "term pair"],
    at_target: Float[Tensor, "term pair"],
    origin: Float[Tensor, " pair"],
) -> tuple[Float[Tensor, "sum pair"], Float[Tensor, " pair"]]:
    """Return Σ p (e^x − 1) and Σ p e^x wⁿ for n = 1, 2, 3, and by how much x₀ was taken too large.

    x = Σ factors · terms − x₀, w = x + G, and x₀ is the same at the target, plus `origin`. x₀ is formed in float64 from
    the factors as the loop gets them, and what float32 rounds off it is returned, since it is the same for the whole
    vocabulary and would not average out.
    """
    scaled = (factors.double() * LOG2_E_EXACT).float()
    exact = (scaled.double() * at_target).sum(0) + origin.double() * LOG2_E_EXACT
    point = exact.float()
    out = np.empty((4, len(pairs)))
    loop = compilation().result()
    tables = [x.contiguous().numpy() for x in (p, B, G, directions)]
    # A few tokens together, neuron by neuron, so that a row of B is still in the cache for the next of them.
    order = (pairs[:, 0] // TOKENS_TOGETHER * len(B) + pairs[:, 1]).argsort()
    given = pairs[order], scaled.T[order], point[order]
    # Each thread has its own pairs and no sum is shared, so their number changes no bit.
    workers = max(1, min(torch.get_num_threads(), len(pairs)))
    edges = [len(pairs) * k // workers for k in range(workers + 1)]

    def work(start: int, stop: int) -> None:
        sums = np.empty((4, stop - start))
        loop(*tables, *(np.ascontiguousarray(x[start:stop].numpy()) for x in given), sums)
        out[:, order[start:stop].numpy()] = sums

    if workers == 1:
        work(0, len(pairs))
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))
    nats = LOG_2 ** torch.arange(4, dtype=torch.float64)[:, None]
    return torch.from_numpy(out) * nats, (point.double() - exact) * LOG_2
