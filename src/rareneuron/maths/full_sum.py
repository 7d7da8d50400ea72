r"""Δ of single pairs by the full sum over the vocabulary, where no expansion will do.

Δ − c = log E_p[exp(δ − δ_target − c)] for any c, summed as log1p(E_p[expm1(·)]) so that small effects keep their
digits. With c = κ₁ this is KL.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.expansion import CleanTokens

ELEMENTS_AT_ONCE = 2**20  # pair · vocab: 4 MB in float32, what a core's cache holds
LARGE = 0.02  # nats: beyond this 2^x − 1 may take the place of expm1, at a third of the time
LOG2_E = 1 / math.log(2)
UNDERFLOW = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32


def full_sums(
    clean: CleanTokens,
    target: Int[Tensor, " token"],
    B: Float[Tensor, "neuron vocab"],
    farthest_B: Float[Tensor, " neuron"],
    pairs: Int[Tensor, "pair 2"],
    a: Float[Tensor, "kind pair"],
    b: Float[Tensor, "kind pair"],
    origin: Float[Tensor, "kind pair"],
    *,
    fast: bool,
) -> Float[Tensor, "kind pair"]:
    """Δ − origin of some (token, neuron) pairs, in the order of tokens, for each kind of change δ = a G + b B_i.

    `farthest_B` is max |B_i|; `fast` allows an error of 1e-7 nats. Where exp overflows or takes away most of 1, and
    where δ may bring back a token whose p underflowed, the log-sum-exp is taken.
    """
    mean = torch.empty_like(b)
    rise = 2 * (a.abs() * clean.farthest_G[pairs[:, 0]] + b.abs() * farthest_B[pairs[:, 1]])  # of δ over its mean
    large = (rise > LARGE).all(0) & fast
    unit = torch.where(large, LOG2_E, 1.0).to(b)
    a_scaled, b_scaled, origin_scaled = a * unit, b * unit, origin * unit
    kinds, vocab = len(b), B.shape[1]
    rows = max(1, ELEMENTS_AT_ONCE // (kinds * vocab))
    buffer = torch.empty(kinds * rows * vocab, dtype=B.dtype, device=B.device)
    # Runs of one token, of at most `rows` pairs, all of them large or none.
    run = torch.stack([pairs[:, 0], large], 1).unique_consecutive(dim=0, return_counts=True)
    stop = 0
    for (t, is_large), count in zip(run[0].tolist(), run[1].tolist(), strict=True):
        start, stop = stop, stop + count
        for begin in range(start, stop, rows):
            part = slice(begin, min(begin + rows, stop))
            fetched = B[pairs[part, 1]]
            delta = buffer[: kinds * fetched.numel()].view(kinds, *fetched.shape)
            centred(fetched, clean.G[t], target[t], a_scaled[:, part], b_scaled[:, part], origin_scaled[:, part], delta)
            if is_large:
                delta.exp2_().sub_(1)
            else:
                delta.expm1_()
            mean[:, part] = delta.mul_(clean.p[t]).sum(-1)
    out = mean.log1p()
    for kind, pair in ((rise > UNDERFLOW) | ~(mean > -0.5) | mean.isinf()).nonzero().tolist():
        t, neuron = pairs[pair].tolist()
        place = slice(pair, pair + 1)
        delta = buffer[:vocab].view(1, 1, vocab)
        at = (kind, None, place)
        centred(B[neuron, None], clean.G[t], target[t], a[at], b[at], origin[at], delta)
        out[kind, pair] = (delta[0, 0] + clean.logp[t]).logsumexp(-1)
    return out


def centred(B: Tensor, G: Tensor, target: Tensor, a: Tensor, b: Tensor, origin: Tensor, out: Tensor) -> None:
    """δ − δ_target − origin, written to `out` [kind, pair, vocab]."""
    torch.mul(B, b[..., None], out=out)
    out.view(-1, B.shape[-1]).addr_(a.flatten(), G)
    out.sub_((out[..., target] + origin)[..., None])
