r"""What an expansion of KL = log E_p[exp(δ − E_p δ)] leaves out, bounded, and the full sum where that is too much.

For |x| ≤ M the Taylor remainder of e^x is at most (x²/2) r(M), r(M) = 2(e^M − Σ_{j ≤ n} M^j/j!)/M², since its ratio to
x² grows with |x|. So the expansion of E_p[e^x] to order n errs by at most κ₂/2 · r(M), and log, whose argument is at
least 1 here (Jensen), enlarges no error. κ₂ alone is blind to a token of tiny p and large δ; M is not.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHE_ELEMENTS = 2**18  # neurons · vocabulary worked on at once: 1 MB in float32, the size of a core's L2 cache
FARTHEST = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32


@dataclass(frozen=True, kw_only=True)
class CleanToken:
    """One token as the clean model sees it."""

    p: Float[Tensor, " vocab"]
    logp: Float[Tensor, " vocab"]  # not p.log(): p underflows where a large δ may still bring a token back
    G: Float[Tensor, " vocab"]  # centred: E_p[G] = 0
    target: int


def taylor_remainder(M: Float[Tensor, "*pairs"], order: int) -> Float[Tensor, "*pairs"]:
    """r(M) = 2(e^M - Σ_{j ≤ order} M^j/j!)/M², by its series where the quotient would cancel.

    No bound is claimed beyond `FARTHEST`.
    """
    series = torch.ones_like(M)
    for k in range(order + 9, order + 1, -1):
        series = 1 + series * M / k
    series *= 2 * M ** (order - 1) / math.factorial(order + 1)
    taylor = sum(M**j / math.factorial(j) for j in range(order + 1))
    ratio = torch.where(M < 1, series * (1 + 1e-4), 2 * (M.exp() - taylor) / M.square())
    return ratio.masked_fill(M > FARTHEST, torch.inf)


def full_sum(
    token: CleanToken,
    B: Float[Tensor, "neuron vocab"],
    chosen: Int[Tensor, " pair"],
    a: Float[Tensor, " pair"] | None,
    b: Float[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    r"""Δ = log E_p[exp(δ − δ_target)] of one token and some neurons, by the full sum over the vocabulary.

    Where the sum is no small correction, log1p would lose what it subtracts, and where δ may bring back a token whose
    p underflowed, the sum would miss it: there the log-sum-exp is taken.
    """
    out = torch.empty_like(b)
    rows = max(1, CACHE_ELEMENTS // len(token.p))
    for start in range(0, len(b), rows):
        block = slice(start, start + rows)
        delta = B[chosen[block]] * b[block, None]
        if a is not None:
            delta.addr_(a[block], token.G)
        delta -= delta[:, token.target].clone()[:, None]
        change = torch.expm1(delta) @ token.p
        out[block] = torch.log1p(change)
        large = ~(change.abs() < 0.5) | (delta.amax(1) > FARTHEST)  # the former also where exp overflowed
        if large.any():
            out[block][large] = (delta[large] + token.logp).logsumexp(-1)
    return out
