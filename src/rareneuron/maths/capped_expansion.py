r"""Δ and KL to second order behind an output norm or a soft cap, with a bound on what is left out.

Logits before the cap change by r = Σ_k c_k X_k + b B_i, |r| ≤ M, those behind it by y = ℓ + s, ℓ = D r (no cap: D = 1,
s = 0). The clean distribution p is that of the capped logits; SD, Var and E are under p. With T the capped logit over
κ and τ = max |T| + M/κ (at most 1), from `softcap`:

    s = −(D T/κ) r² + ρ,     E|ρ| ≤ (2/3) e^(2M/κ) (M²/κ²) (E D²r²)^½      since |f‴| ≤ 4 D(ξ)/κ², D(ξ) ≤ D e^(2M/κ)
    |s| ≤ 0.385 M²/κ,        SD s ≤ Q = τ e^(2M/κ) (M/κ) (E D²r²)^½        since |f″| ≤ 2 τ D(ξ)/κ

    Δ  = (E ℓ − ℓ_target) − E[D T r²]/κ − s_target + KL,  off by E|ρ| and the error of KL; s_target is computed exactly
    KL = log(1 + Var ℓ / 2),  off by at most  (S + Q)²/6 · M_x/(1 − M_x/4) + S Q + Q²/2,  S = SD ℓ, M_x < 4,

the first term being the remainder of the exponential series (`expansion`) of x = y − E y, whose variance is at most
(S + Q)² and whose size at most M_x = max|ℓ − E ℓ| + 2 · 0.385 M²/κ; the others are |Var y − Var ℓ|/2. Rounding in
products of the layer's width adds to the bound, as in `expansion`. Oracle: tests/maths/test_behind_norm.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.expansion import PAIRS_AT_ONCE, pieces, summed
from rareneuron.maths.softcap import STEEPEST, change_from_tanh


@dataclass(frozen=True, kw_only=True)
class Capped:
    """Logits z before a cap κ, as tanh sees them."""

    cap: float
    scaled: Float[Tensor, "token vocab"]  # z/κ
    T: Float[Tensor, "token vocab"]  # tanh(z/κ)
    D: Float[Tensor, "token vocab"]  # 1 − T²


@dataclass(frozen=True, kw_only=True)
class CleanBlock:
    """A block of tokens as the clean model sees them, and the directions X_k that all its neurons share."""

    p: Float[Tensor, "token vocab"]
    logp: Float[Tensor, "token vocab"]
    X: Float[Tensor, "direction token vocab"]  # centred under p where there is no cap
    capped: Capped | None


@dataclass(frozen=True, kw_only=True)
class TokenSums:
    """Sums over the vocabulary for a block of tokens. Weights w: p D², and behind a cap also p D T/κ."""

    weights: tuple[Tensor, ...]  # [token, vocab] each
    mean_A: Float[Tensor, "token d_model"]  # E_p[D A]
    from_target: Float[Tensor, "token d_model"]  # E_p[D A] − D_target A_target
    A_target: Float[Tensor, "token d_model"]
    XA: Float[Tensor, "weight direction token d_model"]  # Σ w X_k A
    gram: Float[Tensor, "weight direction direction token"]  # Σ w X_k X_l
    mean_X: Float[Tensor, "direction token"]  # E_p[D X_k]
    X_from_target: Float[Tensor, "direction token"]  # E_p[D X_k] − D_target X_k,target
    X_target: Float[Tensor, "direction token"]
    farthest: Float[Tensor, "direction token"]  # max |X_k|
    reach: Float[Tensor, "direction token"]  # max |D X_k − E_p[D X_k]|
    farthest_T: Float[Tensor, " token"]  # max |T|; 0 without a cap
    scaled_target: Float[Tensor, " token"]  # z_target/κ; 0 without a cap
    loss: Float[Tensor, " token"]


@dataclass(frozen=True, kw_only=True)
class NeuronMoments:
    """Sums over the vocabulary for every pair of a block."""

    mean: Float[Tensor, "token neuron"]  # E_p[D B_i]
    from_target: Float[Tensor, "token neuron"]  # E_p[D B_i] − D_target B_i,target
    at_target: Float[Tensor, "token neuron"]  # B_i,target
    square: Float[Tensor, "weight token neuron"]  # Σ w B_i²
    with_X: Float[Tensor, "weight direction token neuron"]  # Σ w X_k B_i
    reach: Float[Tensor, "token neuron"]  # max |D B_i − E_p[D B_i]|, at most
    farthest: Float[Tensor, " neuron"]  # max |B_i|
    rounding: float  # relative error of `square`, at most, where w doesn't change sign


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """Δ and KL of a block of pairs, and a bound on the error of either; infinite where none is known."""

    delta: Float[Tensor, "token neuron"]
    kl: Float[Tensor, "token neuron"]
    bound: Float[Tensor, "token neuron"]


def rows_of_weights(n_directions: int, *, capped: bool) -> int:
    """Return how many arrays [token, vocab] `token_sums` needs for weights."""
    return 3 + 2 * n_directions if capped else 1 + n_directions


def token_sums(
    clean: CleanBlock, target: Int[Tensor, " token"], rows: Float[Tensor, "row token vocab"], A: Tensor
) -> TokenSums:
    """Form all sums over the vocabulary that depend on the token alone; `rows` is memory and is overwritten."""
    p, X, capped = clean.p, clean.X, clean.capped
    at, K = target[:, None], len(X)
    D_target = torch.ones_like(p[:, 0]) if capped is None else capped.D.gather(1, at)[:, 0]
    X_target = X.gather(2, at.expand(K, -1, -1))[..., 0]
    weights, others = quadratic_weights(clean, rows), rows[0]
    # The target's own term is left out of what is compared with it: so nothing cancels where its p is nearly one.
    left = torch.where(torch.arange(p.shape[1], device=p.device) == at, 0.0, p).sum(1)
    others.scatter_(1, at, 0.0)
    X_from_target = torch.stack([torch.mul(others, x, out=rows[1]).sum(1) for x in X]) - left * D_target * X_target
    mean_X = X_from_target + D_target * X_target
    ends = [(x if capped is None else torch.mul(capped.D, x, out=rows[1])).aminmax(dim=1) for x in X]
    gram = weighted_directions(X, weights, rows[1:])
    # In one product: as many rows again cost little more than half of two.
    sums = summed(rows[: 1 + K * len(weights)].flatten(0, 1), A).unflatten(0, (-1, len(p)))
    A_target = A[target]
    from_target = sums[0] - (left * D_target)[:, None] * A_target
    zero = torch.zeros_like(left)
    return TokenSums(
        weights=weights,
        mean_A=from_target + D_target[:, None] * A_target,
        from_target=from_target,
        A_target=A_target,
        XA=sums[1:].unflatten(0, (len(weights), K)),
        gram=gram,
        mean_X=mean_X,
        X_from_target=X_from_target,
        X_target=X_target,
        farthest=torch.maximum(X.amax(2), -X.amin(2)),
        reach=torch.stack([torch.maximum(e.max - m, m - e.min) for e, m in zip(ends, mean_X, strict=True)]),
        farthest_T=zero if capped is None else torch.maximum(capped.T.amax(1), -capped.T.amin(1)),
        scaled_target=zero if capped is None else capped.scaled.gather(1, at)[:, 0],
        loss=-clean.logp.gather(1, at)[:, 0],
    )


def quadratic_weights(clean: CleanBlock, rows: Float[Tensor, "row token vocab"]) -> tuple[Tensor, ...]:
    """Return p D², and behind a cap p D T/κ too, in the last of `rows`; the first becomes p D."""
    if clean.capped is None:
        rows[0].copy_(clean.p)
        return (clean.p,)
    torch.mul(clean.p, clean.capped.D, out=rows[0])
    torch.mul(rows[0], clean.capped.D, out=rows[-2])
    torch.mul(rows[0], clean.capped.T, out=rows[-1]).div_(clean.capped.cap)
    return rows[-2], rows[-1]


def weighted_directions(
    X: Float[Tensor, "direction token vocab"], weights: tuple[Tensor, ...], rows: Float[Tensor, "row token vocab"]
) -> Float[Tensor, "weight direction direction token"]:
    """Write w X_k to the first of `rows`, weight by weight, and return Σ w X_k X_l."""
    gram = []
    for w, of_weight in zip(weights, rows.split(len(X)), strict=False):
        for x, row in zip(X, of_weight, strict=True):
            torch.mul(w, x, out=row)
        gram.append(torch.stack([torch.stack([(row * x).sum(1) for x in X]) for row in of_weight]))
    return torch.stack(gram)


def expand(
    sums: TokenSums,
    moments: NeuronMoments,
    along: Float[Tensor, "direction token neuron"],
    b: Float[Tensor, "token neuron"],
    cap: float | None,
) -> Expanded:
    """Return Δ and KL of every pair to second order, a few tokens at a time, so as to stay in the cache."""
    out = torch.empty(3, *b.shape, dtype=b.dtype, device=b.device)
    for rows in pieces(len(b), max(1, PAIRS_AT_ONCE // b.shape[1])):
        part = Part(sums=sums, moments=moments, along=along[:, rows], b=b[rows], rows=rows)
        out[:, rows] = torch.stack(part.uncapped() if cap is None else part.capped(cap))
    return Expanded(delta=out[0], kl=out[1], bound=out[2])


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pairs of a few tokens."""

    sums: TokenSums
    moments: NeuronMoments
    along: Float[Tensor, "direction token neuron"]
    b: Float[Tensor, "token neuron"]
    rows: slice

    def uncapped(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Δ, KL and the bound where no cap bends the logits."""
        variance = self.variance().clamp_min_(0)
        M = self.farthest(self.sums.reach, self.moments.reach[self.rows])
        bound = (variance * M / (6 - 1.5 * M)).masked_fill_(~(M < 4), torch.inf)
        bound.addcmul_(self.b.square(), self.moments.square[0, self.rows], value=self.moments.rounding / 2)
        kl = variance.div_(2).log1p_()
        return self.linear() + kl, kl, bound

    def capped(self, cap: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return Δ, KL and the bound behind a cap."""
        b_square, m, rounding = self.b.square(), self.moments, self.moments.rounding
        M = self.farthest(self.sums.farthest, m.farthest)
        of_B = m.square[0, self.rows].clamp_min(0)
        square = self.square(0).clamp_min(0) + rounding * b_square * of_B  # E D²r², at most
        variance = self.variance().clamp_min_(0)
        size, grown = square.sqrt(), (2 / cap * M).exp_()
        steepness = (self.sums.farthest_T[self.rows, None] + M / cap).clamp_max_(1)
        S, Q = (variance + rounding * b_square * of_B).sqrt(), steepness * grown * (M / cap) * size
        M_x = self.farthest(self.sums.reach, m.reach[self.rows]) + 2 * STEEPEST / cap * M.square()
        bound = (S + Q).square() * M_x / (6 - 1.5 * M_x) + S * Q + Q.square() / 2
        bound += (2 / 3) / cap**2 * grown * M.square() * size
        bound += rounding * b_square * (of_B / 2 + of_B.sqrt() * m.farthest / cap)
        bound.masked_fill_(~(M_x < 4), torch.inf)
        kl = (variance / 2).log1p_()
        return self.linear() - self.square(1) - self.bend_at_target(cap) + kl, kl, bound

    def linear(self) -> Tensor:
        """Return E ℓ − ℓ_target."""
        out = self.b * self.moments.from_target[self.rows]
        for c, x in zip(self.along, self.sums.X_from_target, strict=True):
            out.addcmul_(c, x[self.rows, None])
        return out

    def square(self, weight: int) -> Tensor:
        """Return Σ w r²."""
        out = self.b.square() * self.moments.square[weight, self.rows]
        with_X, gram = self.moments.with_X[weight, :, self.rows], self.sums.gram[weight, :, :, self.rows]
        for k, c in enumerate(self.along):
            inner = 2 * self.b * with_X[k]
            for other, g in zip(self.along, gram[k], strict=True):
                inner.addcmul_(other, g[:, None])
            out.addcmul_(c, inner)
        return out

    def variance(self) -> Tensor:
        """Return Var ℓ = Σ p D²r² − (E ℓ)², coefficient by coefficient, since one large mean would hide the others."""
        mean = self.moments.mean[self.rows]
        out = torch.addcmul(self.moments.square[0, self.rows], mean, mean, value=-1).mul_(self.b.square())
        with_X, gram, mean_X = self.moments.with_X[0, :, self.rows], self.sums.gram[0], self.sums.mean_X[:, self.rows]
        for k, c in enumerate(self.along):
            inner = 2 * self.b * torch.addcmul(with_X[k], mean_X[k, :, None], mean, value=-1)
            for i, other in enumerate(self.along):
                covariance = gram[k, i, self.rows] - mean_X[k] * mean_X[i]
                inner.addcmul_(other, covariance[:, None])
            out.addcmul_(c, inner)
        return out

    def farthest(self, of_X: Tensor, of_B: Tensor) -> Tensor:
        """Return Σ_k |along_k| of_X_k + |b| of_B."""
        out = self.b.abs() * of_B
        for c, x in zip(self.along, of_X, strict=True):
            out.addcmul_(c.abs(), x[self.rows, None])
        return out

    def bend_at_target(self, cap: float) -> Tensor:
        """Return s_target = y_target − D_target r_target, by how much the cap bends the target's change."""
        r = self.b * self.moments.at_target[self.rows]
        for c, x in zip(self.along, self.sums.X_target, strict=True):
            r.addcmul_(c, x[self.rows, None])
        scaled = self.sums.scaled_target[self.rows, None]
        T = scaled.tanh()
        D = 1 - T.square()
        return change_from_tanh(r.clone(), scaled, T, D, cap) - D * r
