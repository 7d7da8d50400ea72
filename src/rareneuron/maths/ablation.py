r"""The change in loss when one neuron is ablated, for every neuron at once (Eq. 3-4).

Moving the residual stream along a row of W_out is a rank-one change: with A the logits per direction of the
normalised residual (`Readout.logits_per_direction`), G = A x̂ and B_i = A ŵ_i (^ centred as the norm centres),
the logits change by

    δ = a G + b B_i,    a = σ/σ′ − 1,  b = c/σ′,  σ′² = σ² + (2c x̄·ŵ_i + c²‖ŵ_i‖²)/d,

x̄ the centred residual and c the shift n̄ − n, so no forward pass is needed. With p = softmax(clean logits),

    Δ = log E_p[exp(δ)] − δ_target = κ₁ + KL,   κ₁ = E_p[δ] − δ_target,   KL(clean‖ablated) = log E_p[exp(δ − E_p δ)],

never as a difference of two losses, which in float32 would leave nothing below 1e-6 nats. κ₁ needs matrix products
of width d_model only. KL is expanded to second order in δ, where many pairs need it to third, with a certificate for
the remainder; pairs over the tolerance are summed over the vocabulary (`remainder`). docs/engine.md derives it. Exact
wherever the MLP output joins the residual stream unnormalised (`models.adapter` checks that). Oracles:
tests/oracles.py, the definition; `models.patching`, the model itself.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.readout import Readout
from rareneuron.maths.remainder import CleanToken, full_sum, taylor_remainder

Precision = Literal["fast", "exact", "reference"]

TOLERANCE = 3e-6  # nats per pair, bound on the error of KL; float32 recomputation of the losses errs by 1e-6 to 5e-6
TOKENS_PER_BLOCK = 128  # clean distributions held at once
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6}  # relative error of a sum of products of rounded factors
MANY = 0.005  # share of a block's pairs over the tolerance that is worth another matrix product for all of them
ELEMENTS_AT_ONCE = 2**24  # of B squared in float32: 64 MB


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
    full_share: float  # of pairs summed over the whole vocabulary


@dataclass(frozen=True, kw_only=True)
class CleanTokens:
    """A block of tokens as the clean model sees them; [token, ...] throughout."""

    p: Float[Tensor, "token vocab"]
    logp: Float[Tensor, "token vocab"]
    G: Float[Tensor, "token vocab"]  # A x̂ - E_p[A x̂]
    var_G: Float[Tensor, " token"]
    cube_G: Float[Tensor, " token"]  # E_p[G³]
    GA: Float[Tensor, "token d_model"]  # E_p[G A]: times ŵ_i, the covariance of G and B_i
    G2A: Float[Tensor, "token d_model"]  # E_p[G² A]
    mean_A: Float[Tensor, "token d_model"]  # E_p[A]: times ŵ_i, the mean of B_i
    from_target: Float[Tensor, "token d_model"]  # E_p[A] - A_target
    G_target: Float[Tensor, " token"]
    farthest_G: Float[Tensor, " token"]  # max |G|
    loss: Float[Tensor, " token"]


@dataclass(kw_only=True)
class Moments:
    """Means over the clean distribution that an expansion needs; [token, neuron] throughout."""

    from_target: Float[Tensor, "token neuron"]  # E_p[B_i] - B_i,target
    mean_B: Float[Tensor, "token neuron"]
    covariance: Float[Tensor, "token neuron"]  # of G and B_i
    squares: Float[Tensor, "token neuron"]  # E_p[B_i²]
    rounding: float  # relative error of `squares`
    third: tuple[Tensor, Tensor, Tensor] | None = None  # E_p[G² B̃], E_p[G B̃²], E_p[B̃³], B̃ centred; when needed


class AblationEngine:
    """The last layer's neurons and the readout, prepared once per checkpoint; then effects block by block.

    `fast` is float32 with a certified expansion; `exact` sums every pair over the vocabulary in float32;
    `reference` the same in float64. Memory: B in the dtype, and its square and cube in bfloat16 where the device
    multiplies that fast, all [neuron, vocab].
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
        self.tolerance, self.expands = tolerance, precision == "fast"
        self.dtype, self.readout = dtype, readout.to(dtype)
        # A constant over the vocabulary changes no probability; without it, sums over the vocabulary round less.
        A = self.readout.logits_per_direction
        self.A = A - A.mean(0)
        self.W_double = readout.centre(W_out.double())
        self.W = self.W_double.to(dtype)
        self.B = self.W @ self.A.T
        self.B_range = torch.stack([self.B.amin(1), self.B.amax(1)])
        self.product_dtype = fast_product_dtype(self.B.device) if precision == "fast" else dtype

    @cached_property
    def B_squared(self) -> Float[Tensor, "neuron vocab"]:
        """What the second order multiplies p with."""
        return self.B.square().to(self.product_dtype)

    @cached_property
    def B_cubed(self) -> Float[Tensor, "neuron vocab"]:
        """What the third order multiplies p with."""
        return (self.B.square() * self.B).to(self.product_dtype)

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
        n_full = 0
        for start in range(0, len(resid), TOKENS_PER_BLOCK):
            block = slice(start, start + TOKENS_PER_BLOCK)
            clean = self._clean(resid[block].to(self.dtype), target[block])
            moments = self._moments(clean) if self.expands else None
            total, frozen = self._change(resid[block].double(), shift[block].double())
            loss[block] = clean.loss
            delta[block], kl[block], n_total = self._ablate(clean, moments, target[block], *total)
            direct[block], _, n_frozen = self._ablate(clean, moments, target[block], None, frozen)
            n_full += n_total + n_frozen
        return AblationEffects(
            delta_loss=delta,
            direct_delta_loss=direct,
            kl=kl,
            loss=loss,
            full_share=n_full / max(1, 2 * shift.numel()),
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
            cube_G=(pG * G * G).sum(1),
            GA=pG @ self.A,
            G2A=(pG * G) @ self.A,
            mean_A=from_target + self.A[target],
            from_target=from_target,
            G_target=G.gather(1, at)[:, 0],
            farthest_G=G.abs().amax(1),
            loss=-logp.gather(1, at)[:, 0],
        )

    def _moments(self, clean: CleanTokens) -> Moments:
        return Moments(
            from_target=clean.from_target @ self.W.T,
            mean_B=clean.mean_A @ self.W.T,
            covariance=clean.GA @ self.W.T,
            squares=(clean.p.to(self.product_dtype) @ self.B_squared.T).to(self.dtype),
            rounding=ROUNDING[self.product_dtype],
        )

    def _sharpen(self, clean: CleanTokens, moments: Moments) -> None:
        """The squares again in float32, where bfloat16 alone would send too many pairs the long way."""
        rows = max(1, ELEMENTS_AT_ONCE // self.B.shape[1])
        moments.squares = torch.cat([clean.p @ part.square().T for part in self.B.split(rows)], dim=1)
        moments.rounding = ROUNDING[torch.float32]

    def _add_third(self, clean: CleanTokens, moments: Moments) -> None:
        """Third moments, two more products of the layer's width."""
        m, squares = moments.mean_B, moments.squares
        GB2 = ((clean.p * clean.G).to(self.product_dtype) @ self.B_squared.T).to(self.dtype)
        B3 = (clean.p.to(self.product_dtype) @ self.B_cubed.T).to(self.dtype)
        moments.third = (
            clean.G2A @ self.W.T - m * clean.var_G[:, None],
            GB2 - 2 * m * moments.covariance,
            B3 - m * (3 * squares - 2 * m.square()),
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
        self, clean: CleanTokens, moments: Moments | None, target: Tensor, a: Tensor | None, b: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Δ and KL of a block, and how many pairs took the full sum."""
        first = b * (clean.from_target @ self.W.T if moments is None else moments.from_target)
        if a is not None:
            first -= a * clean.G_target[:, None]
        if moments is None:
            kl, flagged = torch.empty_like(b), torch.ones_like(b, dtype=torch.bool)
        else:
            kl, flagged = self._expand(clean, moments, a, b)
        delta = first + kl
        for t in flagged.any(1).nonzero()[:, 0].tolist():
            chosen = flagged[t].nonzero()[:, 0]
            token = CleanToken(p=clean.p[t], logp=clean.logp[t], G=clean.G[t], target=int(target[t]))
            delta[t, chosen] = full_sum(token, self.B, chosen, None if a is None else a[t, chosen], b[t, chosen])
            kl[t, chosen] = delta[t, chosen] - first[t, chosen]
        return delta, kl, int(flagged.sum())

    def _expand(self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor) -> tuple[Tensor, Tensor]:
        """KL by the cheapest expansion that serves the block, and the pairs it leaves over the tolerance."""
        kl, remainder, rounding = self._second_order(clean, moments, a, b)
        if self._many(rounding) and moments.rounding > ROUNDING[torch.float32]:
            self._sharpen(clean, moments)
            kl, remainder, rounding = self._second_order(clean, moments, a, b)
        if self._many(remainder + rounding):
            if moments.third is None:
                self._add_third(clean, moments)
            kl, remainder, rounding = self._third_order(clean, moments, a, b)
        return kl, ~(remainder + rounding <= self.tolerance)  # also where a bound is not a number

    def _many(self, bound: Tensor) -> bool:
        return bool((bound > self.tolerance).float().mean() > MANY)

    def _second_order(
        self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log(1 + κ₂/2), the bound on what it leaves out, and that on what rounding adds."""
        variance = self._variance(clean, moments, a, b)
        rounding = moments.rounding / 2 * b.square() * moments.squares
        return (variance / 2).log1p(), variance / 2 * taylor_remainder(self._reach(clean, moments, a, b), 2), rounding

    def _third_order(
        self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log(1 + κ₂/2 + κ₃/6) and its two bounds; the sum is an expectation of at least 0 (Jensen)."""
        assert moments.third is not None
        G2B, GB2, B3 = moments.third
        variance, skew = self._variance(clean, moments, a, b), b**3 * B3
        largest = b.abs() * (self.B_range.abs().amax(0) / 3 + moments.mean_B.abs())
        if a is not None:
            skew += a * (a * (a * clean.cube_G[:, None] + 3 * b * G2B) + 3 * b.square() * GB2)
            largest += a.abs() * clean.farthest_G[:, None]
        weight = b.square() * moments.squares / 2
        rounding = weight * (moments.rounding + ROUNDING[self.product_dtype] * largest)
        remainder = variance / 2 * taylor_remainder(self._reach(clean, moments, a, b), 3)
        return (variance / 2 + skew / 6).clamp_min(0).log1p(), remainder, rounding

    def _variance(self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor) -> Tensor:
        """κ₂ of δ."""
        variance = b.square() * (moments.squares - moments.mean_B.square())
        if a is not None:
            variance += a * (a * clean.var_G[:, None] + 2 * b * moments.covariance)
        return variance.clamp_min_(0)

    def _reach(self, clean: CleanTokens, moments: Moments, a: Tensor | None, b: Tensor) -> Tensor:
        """M: δ is nowhere farther from its mean."""
        reach = b.abs() * torch.maximum(self.B_range[1] - moments.mean_B, moments.mean_B - self.B_range[0])
        return reach if a is None else reach + a.abs() * clean.farthest_G[:, None]


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
