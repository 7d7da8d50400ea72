r"""What the second order leaves out of KL = log E_p[exp(δ − E_p δ)], bounded, and summed where the bound is too large.

For |x| ≤ M, |eˣ − 1 − x − x²/2| ≤ (x²/2) r(M) with r(M) = 2(e^M − 1 − M)/M² − 1, since the ratio of the Taylor
remainder to x² grows with |x|. So the second order errs by at most κ₂/2 · r(M), and log, whose argument is at least
1 here (Jensen), enlarges no error. κ₂ alone is blind to a token of tiny p and large δ; M is not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHE_ELEMENTS = 2**18  # neurons · vocabulary worked on at once: 1 MB in float32, the size of a core's L2 cache
FARTHEST = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32
HEAD_SHARE = 16  # the head is 1/16 of the vocabulary, its most probable tokens


@dataclass(frozen=True, kw_only=True)
class CleanToken:
    """One token as the clean model sees it."""

    p: Float[Tensor, " vocab"]
    logp: Float[Tensor, " vocab"]  # not p.log(): p underflows where a large δ may still bring a token back
    G: Float[Tensor, " vocab"]  # centred: E_p[G] = 0
    target: int


def taylor_remainder(M: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """r(M), by its series where the quotient would cancel; no bound is claimed beyond `FARTHEST`."""
    series = M / 3 * (1 + M / 4 * (1 + M / 5 * (1 + M / 6)))
    ratio = torch.where(M < 0.1, series * (1 + 1e-4), 2 * (torch.expm1(M) - M) / M.square() - 1)
    return ratio.masked_fill(M > FARTHEST, torch.inf)


def exact_head(
    token: CleanToken,
    B: Float[Tensor, "neuron vocab"],
    chosen: Int[Tensor, " pair"],
    a: Float[Tensor, " pair"] | None,
    b: Float[Tensor, " pair"],
    mean_B: Float[Tensor, " pair"],
    variance: Float[Tensor, " pair"],
    B_range: Float[Tensor, "2 pair"],
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """KL with the full exponential over the most probable tokens and second order on the tail; and the tail's bound."""
    K = max(1, len(token.p) // HEAD_SHARE)
    p, head = token.p.topk(K)
    at_head = torch.take(B, chosen[:, None] * B.shape[1] + head)  # twice as fast as indexing by two tensors
    delta = b[:, None] * (at_head - mean_B[:, None])
    reach = b.abs() * torch.maximum(B_range[1] - mean_B, mean_B - B_range[0])
    if a is not None:
        delta.addr_(a, token.G[head])
        tail_G = token.G.abs().index_fill(0, head, 0.0)
        reach += a.abs() * tail_G.amax()
    tail = (variance - delta.square() @ p).clamp_min_(0)
    kl = torch.log1p((torch.expm1(delta) - delta) @ p + tail / 2)
    return kl, tail / 2 * taylor_remainder(reach)


def exact(
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
