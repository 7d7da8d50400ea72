r"""Δ of single pairs by the full sum over the vocabulary, where no expansion will do.

Δ = log E_p[exp(δ − δ_target)], summed as log1p(E_p[expm1(·)]) so that small effects keep their digits.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.expansion import CleanTokens

ELEMENTS_AT_ONCE = 2**20  # pair · vocab: 4 MB in float32, what a core's cache holds
LARGE = 0.02  # nats: beyond this 2^x − 1 is as good as expm1, and several times as fast
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
) -> Float[Tensor, "kind pair"]:
    """Δ of some (token, neuron) pairs, in the order of tokens, for each kind of change δ = a G + b B_i.

    `farthest_B` is max |B_i|.
    Where the sum takes away most of 1, log1p would lose what is left, and where δ may bring back a token whose p
    underflowed, the sum would miss it: there the log-sum-exp is taken.
    """
    mean = torch.empty_like(b)
    rise = 2 * (a.abs() * clean.farthest_G[pairs[:, 0]] + b.abs() * farthest_B[pairs[:, 1]])  # of δ over δ_target
    large = (rise > LARGE).all(0) if B.dtype == torch.float32 else torch.zeros_like(rise[0], dtype=torch.bool)
    unit = torch.where(large, LOG2_E, 1.0).to(b)
    a_scaled, b_scaled = a * unit, b * unit
    kinds, vocab = len(b), B.shape[1]
    rows = max(1, ELEMENTS_AT_ONCE // (kinds * vocab))
    buffer = torch.empty(kinds * rows * vocab, dtype=B.dtype, device=B.device)
    # Runs of one token, of at most `rows` pairs, all of them large or none.
    run = torch.stack([pairs[:, 0], large], 1).unique_consecutive(dim=0, return_counts=True)
    stop = 0
    for (t, is_large), count in zip(run[0].tolist(), run[1].tolist(), strict=True):
        start, stop = stop, stop + count
        for first in range(start, stop, rows):
            part = slice(first, min(first + rows, stop))
            fetched = B[pairs[part, 1]]
            delta = buffer[: kinds * fetched.numel()].view(kinds, *fetched.shape)
            from_target(fetched, clean.G[t], target[t], a_scaled[:, part], b_scaled[:, part], delta)
            if is_large:
                delta.exp2_().sub_(1)
            else:
                delta.expm1_()
            mean[:, part] = delta.mul_(clean.p[t]).sum(-1)
    out = mean.log1p()
    for kind, pair in ((rise > UNDERFLOW) | ~(mean > -0.5)).nonzero().tolist():
        t, neuron = pairs[pair].tolist()
        place = slice(pair, pair + 1)
        delta = buffer[:vocab].view(1, 1, vocab)
        from_target(B[neuron, None], clean.G[t], target[t], a[kind, None, place], b[kind, None, place], delta)
        out[kind, pair] = (delta[0, 0] + clean.logp[t]).logsumexp(-1)
    return out


def from_target(B: Tensor, G: Tensor, target: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
    """δ − δ_target, written to `out` [kind, pair, vocab]."""
    torch.mul(B, b[..., None], out=out)
    out.view(-1, B.shape[-1]).addr_(a.flatten(), G)
    out.sub_(out[..., target, None].clone())
