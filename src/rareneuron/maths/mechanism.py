r"""Takes each neuron's effect apart: what goes through the final norm, what moves along token frequency, what is left.

f_v is the log frequency of a type (`frequency.log_frequency`) and û = f/‖f‖.
When a neuron is ablated the logits change by δ (docs/engine.md). Beside Δ(δ), the change of the loss, stand

    without the projection   Δ′ = Δ(δ − q û),  q = û·δ           the direction of frequency taken out of the logits
    without the tilt         Δ″ = Δ(δ − β f),  β = Cov_p(δ, f)/Var_p(f)    p made likelier by powers of frequency
    words                    Δ′ of the direct effect: neither the norm's scale nor the direction of frequency
    entropy                  ΔH ≈ −Cov_p(δ, log p)

Σ û = 0, so a constant in δ changes no q. Of B_i only E_p[û A] and E_p[log p A] are new, one product of width d_model
each. Where logits have no bias, log p is G but for a constant, and E_p[G A] does for the entropy. To second order, as
Δ itself,

    Δ(δ − q û) = Δ − q (E_p û − û_target) + log(1 + κ/2) − KL,  κ = κ₂ − 2q Cov_p(δ, û) + q² Var_p û,

with κ₂ := 2 (e^KL − 1) from the KL that the engine found by any order: what a heavy pair's KL has beyond the second
order stays, and only what q multiplies is approximate. β f takes the place of q û for the tilt. A soft cap bends δ: its
slope D joins every weight. Oracles: `exact_parts`, in float64; tests/oracles.py, the definitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.expansion import PAIRS_AT_ONCE, pieces
from rareneuron.maths.readout import Readout


class EffectParts(NamedTuple):
    """What is left of each effect without one of its mechanisms, and the change of the entropy, all in nats."""

    beyond_frequency: Float[Tensor, "token neuron"]  # Δ′
    beyond_tilt: Float[Tensor, "token neuron"]  # Δ″
    words: Float[Tensor, "token neuron"]
    entropy_change: Float[Tensor, "token neuron"]  # positive: the ablation makes the model less sure


@dataclass(frozen=True, kw_only=True)
class FrequencySums:
    """What a block of tokens knows of frequency and entropy; X_k are the directions that all neurons share."""

    from_target: Float[Tensor, " token"]  # E_p û − û_target
    variance: Float[Tensor, " token"]  # Var_p û
    along_X: Float[Tensor, "direction token"]  # û·D X_k
    along_A: Float[Tensor, "some d_model"]  # û·D A, of one row where no cap makes it differ between tokens
    with_X: Float[Tensor, "direction token"]  # Cov_p(D X_k, û)
    with_A: Float[Tensor, "token d_model"]  # Cov_p(D A, û)
    entropy_X: Float[Tensor, "direction token"]  # Cov_p(D X_k, log p)
    entropy_A: Float[Tensor, "token d_model"]  # Cov_p(D A, log p)


class FrequencyDirection:
    """The direction of token frequency among the logits, û, prepared for an engine's blocks of tokens."""

    def __init__(self, f: Float[Tensor, " vocab"], A: Float[Tensor, "vocab d_model"]) -> None:
        self.unit = (f.double() / f.double().norm()).to(A)
        self.squared = self.unit.square()
        self.A, self.along_A = A, (self.unit @ A)[None]

    def sums(
        self,
        p: Float[Tensor, "token vocab"],
        logp: Float[Tensor, "token vocab"],
        X: Float[Tensor, "direction token vocab"],
        target: Int[Tensor, " token"],
        mean_X: Float[Tensor, "direction token"],
        mean_A: Float[Tensor, "token d_model"],
        of_G: tuple[Float[Tensor, "direction token"], Float[Tensor, "token d_model"]] | None,
        rows: Float[Tensor, "row token vocab"],
        D: Float[Tensor, "token vocab"] | None = None,
    ) -> FrequencySums:
        """Form all sums over the vocabulary from E_p[D X_k] and E_p[D A], which engines know.

        `of_G` are the covariances of G with X_k and A, where log p is G and a constant: they are those of log p.
        `rows` is memory for two arrays, or three behind a cap.
        """
        mean, square = p @ self.unit, p @ self.squared  # two vectors are faster than a narrow matrix
        weights = [torch.mul(p, self.unit, out=rows[0])]
        if of_G is None:
            weights.append(torch.mul(p, logp, out=rows[1]))
            mean_log = rows[1].sum(1)
        if D is not None:
            rows[: len(weights)] *= D
            weights.append(torch.mul(D, self.unit, out=rows[len(weights)]))
        # In one go: what is rounded here by 1e-6 of itself multiplies a neuron's effect.
        with_A = (rows[: len(weights)].flatten(0, 1) @ self.A).unflatten(0, (len(weights), -1))
        with_X = torch.stack([torch.stack([torch.linalg.vecdot(w, x) for x in X]) for w in weights])
        if of_G is None:
            of_G = with_X[1] - mean_log * mean_X, with_A[1] - mean_log[:, None] * mean_A
        return FrequencySums(
            from_target=mean - self.unit[target],
            variance=(square - mean.square()).clamp_min_(0),
            along_X=X @ self.unit if D is None else with_X[-1],
            along_A=self.along_A if D is None else with_A[-1],
            with_X=with_X[0] - mean * mean_X,
            with_A=with_A[0] - mean[:, None] * mean_A,
            entropy_X=of_G[0],
            entropy_A=of_G[1],
        )


class LogitChange(NamedTuple):
    """What changes the logits of a block of pairs: δ = Σ_k along_k X_k + b B_i; None: nothing along this direction."""

    along: Sequence[Float[Tensor, "token neuron"] | None]
    b: Float[Tensor, "token neuron"]

    def contracted(
        self, at: slice, of_X: Float[Tensor, "direction token"], of_B: Tensor
    ) -> Float[Tensor, "some neuron"]:
        """Return Σ_k along_k of_X_k + b of_B at some tokens."""
        out = self.b[at] * (of_B if len(of_B) == 1 else of_B[at])
        for c, x in zip(self.along, of_X, strict=True):
            if c is not None:
                out.addcmul_(c[at], x[at, None])
        return out


def effect_parts(
    sums: FrequencySums,
    W: Float[Tensor, "neuron d_model"],
    delta: Float[Tensor, "2 token neuron"],
    kl: Float[Tensor, "2 token neuron"],
    changes: Sequence[LogitChange],
) -> Float[Tensor, "part token neuron"]:
    """Return the parts of every pair of a block, to second order, in the order of `EffectParts`.

    Δ, KL and changes are those of the total and of the direct effect; `W` is what each neuron writes, as the final norm
    centres it. A few tokens at a time, so as to stay in the cache.
    """
    along_B, with_B, entropy_B = sums.along_A @ W.T, sums.with_A @ W.T, sums.entropy_A @ W.T
    out = torch.empty(len(EffectParts._fields), *delta.shape[1:], dtype=delta.dtype, device=delta.device)
    tiny = torch.finfo(out.dtype).tiny
    total, direct = changes
    for at in pieces(out.shape[1], max(1, PAIRS_AT_ONCE // max(1, out.shape[2]))):
        mean, variance = sums.from_target[at, None], sums.variance[at, None]
        covariance, q = total.contracted(at, sums.with_X, with_B), total.contracted(at, sums.along_X, along_B)
        tilt = covariance / variance.clamp_min(tiny)
        out[0, at] = without(delta[0, at], kl[0, at], q, covariance, mean, variance)
        out[1, at] = without(delta[0, at], kl[0, at], tilt, covariance, mean, variance)
        covariance, q = direct.contracted(at, sums.with_X, with_B), direct.contracted(at, sums.along_X, along_B)
        out[2, at] = without(delta[1, at], kl[1, at], q, covariance, mean, variance)
        out[3, at] = total.contracted(at, sums.entropy_X, entropy_B).neg_()
    return out


def without(delta: Tensor, kl: Tensor, q: Tensor, covariance: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return Δ(δ − q û) from Δ(δ): `mean` is E_p û − û_target, `covariance` that of δ and û, `variance` that of û."""
    change = q * torch.addcmul(covariance, q, variance, value=-0.5)  # (κ₂ − κ)/2
    half = torch.expm1(kl).sub_(change).clamp_min_(0)
    return half.log1p_().sub_(kl).add_(delta).addcmul_(q, mean, value=-1)


def exact_parts(
    readout: Readout,
    resid: Float[Tensor, "token d_model"],
    shift: Float[Tensor, "token neuron"],
    target: Int[Tensor, " token"],
    W_out: Float[Tensor, "neuron d_model"],
    f: Float[Tensor, " vocab"],
    *,
    mlp_out: Float[Tensor, "token d_model"] | None = None,
) -> EffectParts:
    """Return the parts of every pair by sums over the whole vocabulary, in float64, token by token."""
    readout, W, f = readout.to(torch.float64), W_out.double(), f.double()
    unit, parts = f / f.norm(), []
    for t, x in enumerate(resid.double()):
        move = shift[t, :, None].double() * W
        if readout.output_norm is not None:
            assert mlp_out is not None
            move = readout.output_norm.move(mlp_out[t].expand_as(move), move)
        scale = readout.sigma(readout.centre(x))
        clean = readout(x[None])
        total, direct = readout(x + move) - clean, logits_at_scale(readout, x + move, scale) - clean
        logp = clean.log_softmax(-1)
        p, y = logp.exp(), target[t]
        spread = (p * (f - (p * f).sum()).square()).sum()
        tilt = (p * (f - (p * f).sum()) * total).sum(-1, keepdim=True) / spread.clamp_min(torch.finfo(p.dtype).tiny)
        after = (clean + total).log_softmax(-1)
        changes = (total - (total @ unit)[:, None] * unit, total - tilt * f, direct - (direct @ unit)[:, None] * unit)
        losses = [(logp + change).logsumexp(-1) - change[:, y] for change in changes]
        entropy = (p * logp).sum() - (after.exp() * after).sum(-1)
        parts.append(torch.stack([*losses, entropy]))
    return EffectParts(*torch.stack(parts, 1))


def logits_at_scale(
    readout: Readout, resid: Float[Tensor, "neuron d_model"], scale: Float[Tensor, ""]
) -> Float[Tensor, "neuron vocab"]:
    """Return the logits that the readout would give if its norm divided by `scale`."""
    return readout.logits_of(readout.centre(resid) / scale)
