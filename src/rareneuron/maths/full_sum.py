r"""Δ of single pairs by the full sum over the vocabulary, where no expansion will do.

Δ = log E_p[exp(δ)] − δ_target. Small changes keep their digits as Δ − c = log1p(E_p[expm1(δ − δ_target − c)]) for any
c; with c = κ₁ this is KL. `fused` does this in one compiled loop where it may; with torch alone, changes large enough
lose none by the plain form, at half the cost.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.maths.fused import fused_sums

ELEMENTS_AT_ONCE = 2**20  # pair · vocab: 4 MB in float32, what a core's cache holds
LARGE = 0.02  # nats: beyond this the plain form's rounding, 1e-7 nats, is nothing
LOG2_E = 1 / math.log(2)
UNDERFLOW = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32


def full_sums(
    p: Float[Tensor, "token vocab"],
    logp: Float[Tensor, "token vocab"],
    X: Float[Tensor, "direction token vocab"],
    B: Float[Tensor, "neuron vocab"],
    farthest: tuple[Float[Tensor, "direction token"], Float[Tensor, " neuron"]],
    target: Int[Tensor, " token"],
    pairs: Int[Tensor, "pair 2"],
    along: Float[Tensor, "kind direction pair"],
    b: Float[Tensor, "kind pair"],
    origin: Float[Tensor, "kind pair"],
    *,
    fast: bool,
    compiled: bool = False,
) -> Float[Tensor, "kind pair"]:
    """Return Δ − origin of some (token, neuron) pairs, in the order of tokens, for each kind of effect.

    δ = Σ along_k X_k + b B_i, and of two kinds the second is the direct effect, without X_0. `farthest` is max |X_k|
    and max |B_i|; `fast` allows an error of 1e-7 nats; `compiled` takes the loop of `fused`. Where exp overflows or
    takes away most of 1, and where δ may bring back a token whose p underflowed, the log-sum-exp is taken.
    """
    of_X, of_B = farthest[0][:, pairs[:, 0]], farthest[1][pairs[:, 1]]
    rise = 2 * (b.abs() * of_B + (along.abs() * of_X).sum(1))  # of δ over its mean or its target, at most
    if compiled:
        found = fused_sums(p, X, B, target, pairs, along, b, origin, rise[-1] + of_X[0])
        out = found.to(b.dtype)
    else:
        large = (rise > LARGE).all(0) & fast
        out = sums_by_torch(p, X, target, B, pairs, along, b, origin, large)
    for kind, pair in ((rise > UNDERFLOW) | ~(out > -0.5) | out.isinf()).nonzero().tolist():
        t, neuron = pairs[pair].tolist()
        place = slice(pair, pair + 1)
        delta = b.new_empty(1, 1, B.shape[1])
        shift_logits(B[neuron, None], X[:, t], along[[kind], :, place], b[[kind], place], delta)
        delta -= delta[0, 0, target[t]] + origin[kind, pair]
        out[kind, pair] = (delta[0, 0] + logp[t]).logsumexp(-1)
    return out


def sums_by_torch(
    p: Float[Tensor, "token vocab"],
    X: Float[Tensor, "direction token vocab"],
    target: Int[Tensor, " token"],
    B: Float[Tensor, "neuron vocab"],
    pairs: Int[Tensor, "pair 2"],
    along: Float[Tensor, "kind direction pair"],
    b: Float[Tensor, "kind pair"],
    origin: Float[Tensor, "kind pair"],
    large: Bool[Tensor, " pair"],
) -> Float[Tensor, "kind pair"]:
    """The same by array operations, a few pairs of a token at a time; `large` ones by the plain form."""
    out = torch.empty_like(b)
    kinds, vocab = len(b), B.shape[1]
    rows = max(1, ELEMENTS_AT_ONCE // (kinds * vocab))
    # Kept for all, since fresh memory would be faulted in page by page each time.
    buffer, rows_of_B = (torch.empty(n * rows, vocab, dtype=B.dtype, device=B.device) for n in (kinds, 1))
    # Runs of one token, of at most `rows` pairs, all of them large or none.
    run = torch.stack([pairs[:, 0], large], 1).unique_consecutive(dim=0, return_counts=True)
    stop = 0
    for (t, is_large), count in zip(run[0].tolist(), run[1].tolist(), strict=True):
        start, stop = stop, stop + count
        for begin in range(start, stop, rows):
            part = slice(begin, min(begin + rows, stop))
            n = part.stop - part.start
            B_of = torch.index_select(B, 0, pairs[part, 1], out=rows_of_B[:n])
            delta = buffer[: kinds * n].view(kinds, n, vocab)
            unit = LOG2_E if is_large else 1.0
            shift_logits(B_of, X[:, t], along[:, :, part] * unit, b[:, part] * unit, delta)
            at_target = delta[..., target[t]] / unit + origin[:, part]
            if is_large:
                out[:, part] = delta.exp2_().mul_(p[t]).sum(-1).log_() - at_target
            else:
                out[:, part] = delta.sub_(at_target[..., None]).expm1_().mul_(p[t]).sum(-1).log1p_()
    return out


def shift_logits(
    B: Float[Tensor, "pair vocab"],
    X: Float[Tensor, "direction vocab"],
    along: Float[Tensor, "kind direction pair"],
    b: Float[Tensor, "kind pair"],
    out: Float[Tensor, "kind pair vocab"],
) -> None:
    """Write δ to `out`."""
    torch.mul(B, b[..., None], out=out)
    for delta, factors in zip(out, along, strict=True):
        for x, factor in zip(X, factors, strict=True):
            if factor.any():
                delta.addr_(factor, x)
