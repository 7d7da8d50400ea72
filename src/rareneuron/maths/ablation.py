r"""The change in loss when one neuron is ablated, for every neuron at once (Eq. 3-4).

Moving the residual stream along a row of W_out is a rank-one change: with A the logits per direction of the
normalised residual (`Readout.logits_per_direction`), G = A x̂ and B_i = A ŵ_i (^ centred as the norm centres),
the logits change by

    δ = a G + b B_i,    a = σ/σ′ − 1,  b = c/σ′,  σ′² = σ² + (2c x̄·ŵ_i + c²‖ŵ_i‖²)/d,

x̄ the centred residual and c the shift n̄ − n, so no forward pass is needed. With p = softmax(clean logits),

    Δ = log E_p[exp(δ)] − δ_target = κ₁ + KL,   κ₁ = E_p[δ] − δ_target,   KL(clean‖ablated) = log E_p[exp(δ − E_p δ)],

never as a difference of two losses, which in float32 would leave nothing below 1e-6 nats. κ₁ needs matrix products
of width d_model only. KL is half the variance of δ plus a remainder with a certificate; pairs over the tolerance
are summed exactly (`remainder`). Exact wherever the MLP output joins the residual stream unnormalised
(`models.adapter` checks that). Oracles: tests/oracles.py, the definition; `models.patching`, the model itself.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.readout import Readout
from rareneuron.maths.remainder import CleanToken, exact, exact_head, taylor_remainder

Precision = Literal["fast", "exact", "reference"]

TOLERANCE = 3e-6  # nats per pair, bound on the error of KL; float32 recomputation of the losses errs by 1e-6 to 5e-6
TOKENS_PER_BLOCK = 128  # clean distributions held at once
BFLOAT16_SQUARE = 2.0**-8  # relative error of a product of two bfloat16 roundings, 2⁻⁹ each
FLOAT32_SQUARE = 1e-6  # the same in float32, with what a long sum adds
MANY = 0.01  # share of pairs that bfloat16 may send the long way before squares are computed in float32
SQUARED_ELEMENTS = 2**24  # of B squared at a time then: 64 MB


@dataclass(frozen=True, kw_only=True)
class AblationEffects:
    """What ablating each neuron does to each token's prediction, in nats.

    Positive `delta_loss`: the ablation hurts this token, so the neuron boosts its target; negative: it suppresses
    it. `direct_delta_loss` is the same with the final norm's scale frozen at its clean value.
    """

    delta_loss: Float[Tensor, "token neuron"]  # L(ablated) - L(clean)
    direct_delta_loss: Float[Tensor, "token neuron"]
    kl: Float[Tensor, "token neuron"]  # KL(clean || ablated), total effect
    loss: Float[Tensor, " token"]  # clean
    exact_share: tuple[float, float]  # of pairs summed over the head, and over the whole vocabulary


@dataclass(frozen=True, kw_only=True)
class CleanTokens:
    """A block of tokens as the clean model sees them; [token, ...] throughout."""

    p: Float[Tensor, "token vocab"]
    logp: Float[Tensor, "token vocab"]
    G: Float[Tensor, "token vocab"]  # A x̂ - E_p[A x̂]
    var_G: Float[Tensor, " token"]
    GA: Float[Tensor, "token d_model"]  # E_p[G A]: times ŵ_i, the covariance of G and B_i
    mean_A: Float[Tensor, "token d_model"]  # E_p[A]: times ŵ_i, the mean of B_i
    from_target: Float[Tensor, "token d_model"]  # E_p[A] - A_target
    G_target: Float[Tensor, " token"]
    farthest_G: Float[Tensor, " token"]  # max |G|
    loss: Float[Tensor, " token"]


@dataclass(kw_only=True)
class Moments:
    """Means over the clean distribution that the first two orders need; [token, neuron] throughout."""

    from_target: Float[Tensor, "token neuron"]  # E_p[B_i] - B_i,target
    mean_B: Float[Tensor, "token neuron"]
    covariance: Float[Tensor, "token neuron"]  # of G and B_i
    squares: Float[Tensor, "token neuron"]  # E_p[B_i²]
    rounding: float  # relative error of `squares`

    def sharpen(self, p: Float[Tensor, "token vocab"], B: Float[Tensor, "neuron vocab"]) -> None:
        """Compute the squares again in full precision, where bfloat16 would send too many pairs the long way."""
        rows = max(1, SQUARED_ELEMENTS // B.shape[1])
        self.squares = torch.cat([p @ part.square().T for part in B.split(rows)], dim=1)
        self.rounding = FLOAT32_SQUARE


class AblationEngine:
    """The last layer's neurons and the readout, prepared once per checkpoint; then effects block by block.

    `fast` is float32 with certified second order; `exact` sums every pair over the vocabulary in float32;
    `reference` the same in float64. Memory: B in the dtype, and its square in bfloat16 where the device
    multiplies that fast, both [neuron, vocab].
    """

    def __init__(
        self,
        readout: Readout,
        W_out: Float[Tensor, "neuron d_model"],
        *,
        precision: Precision = "fast",
        tolerance: float = TOLERANCE,
    ) -> None:
        dtype = torch.float64 if precision == "reference" else torch.float32
        self.tolerance = tolerance if precision == "fast" else None
        self.dtype, self.readout = dtype, readout.to(dtype)
        # A constant over the vocabulary changes no probability; without it, sums over the vocabulary round less.
        A = readout.to(torch.float64).logits_per_direction
        self.A = (A - A.mean(0)).to(dtype)
        self.W_double = readout.centre(W_out.double())
        self.W = self.W_double.to(dtype)
        self.B = self.W @ self.A.T
        self.B_range = torch.stack([self.B.amin(1), self.B.amax(1)])
        # Only the second order needs squares.
        self.square_dtype = fast_product_dtype(self.B.device) if precision == "fast" else dtype
        self.B_squared = (self.B if precision == "fast" else self.B[:, :0]).square().to(self.square_dtype)

    def effects(
        self,
        resid: Float[Tensor, "token d_model"],
        shift: Float[Tensor, "token neuron"],
        target: Int[Tensor, " token"],
    ) -> AblationEffects:
        """Total and direct Δ and KL of every (token, neuron) pair."""
        shape = shift.shape
        delta, direct, kl = (torch.empty(shape, dtype=self.dtype, device=shift.device) for _ in range(3))
        loss = torch.empty(len(resid), dtype=self.dtype, device=shift.device)
        n_head = n_full = 0
        for start in range(0, len(resid), TOKENS_PER_BLOCK):
            block = slice(start, start + TOKENS_PER_BLOCK)
            clean = self._clean(resid[block].to(self.dtype), target[block])
            moments = self._moments(clean)
            total, frozen = self._change(resid[block].double(), shift[block].double())
            loss[block] = clean.loss
            delta[block], kl[block], counts = self._ablate(clean, moments, target[block], *total)
            direct[block], _, more = self._ablate(clean, moments, target[block], None, frozen)
            n_head, n_full = n_head + counts[0] + more[0], n_full + counts[1] + more[1]
        pairs = max(1, 2 * shift.numel())
        return AblationEffects(
            delta_loss=delta, direct_delta_loss=direct, kl=kl, loss=loss, exact_share=(n_head / pairs, n_full / pairs)
        )

    def _clean(self, resid: Tensor, target: Tensor) -> CleanTokens:
        centred = self.readout.centre(resid)
        logp = self.readout(resid).log_softmax(-1)
        p, at = logp.exp(), target[:, None]
        G = (centred / self.readout.sigma(centred)[:, None]) @ self.A.T
        G -= (p * G).sum(-1, keepdim=True)
        pG = p * G
        # With the target's own term left out, nothing cancels where the target has nearly all probability.
        others = p.scatter(1, at, 0.0)
        from_target = others @ self.A - others.sum(1, keepdim=True) * self.A[target]
        return CleanTokens(
            p=p,
            logp=logp,
            G=G,
            var_G=(pG * G).sum(1),
            GA=pG @ self.A,
            mean_A=from_target + self.A[target],
            from_target=from_target,
            G_target=G.gather(1, at)[:, 0],
            farthest_G=G.abs().amax(1),
            loss=-logp.gather(1, at)[:, 0],
        )

    def _moments(self, clean: CleanTokens) -> Moments:
        p = clean.p[:, : self.B_squared.shape[1]].to(self.square_dtype)
        return Moments(
            from_target=clean.from_target @ self.W.T,
            mean_B=clean.mean_A @ self.W.T,
            covariance=clean.GA @ self.W.T,
            squares=(p @ self.B_squared.T).to(self.dtype),
            rounding=BFLOAT16_SQUARE if self.square_dtype == torch.bfloat16 else FLOAT32_SQUARE,
        )

    def _change(self, resid: Tensor, shift: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(a, b) of every pair, and b for the frozen norm, whose a is zero.

        σ is never subtracted from σ′; and in float64, since a neuron that cancels the residual makes σ′² a difference.
        """
        centred = self.readout.centre(resid)
        sigma = self.readout.sigma(centred)[:, None]
        change = shift * (2 * (centred @ self.W_double.T) + shift * self.W_double.square().sum(-1)) / resid.shape[1]
        after = (sigma.square() + change).clamp_min(self.readout.eps).sqrt()  # ≥ eps exactly; rounding may disagree
        a, b, frozen = -change / (after * (sigma + after)), shift / after, shift / sigma
        return (a.to(self.dtype), b.to(self.dtype)), frozen.to(self.dtype)

    def _ablate(
        self, clean: CleanTokens, moments: Moments, target: Tensor, a: Tensor | None, b: Tensor
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Δ and KL of a block, and how many pairs took the head and the full sum."""
        first = b * moments.from_target
        if a is not None:
            first -= a * clean.G_target[:, None]
        if self.tolerance is None:
            delta, every = torch.empty_like(b), torch.arange(b.shape[1], device=b.device)
            for t in range(len(b)):
                delta[t] = exact(self._token(clean, target, t), self.B, every, None if a is None else a[t], b[t])
            return delta, delta - first, (0, b.numel())
        variance, reach, rounding = self._second_order(clean, moments, a, b)
        if self.square_dtype == torch.bfloat16 and (rounding > self.tolerance / 2).float().mean() > MANY:
            moments.sharpen(clean.p, self.B)
            variance, reach, rounding = self._second_order(clean, moments, a, b)
        kl = torch.log1p(variance / 2)
        delta = first + kl
        flagged = ~(variance / 2 * taylor_remainder(reach) + rounding <= self.tolerance)  # also where it is NaN
        n_head = n_full = 0
        for t in flagged.any(1).nonzero()[:, 0].tolist():
            chosen, token = flagged[t].nonzero()[:, 0], self._token(clean, target, t)
            at, bt = None if a is None else a[t, chosen], b[t, chosen]
            head_kl, bound = exact_head(
                token, self.B, chosen, at, bt, moments.mean_B[t, chosen], variance[t, chosen], self.B_range[:, chosen]
            )
            kl[t, chosen], delta[t, chosen] = head_kl, first[t, chosen] + head_kl
            left = ~(bound + rounding[t, chosen] <= self.tolerance)
            n_head, n_full = n_head + len(chosen), n_full + int(left.sum())
            if left.any():
                at, rest = None if at is None else at[left], chosen[left]
                delta[t, rest] = exact(token, self.B, rest, at, bt[left])
                kl[t, rest] = delta[t, rest] - first[t, rest]
        return delta, kl, (n_head, n_full)

    def _second_order(
        self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """κ₂; M, the farthest that δ lies from its mean; and the error that products in low precision leave in κ₂/2."""
        variance = b.square() * (moments.squares - moments.mean_B.square())
        reach = b.abs() * torch.maximum(self.B_range[1] - moments.mean_B, moments.mean_B - self.B_range[0])
        if a is not None:
            variance += a * (a * clean.var_G[:, None] + 2 * b * moments.covariance)
            reach += a.abs() * clean.farthest_G[:, None]
        return variance.clamp_min_(0), reach, moments.rounding / 2 * b.square() * moments.squares

    def _token(self, clean: CleanTokens, target: Tensor, t: int) -> CleanToken:
        return CleanToken(p=clean.p[t], logp=clean.logp[t], G=clean.G[t], target=int(target[t]))


def fast_product_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where the device has instructions for it; elsewhere it would be emulated, slower than float32."""
    if device.type != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


def delta_loss(
    readout: Readout,
    resid: Float[Tensor, "token d_model"],
    shift: Float[Tensor, "token neuron"],
    target: Int[Tensor, " token"],
    W_out: Float[Tensor, "neuron d_model"],
    *,
    frozen_norm: bool = False,
    precision: Precision = "fast",
) -> Float[Tensor, "token neuron"]:
    r"""$\Delta_{ti} = L(x_t + c_{ti}\, w_{out}^{(i)}) - L(x_t)$ in nats, for every token and neuron (Eq. 3).

    `resid` is the last block's output, `shift` c = n̄ − n, `target` the id of the next token, row i of `W_out`
    neuron i. Positive: the ablation raises the loss. `frozen_norm` keeps the final norm's scale at its clean
    value (the direct effect). `fast` errs by at most a few 1e-6 nats per pair (`docs/engine.md`), `exact` sums
    over the vocabulary in float32, `reference` in float64. The result has the dtype of the computation.
    """
    effects = AblationEngine(readout, W_out, precision=precision).effects(resid, shift, target)
    return effects.direct_delta_loss if frozen_norm else effects.delta_loss
