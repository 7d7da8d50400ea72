r"""The change in loss when one neuron is ablated, behind an output norm, a soft cap, or both (Gemma-2, OLMo-2, …).

With an output norm (`output_norm`) a neuron moves the residual stream along two directions: its own, γ⊙w_i, and the
whole MLP's output. So the logits before the cap change by

    r = g G + h H + b B_i,   G = A x̂,  H = A û,  B_i = A ŵ_i,   û = γ⊙m/(τσ),  ŵ_i = γ⊙w_i  (centred as in `ablation`),
    h = (τ/τ′ − 1) σ/σ′,  b = c/(τ′σ′),  g = σ/σ′ − 1,

with σ′² from inner products; without an output norm h = 0 and b = c/σ′, as in `ablation`. A soft cap makes of r the
change y of capped logits (`softcap`). Then Δ = log E_p[e^y] − y_target, by a second-order expansion with a certificate
(`capped_expansion`), and over the tolerance by the full sum. docs/engine.md derives it.
Oracles: tests/oracles.py, the definition; `models.patching`, the model itself.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.capped_expansion import (
    Capped,
    CleanBlock,
    Expanded,
    NeuronMoments,
    TokenSums,
    expand,
    rows_of_weights,
    token_sums,
)
from rareneuron.maths.engine_blocks import Block, BlockEffects, EngineByBlocks
from rareneuron.maths.expansion import ROUGHLY_AT_ONCE, ROUNDING, VOCAB_AT_ONCE, pieces
from rareneuron.maths.full_sum import full_sums as uncapped_sums
from rareneuron.maths.fused import takes_compiled_sums
from rareneuron.maths.mechanism import FrequencySums, LogitChange, effect_parts
from rareneuron.maths.neuron_tables import NeuronTables
from rareneuron.maths.pair_effects import TOLERANCE, Precision
from rareneuron.maths.readout import Readout
from rareneuron.maths.softcap import change_from_tanh
from rareneuron.maths.table_memory import best_layout, fast_product_dtype

ELEMENTS_AT_ONCE = 2**20  # pair · vocab in a full sum: 4 MB in float32, what a core's cache holds
UNDERFLOW = 50.0  # nats: e^50 · p is still nothing where p underflowed in float32


@dataclass(frozen=True, kw_only=True)
class Directions:
    """What the change of a block of pairs is made of: r = Σ_k along_k X_k + b B_i, X = (G, H), by kind of effect."""

    along: Float[Tensor, "kind direction token neuron"]
    b: Float[Tensor, "kind token neuron"]


class BehindNormEngine(EngineByBlocks):
    """Prepares a layer's neurons behind an output norm or a soft cap; gives effects as `AblationEngine` does.

    `effects` needs the MLP's output m at each token (`Readout.mlp_output`) where the readout has an output norm.
    """

    def __init__(
        self,
        readout: Readout,
        W_out: Float[Tensor, "neuron d_model"],
        *,
        precision: Precision = "fast",
        tolerance: float = TOLERANCE,
        memory: int = 4 * 2**30,
        compiled: bool | None = None,
        log_frequency: Float[Tensor, " vocab"] | None = None,
    ) -> None:
        dtype = torch.float64 if precision == "reference" else torch.float32
        self.tolerance, self.expands, self.dtype = tolerance, precision == "fast", dtype
        self.product_dtype = fast_product_dtype(W_out.device) if self.expands else dtype
        self.readout, self.norm, self.cap = readout, readout.output_norm, readout.softcap
        wish = compiled if self.expands and self.cap is None else False
        self.W = W_out.double()
        self.W_square = self.W.square().sum(-1)
        gain = 1.0 if self.norm is None else self.norm.weight.double()
        written = readout.centre(self.W * gain)
        self.written_square = written.square().sum(-1)
        vocab, d_model = readout.W_U.shape
        copies = block_copies(output_norm=self.norm is not None, capped=self.cap is not None)
        layout = best_layout(memory, vocab, d_model, len(W_out), dtype, self.product_dtype, copies)
        self.at_zero = readout.logits_at_zero(dtype)
        A = readout.logits_per_direction(dtype)
        if self.cap is None:  # a constant over the vocabulary changes no probability, unless a cap bends it
            A -= A.mean(0)
        super().__init__(
            written,
            A,
            squares=self.product_dtype if self.expands and layout.holds_squares else None,
            neurons_at_once=layout.neurons,
            block=layout.tokens,
            copies=copies,
            compiled=takes_compiled_sums(len(readout.W_U), W_out.device, wish),
        )
        if log_frequency is not None:
            self.take_apart(log_frequency)

    def _effects_of(self, block: Block, tables: NeuronTables) -> BlockEffects:
        if self.norm is not None and block.mlp_out is None:
            raise ValueError("This readout has a norm behind the MLP, so `mlp_out` is needed (`Readout.mlp_output`).")
        tokens = self._tokens(block.resid, block.mlp_out)
        clean, sums = self._clean(tokens, block.target)
        of_frequency = self._frequency_sums(clean, sums, block.target) if block.apart else None
        change = self._change(tokens, tables.neurons, block.shift, block.kinds)
        delta, kl, n_full = self._ablate(clean, sums, tables, block.target, change)
        parts = None
        if of_frequency is not None:
            parts = parts_behind_norm(of_frequency, sums, tables.W, delta, kl, change)
        return BlockEffects(loss=sums.loss, delta=delta, kl=kl, parts=parts, n_full=n_full)

    def _tokens(self, resid: Tensor, mlp_out: Tensor | None) -> "Residuals":
        centred = self.readout.centre(resid)
        sigma = self.readout.sigma(centred)
        if self.norm is None:
            return Residuals(x=centred, sigma=sigma, u=None, m=None, tau=None)
        assert mlp_out is not None
        u = self.readout.centre(self.norm(mlp_out))
        return Residuals(x=centred, sigma=sigma, u=u, m=mlp_out, tau=self.norm.scale(mlp_out))

    def _change(self, tokens: "Residuals", neurons: slice, shift: Tensor, kinds: int) -> Directions:
        """The change of every pair, in float64: with the final norm's scale following, and with it frozen.

        No scale is subtracted from another; a neuron that cancels the residual still makes σ′² a difference.
        """
        V, V_square = self.written[neurons], self.written_square[neurons]
        x, u, sigma = tokens.x, tokens.u, tokens.sigma[:, None]
        d_model = x.shape[1]
        n_directions = 1 if u is None else 2
        along = torch.zeros(kinds, n_directions, *shift.shape, dtype=self.dtype, device=shift.device)
        b = torch.empty(kinds, *shift.shape, dtype=self.dtype, device=shift.device)
        beta, shrink = shift, None
        change = 2 * (x @ V.T)
        if u is not None:
            assert self.norm is not None
            assert tokens.m is not None
            assert tokens.tau is not None
            tau = tokens.tau[:, None]
            rise = shift * (2 * (tokens.m @ self.W[neurons].T) + shift * self.W_square[neurons]) / d_model
            tau_after = (tau.square() + rise).clamp_min(self.norm.eps).sqrt()
            shrink, beta = -rise / (tau_after * (tau + tau_after)), shift / tau_after
            change += 2 * shrink * (u @ V.T)
        change = beta * (change + beta * V_square)
        if u is not None:
            assert shrink is not None
            change += shrink * (2 * (x * u).sum(-1, keepdim=True) + shrink * u.square().sum(-1, keepdim=True))
        change /= d_model
        after = (sigma.square() + change).clamp_min(self.readout.eps).sqrt()  # ≥ eps but for rounding
        along[0, 0], b[0] = -change / (after * (sigma + after)), beta / after
        if shrink is not None:
            along[0, 1] = shrink * sigma / after
        if kinds == 2:
            b[1] = beta / sigma
            if shrink is not None:
                along[1, 1] = shrink
        return Directions(along=along, b=b)

    def _clean(self, tokens: "Residuals", target: Tensor) -> tuple[CleanBlock, TokenSums]:
        """A block of tokens; its large arrays lie in the workspace, so the next block overwrites them."""
        directions = torch.stack([v for v in (tokens.x, tokens.u) if v is not None]) / tokens.sigma[:, None]
        K, n, vocab = len(directions), len(tokens.x), len(self.A)
        workspace = self._arrays(n)
        logp, p, X, rows = workspace[0], workspace[1], workspace[2 : 2 + K], workspace[2 + K :]
        torch.mm(directions.flatten(0, 1).to(self.dtype), self.A.T, out=X.view(K * n, vocab))
        capped = None
        if self.cap is None:
            torch.add(X[0], self.at_zero, out=logp)
        else:
            capped, rows = Capped(cap=self.cap, scaled=rows[0], T=rows[1], D=rows[2]), rows[3:]
            torch.add(X[0], self.at_zero, out=capped.scaled).div_(self.cap)
            torch.tanh(capped.scaled, out=capped.T)
            torch.mul(capped.T, capped.T, out=capped.D).neg_().add_(1)
            torch.mul(capped.T, self.cap, out=logp)
        logp -= logp.amax(-1, keepdim=True)  # first, so that large logits don't round the probabilities
        total = torch.exp(logp, out=p).sum(-1, keepdim=True)
        p /= total
        logp -= total.log()
        if self.cap is None:
            for x in X:
                x -= torch.mul(p, x, out=rows[0]).sum(-1, keepdim=True)
        block = CleanBlock(p=p, logp=logp, X=X, capped=capped)
        return block, token_sums(block, target, rows, self.A)

    def _frequency_sums(self, clean: CleanBlock, sums: TokenSums, target: Tensor) -> FrequencySums:
        """What a block of tokens knows of frequency; it takes that part of the workspace which `clean` leaves free."""
        assert self.frequency is not None
        D, K = None if clean.capped is None else clean.capped.D, len(clean.X)
        first = 2 + K + (0 if D is None else 3)  # weights of squares lie in the last rows
        free = self._arrays(len(clean.p))[first:]
        of_G = (sums.gram[0, 0], sums.XA[0, 0]) if D is None and not self.at_zero.any() else None
        known = sums.mean_X, sums.mean_A, of_G
        return self.frequency.sums(clean.p, clean.logp, clean.X, target, *known, free, D)

    def _ablate(
        self, clean: CleanBlock, sums: TokenSums, tables: NeuronTables, target: Tensor, change: Directions
    ) -> tuple[Tensor, Tensor, int]:
        """Δ for each kind of change, KL for the first, and how many pairs took the full sum."""
        if self.expands:
            moments = self._moments(sums, tables)
            found = [expand(sums, moments, a, b, self.cap) for a, b in zip(change.along, change.b, strict=True)]
            delta = torch.stack([f.delta for f in found])
            kl, flagged = found[0].kl, self._over(found)
        else:
            delta, kl = torch.empty_like(change.b), torch.empty_like(change.b[0])
            flagged = torch.ones_like(kl, dtype=torch.bool)
        pairs = flagged.nonzero()
        if self.expands and self.cap is None:
            self._sum_uncapped(clean, sums, tables, target, moments.from_target, pairs, change, delta, kl)
        else:
            full_sums(clean, sums.farthest, tables, target, pairs, change, delta, kl, fast=self.expands)
        return delta, kl, len(pairs)

    def _sum_uncapped(
        self,
        clean: CleanBlock,
        sums: TokenSums,
        tables: NeuronTables,
        target: Tensor,
        from_target: Tensor,
        pairs: Tensor,
        change: Directions,
        delta: Tensor,
        kl: Tensor,
    ) -> None:
        """Write Δ and KL of some pairs, summed as those of a plain readout are."""
        t, neuron = pairs.T
        along, b = change.along[:, :, t, neuron], change.b[:, t, neuron]
        first = b * from_target[t, neuron] + (along * sums.X_from_target[:, t]).sum(1)
        # As in `ablation`: κ₁ apart leaves KL its digits, unless it is large.
        origin = first.masked_fill(first.abs() > 1, 0)
        seen = clean.p, clean.logp, clean.X, tables.B, (sums.farthest, tables.farthest), target
        rest = uncapped_sums(*seen, pairs, along, b, origin, fast=True, compiled=self.compiled)
        delta[:, t, neuron] = origin + rest
        kl[t, neuron] = (rest[0] - (first[0] - origin[0])).clamp_min(0)

    def _over(self, found: list[Expanded]) -> Tensor:
        """Pairs of which any effect is over the tolerance, or has a bound that isn't a number."""
        return ~torch.stack([f.bound <= self.tolerance for f in found]).all(0)

    def _moments(self, sums: TokenSums, tables: NeuronTables) -> NeuronMoments:
        """Return what the expansion needs of every pair: sums over the vocabulary, as products of two widths."""
        mean = sums.mean_A @ tables.W.T
        low, high = tables.lowest, tables.highest
        if self.cap is not None:  # D B_i lies between these, whatever D
            low, high = low.clamp_max(0), high.clamp_min(0)
        return NeuronMoments(
            mean=mean,
            from_target=sums.from_target @ tables.W.T,
            at_target=sums.A_target @ tables.W.T,
            square=self._squares(sums.weights, tables),
            with_X=sums.XA @ tables.W.T,
            reach=torch.maximum(high - mean, mean - low),
            farthest=tables.farthest,
            rounding=ROUNDING[self.product_dtype],
        )

    def _squares(self, weights: tuple[Tensor, ...], tables: NeuronTables) -> Float[Tensor, "weight token neuron"]:
        """Σ_v w_tv B²_iv for each weight, in the dtype of fast products, by pieces of the vocabulary."""
        low = torch.cat([w.to(self.product_dtype) for w in weights])
        out = torch.zeros(len(low), len(tables.B), dtype=self.dtype, device=low.device)
        part, in_low = torch.empty_like(out), torch.empty_like(out, dtype=low.dtype)
        size = ROUGHLY_AT_ONCE if low.dtype == torch.bfloat16 else VOCAB_AT_ONCE
        # Kept for all pieces, since fresh memory would be faulted in page by page each time.
        buffer = torch.empty(
            len(tables.B) if tables.B_squared is None else 0, size, dtype=self.dtype, device=low.device
        )
        for piece in pieces(low.shape[1], size):
            if tables.B_squared is None:
                B = tables.B[:, piece]
                squared = torch.mul(B, B, out=buffer[:, : B.shape[1]]).to(low.dtype)
            else:
                squared = tables.B_squared[:, piece]
            out += part.copy_(torch.mm(low[:, piece], squared.T, out=in_low))
        return out.unflatten(0, (len(weights), -1))


def parts_behind_norm(
    of_frequency: FrequencySums,
    sums: TokenSums,
    W: Float[Tensor, "neuron d_model"],
    delta: Float[Tensor, "kind token neuron"],
    kl: Float[Tensor, "token neuron"],
    change: Directions,
) -> Float[Tensor, "part token neuron"]:
    """Take the effects of a block apart; the direct effect's KL is what it has beyond its first order."""
    linear = change.b[1] * (sums.from_target @ W.T)
    for c, x in zip(change.along[1], sums.X_from_target, strict=True):
        linear.addcmul_(c, x[:, None])
    both_kl = torch.stack([kl, (delta[1] - linear).clamp_min_(0)])
    changes = [LogitChange(tuple(along), b) for along, b in zip(change.along, change.b, strict=True)]
    return effect_parts(of_frequency, W, delta, both_kl, changes)


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """A block of tokens in float64: residual stream, and the MLP's output before and behind its norm."""

    x: Float[Tensor, "token d_model"]  # centred
    sigma: Float[Tensor, " token"]
    u: Float[Tensor, "token d_model"] | None  # γ⊙m/τ, centred; None without an output norm
    m: Float[Tensor, "token d_model"] | None
    tau: Float[Tensor, " token"] | None


def block_copies(*, output_norm: bool, capped: bool) -> int:
    """Return how many arrays [token, vocab] a block takes: p and log p, X, what the cap needs, and weights."""
    K = 2 if output_norm else 1
    return 2 + K + (3 if capped else 0) + rows_of_weights(K, capped=capped)


def full_sums(
    clean: CleanBlock,
    farthest_X: Float[Tensor, "direction token"],
    tables: NeuronTables,
    target: Int[Tensor, " token"],
    pairs: Int[Tensor, "pair 2"],
    change: Directions,
    delta: Float[Tensor, "kind token neuron"],
    kl: Float[Tensor, "token neuron"],
    *,
    fast: bool,
) -> None:
    """Write Δ of some pairs, in the order of tokens, and KL of their total effect, by sums over the vocabulary.

    With y the change of the logits, Δ = E_p[y − y_target] + KL and KL = log E_p[e^x], x = y − E_p y, by log1p and expm1
    so that a small one keeps its digits; `fast` allows an error of 1e-7 nats and takes the plain exponential. Where
    e^x may overflow or bring back a type whose p underflowed, the log-sum-exp is taken.
    """
    rows = max(1, ELEMENTS_AT_ONCE // len(clean.p[0]))
    farthest_B, capped = tables.farthest, clean.capped
    counts = torch.bincount(pairs[:, 0], minlength=len(clean.p)).tolist()
    for t, of_token in enumerate(pairs[:, 1].split(counts)):
        for neurons in of_token.split(rows):
            B = tables.B[neurons]
            for kind in range(len(delta)):
                along, b = change.along[kind, :, t, neurons], change.b[kind, t, neurons]
                y = (along.T @ clean.X[:, t]).addcmul_(B, b[:, None])
                if capped is not None:
                    y = change_from_tanh(y, capped.scaled[t], capped.T[t], capped.D[t], capped.cap)
                y -= y[:, target[t], None].clone()
                mean = (y * clean.p[t]).sum(-1)  # pairwise; a product of matrices would add term by term
                reach = 2 * ((along.abs() * farthest_X[:, t, None]).sum(0) + b.abs() * farthest_B[neurons])
                of_x = log_mean_exp(y.sub_(mean[:, None]), clean.p[t], clean.logp[t], reach, fast=fast)
                delta[kind, t, neurons] = mean + of_x
                if kind == 0:
                    kl[t, neurons] = of_x.clamp_min(0)  # by as much as it is rounded it may come out below


def log_mean_exp(x: Tensor, p: Tensor, logp: Tensor, reach: Tensor, *, fast: bool) -> Tensor:
    """Return log E_p[e^x] of each row; `x` is overwritten, `reach` is max |x| at most."""
    far = reach > UNDERFLOW
    if far.any():
        return (x + logp).logsumexp(-1)
    if fast:
        return x.exp_().mul_(p).sum(-1).log()
    return x.expm1_().mul_(p).sum(-1).log1p()
