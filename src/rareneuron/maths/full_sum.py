r"""Δ of single pairs by the full sum over the vocabulary, where no expansion will do.

Δ = log E_p[exp(δ)] − δ_target. Small changes keep their digits as Δ − c = log1p(E_p[expm1(δ − δ_target − c)]) for any
c; with c = κ₁ this is KL. `fused` does this in one compiled loop where it may; with torch alone, changes large enough
lose none by the plain form, at half the cost.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.maths.expansion import Change, CleanTokens
from rareneuron.maths.fused import fused_sums

ELEMENTS_AT_ONCE = 2**20  # pair · vocab: 4 MB in float32, what a core's cache holds
LARGE = 0.02  # nats: beyond this the plain form's rounding, 1e-7 nats, is nothing
LOG2_E = 1 / math.log(2)
UNDERFLOW = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32


def full_sums(
    clean: CleanTokens,
    target: Int[Tensor, " token"],
    B: Float[Tensor, "neuron vocab"],
    farthest_B: Float[Tensor, " neuron"],
    pairs: Int[Tensor, "pair 2"],
    changes: tuple[Change, ...],
    origin: Float[Tensor, "kind pair"],
    *,
    fast: bool,
    compiled: bool = False,
) -> Float[Tensor, "kind pair"]:
    """Δ − origin of some (token, neuron) pairs, in the order of tokens, for each kind of change.

    `farthest_B` is max |B_i|; `fast` allows an error of 1e-7 nats; `compiled` takes the loop of `fused`. Where exp
    overflows or takes away most of 1, and where δ may bring back a token whose p underflowed, the log-sum-exp is taken.
    """
    a = [None if c.a is None else c.a[pairs[:, 0], pairs[:, 1]] for c in changes]
    b = torch.stack([c.b[pairs[:, 0], pairs[:, 1]] for c in changes])
    rise = 2 * b.abs() * farthest_B[pairs[:, 1]]  # of δ over its mean, at most
    for x, of_G in zip(rise, a, strict=True):
        if of_G is not None:
            x += 2 * of_G.abs() * clean.farthest_G[pairs[:, 0]]
    if compiled:
        none = torch.zeros_like(b[0])
        factors = torch.stack([b, torch.stack([none if x is None else x for x in a])], -1)
        out = fused_sums(clean.p, B, clean.G[None], pairs, factors, target, origin).to(b.dtype)
    else:
        large = (rise > LARGE).all(0) & fast
        out = sums_by_torch(clean, target, B, pairs, a, b, origin, large)
    for kind, pair in ((rise > UNDERFLOW) | ~(out > -0.5) | out.isinf()).nonzero().tolist():
        t, neuron = pairs[pair].tolist()
        place = slice(pair, pair + 1)
        delta, of_G = b.new_empty(1, 1, B.shape[1]), a[kind]
        shift_logits(B[neuron, None], clean.G[t], [None if of_G is None else of_G[place]], b[[kind], place], delta)
        delta -= delta[0, 0, target[t]] + origin[kind, pair]
        out[kind, pair] = (delta[0, 0] + clean.logp[t]).logsumexp(-1)
    return out


def sums_by_torch(
    clean: CleanTokens,
    target: Int[Tensor, " token"],
    B: Float[Tensor, "neuron vocab"],
    pairs: Int[Tensor, "pair 2"],
    a: list[Tensor | None],
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
            shift_logits(B_of, clean.G[t], [None if x is None else x[part] * unit for x in a], b[:, part] * unit, delta)
            at_target = delta[..., target[t]] / unit + origin[:, part]
            if is_large:
                out[:, part] = delta.exp2_().mul_(clean.p[t]).sum(-1).log_() - at_target
            else:
                out[:, part] = delta.sub_(at_target[..., None]).expm1_().mul_(clean.p[t]).sum(-1).log1p_()
    return out


def shift_logits(B: Tensor, G: Tensor, a: list[Tensor | None], b: Tensor, out: Tensor) -> None:
    """δ, written to `out` [kind, pair, vocab]."""
    torch.mul(B, b[..., None], out=out)
    for delta, of_G in zip(out, a, strict=True):
        if of_G is not None:
            delta.addr_(of_G, G)
