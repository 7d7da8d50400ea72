r"""The change in loss when one neuron is ablated, for every neuron at once (Eq. 3-4).

Moving the residual stream along a row of W_out is a rank-one change: with A the logits per direction of the
normalised residual (`Readout.logits_per_direction`), G = A x̂ and B_i = A ŵ_i (^ centred as the norm centres),
the logits change by

    δ = a G + b B_i,    a = σ/σ′ − 1,  b = c/σ′,  σ′² = σ² + (2c x̄·ŵ_i + c²‖ŵ_i‖²)/d,

x̄ the centred residual and c the shift n̄ − n, so no forward pass is needed. With p = softmax(clean logits),

    Δ = log E_p[exp(δ)] − δ_target = κ₁ + KL,   κ₁ = E_p[δ] − δ_target,   KL(clean‖ablated) = log E_p[exp(δ − E_p δ)],

never as a difference of two losses, which in float32 would leave nothing below 1e-6 nats. κ₁ needs matrix products
of width d_model only. KL is expanded to second order in δ and, for neurons where that does not do, to fourth
(`expansion`), with a certificate; pairs over the tolerance are summed over the vocabulary (`full_sum`).
docs/engine.md derives it. Exact wherever the MLP output joins the residual stream unnormalised and logits are linear in
what the final norm gives (`models.adapter` checks that); `behind_norm` serves output norms and soft caps.
Oracles: tests/oracles.py, the definition; `models.patching`, the model itself.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.maths.behind_norm import BehindNormEngine
from rareneuron.maths.engine_blocks import Block, BlockEffects, EngineByBlocks
from rareneuron.maths.expansion import (
    PAIRS_AT_ONCE,
    ROUGHLY_AT_ONCE,
    ROUNDING,
    VOCAB_AT_ONCE,
    Change,
    CleanTokens,
    Expansion,
    Moments,
    higher_order,
    pieces,
    second_order,
    summed,
)
from rareneuron.maths.full_sum import full_sums
from rareneuron.maths.fused import compiling_pays, takes_compiled_sums
from rareneuron.maths.mechanism import FrequencySums, LogitChange, effect_parts
from rareneuron.maths.neuron_tables import NeuronTables
from rareneuron.maths.pair_effects import TOLERANCE, Precision
from rareneuron.maths.readout import Readout
from rareneuron.maths.table_memory import fast_product_dtype, neurons_that_fit, tokens_per_block

WORKSPACE = 5  # arrays [token, vocab] of a block: log p, p, G and weights of two sums
AS_MANY_AS = 20  # neurons: what an order costs, in those it serves, before it serves any


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Moments E_p[G^j B^k] that an order needs beyond those below it, as (j, k)."""

    full: tuple[tuple[int, int], ...]  # in the dtype of the computation
    low: tuple[tuple[int, int], ...]  # in that of fast products
    worth: tuple[float, float]  # share of tokens over the tolerance from which it pays: beside sums by torch, compiled


FOR_THIRD = Wanted(full=((0, 2),), low=((0, 3), (0, 4), (1, 2), (2, 1)), worth=(0.03, 0.3))
FOR_FOURTH = Wanted(full=((0, 3), (1, 2), (2, 1)), low=((1, 3), (2, 2), (3, 1)), worth=(0.06, 0.4))


class AblationEngine(EngineByBlocks):
    """The last layer's neurons and the readout, prepared once per checkpoint; then effects block by block.

    `fast` is float32 with a certified expansion; `exact` sums every pair over the vocabulary in float32;
    `reference` the same in float64. `memory` bounds, in bytes, what the engine holds beside the model and the results:
    A [vocab, d_model] and, for as many neurons at a time as fit, B and its square, [neuron, vocab]. `compiled` says
    whether full sums of `fast` take the loop that numba compiles; by default where it is installed and pays.
    With `log_frequency` (`mechanism.log_frequency`) effects are taken apart, too.
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
        if not readout.is_plain:
            raise ValueError(
                "This readout has an output norm or a soft cap; `ablation_engine` gives the engine for it."
            )
        dtype = torch.float64 if precision == "reference" else torch.float32
        self.tolerance, self.expands, self.dtype = tolerance, precision == "fast", dtype
        self.product_dtype = fast_product_dtype(W_out.device) if self.expands else dtype
        self.readout = readout
        written = readout.centre(W_out.double())
        self.written_square = written.square().sum(-1)
        vocab, d_model = readout.W_U.shape
        self.at_zero = readout.logits_at_zero(dtype)
        # A constant over the vocabulary changes no probability; without it, sums over the vocabulary round less.
        A = readout.logits_per_direction(dtype)
        A -= A.mean(0)
        super().__init__(
            written,
            A,
            squares=self.product_dtype if self.expands else None,
            neurons_at_once=neurons_that_fit(memory, vocab, d_model, len(W_out), dtype, self.product_dtype),
            block=tokens_per_block(vocab),
            copies=WORKSPACE,
            compiled=self.expands and takes_compiled_sums(len(readout.W_U), W_out.device, compiled),
        )
        if log_frequency is not None:
            self.take_apart(log_frequency)

    def _effects_of(self, block: Block, tables: NeuronTables) -> BlockEffects:
        clean = self._clean(block.resid.to(self.dtype), block.target)
        of_frequency = self._frequency_sums(clean, block.target) if block.apart else None
        changes = self._changes(tables, block.resid, block.shift)[: block.kinds]
        delta, kl, n_full = self._ablate(clean, tables, block.target, changes)
        parts = None
        if of_frequency is not None:
            of_logits = [LogitChange((c.a,), c.b) for c in changes]
            parts = effect_parts(of_frequency, tables.W, delta, kl, of_logits)
        return BlockEffects(loss=clean.loss, delta=delta, kl=kl[0], parts=parts, n_full=n_full)

    def _clean(self, resid: Tensor, target: Tensor) -> CleanTokens:
        """A block of tokens; its large arrays lie in the workspace, so the next block overwrites them."""
        logp, p, G, of_G, others = workspace = self._arrays(len(resid))
        at = target[:, None]
        centred = self.readout.centre(resid)
        torch.mm(centred / self.readout.sigma(centred)[:, None], self.A.T, out=G)
        torch.add(G, self.at_zero, out=logp)
        logp -= logp.amax(-1, keepdim=True)  # first, so that large logits don't round the probabilities
        total = torch.exp(logp, out=p).sum(-1, keepdim=True)
        p /= total
        logp -= total.log()
        G -= torch.mul(p, G, out=of_G).sum(-1, keepdim=True)
        torch.mul(p, G, out=of_G)
        # With the target's own term left out, nothing cancels where the target has nearly all probability.
        others.copy_(p).scatter_(1, at, 0.0)
        # In one product: as many rows again cost little more than half of two.
        GA, of_others = summed(workspace[3:].flatten(0, 1), self.A).unflatten(0, (2, -1))
        from_target = of_others - others.sum(1, keepdim=True) * self.A[target]
        powers = [of_G.mul_(G).sum(1) for _ in range(3)]
        return CleanTokens(
            p=p,
            logp=logp,
            G=G,
            G_powers=torch.stack([torch.ones_like(powers[0]), torch.zeros_like(powers[0]), *powers]),
            GA=GA,
            mean_A=from_target + self.A[target],
            from_target=from_target,
            G_target=G.gather(1, at)[:, 0],
            farthest_G=torch.maximum(G.amax(1), -G.amin(1)),
            loss=-logp.gather(1, at)[:, 0],
        )

    def _frequency_sums(self, clean: CleanTokens, target: Tensor) -> FrequencySums:
        """What a block of tokens knows of frequency; it takes that part of the workspace which `clean` leaves free."""
        assert self.frequency is not None
        free = self._arrays(len(clean.p))[3:]
        of_G = None if self.at_zero.any() else (clean.G_powers[[2]], clean.GA)
        means = torch.zeros_like(clean.loss)[None], clean.mean_A
        return self.frequency.sums(clean.p, clean.logp, clean.G[None], target, *means, of_G, free)

    def _changes(self, tables: NeuronTables, resid: Tensor, shift: Tensor) -> tuple[Change, ...]:
        """δ of every pair: with the norm's scale following, and with it frozen.

        σ is never subtracted from σ′; and in float64, since a neuron that cancels the residual makes σ′² a difference.
        """
        W, W_square = self.written[tables.neurons], self.written_square[tables.neurons]
        a, b, frozen = torch.empty(3, *shift.shape, dtype=self.dtype, device=shift.device)
        for rows in pieces(len(shift), max(1, 4 * PAIRS_AT_ONCE // len(W))):
            c, centred = shift[rows], self.readout.centre(resid[rows])
            sigma = self.readout.sigma(centred)[:, None]
            change = (2 * (centred @ W.T) + c * W_square).mul_(c / resid.shape[1])
            after = (sigma.square() + change).clamp_min(self.readout.eps).sqrt()  # ≥ eps but for rounding
            a[rows], b[rows], frozen[rows] = -change / (after * (sigma + after)), c / after, c / sigma
        return Change(a=a, b=b), Change(a=None, b=frozen)

    def _ablate(
        self, clean: CleanTokens, tables: NeuronTables, target: Tensor, changes: tuple[Change, ...]
    ) -> tuple[Tensor, Tensor, int]:
        """Δ and KL for each kind of change, and how many pairs took the full sum."""
        from_target, G_target = clean.from_target @ tables.W.T, clean.G_target[:, None]
        delta = torch.stack([c.b * from_target for c in changes])
        for d, c in zip(delta, changes, strict=True):
            if c.a is not None:
                d.addcmul_(c.a, G_target, value=-1)
        if self.expands:
            kl, flagged = self._expand(clean, tables, changes)
        else:
            kl, flagged = torch.zeros_like(delta), torch.ones_like(delta[0], dtype=torch.bool)
        pairs = flagged.nonzero()
        at = (slice(None), pairs[:, 0], pairs[:, 1])
        first = delta[at]
        delta += kl
        # Taken off before the sum, κ₁ leaves KL its digits; a large one would only round the sum, and stays in.
        origin = first.masked_fill(first.abs() > 1, 0)
        t, neuron = pairs.T
        b = torch.stack([c.b[t, neuron] for c in changes])
        along = torch.stack([torch.zeros_like(b[0]) if c.a is None else c.a[t, neuron] for c in changes])[:, None]
        farthest = clean.farthest_G[None], tables.farthest
        seen = clean.p, clean.logp, clean.G[None], tables.B, farthest, target
        rest = full_sums(*seen, pairs, along, b, origin, fast=self.expands, compiled=self.compiled)
        delta[at] = origin + rest
        kl[at] = rest - (first - origin)
        kl.clamp_min_(0)  # by as much as `first` is rounded it may come out below
        return delta, kl, len(pairs)

    def _expand(
        self, clean: CleanTokens, tables: NeuronTables, changes: tuple[Change, ...]
    ) -> tuple[Float[Tensor, "kind token neuron"], Bool[Tensor, "token neuron"]]:
        """KL for each kind of change by the cheapest expansion that serves a neuron, and the pairs left over."""
        moments = self._second_moments(clean, tables)
        found = [second_order(clean, moments, change) for change in changes]
        kl, flagged = torch.stack([f.kl for f in found]), self._over(found)
        neurons = torch.arange(flagged.shape[1], device=flagged.device)
        for order, wanted in ((3, FOR_THIRD), (4, FOR_FOURTH)):
            share = flagged[:, neurons].float().mean(0)
            worth = wanted.worth[self.compiled]
            heavy = (share > worth).nonzero()[:, 0]
            if share[heavy].sum() <= worth * (len(heavy) + AS_MANY_AS):
                break
            neurons = neurons[heavy]
            moments = moments.joined(self._moments(clean, tables, moments.reach[:, heavy], neurons, wanted), heavy)
            found = [higher_order(clean, moments, change.of(neurons), order) for change in changes]
            kl[:, :, neurons] = torch.stack([f.kl for f in found])
            flagged[:, neurons] = self._over(found)
        return kl, flagged

    def _over(self, found: list[Expansion]) -> Tensor:
        """Pairs of which any effect is over the tolerance, or has a bound that isn't a number."""
        return ~torch.stack([f.bound <= self.tolerance for f in found]).all(0)

    def _second_moments(self, clean: CleanTokens, tables: NeuronTables) -> Moments:
        assert tables.B_squared is not None
        mean = clean.mean_A @ tables.W.T
        low = clean.p.to(self.product_dtype)
        B2, part, in_low = torch.zeros_like(mean), torch.empty_like(mean), torch.empty_like(mean, dtype=low.dtype)
        size = ROUGHLY_AT_ONCE if low.dtype == torch.bfloat16 else VOCAB_AT_ONCE
        for piece in pieces(low.shape[1], size):
            B2 += part.copy_(torch.mm(low[:, piece], tables.B_squared[:, piece].T, out=in_low))
        return Moments(
            of={(0, 1): mean, (1, 1): clean.GA @ tables.W.T, (0, 2): B2},
            reach=torch.maximum(tables.highest - mean, mean - tables.lowest),
            rounding={2: ROUNDING[self.product_dtype]},
        )

    def _moments(
        self, clean: CleanTokens, tables: NeuronTables, reach: Tensor, neurons: Tensor, wanted: Wanted
    ) -> Moments:
        """E_p[G^j B^k] of some neurons, by pieces of the vocabulary."""
        shape = (len(clean.p), len(neurons))
        precise, rounded = ROUNDING[self.dtype], ROUNDING[self.product_dtype]
        # E B² is there already where fast products round no more than others.
        full = [jk for jk in wanted.full if jk != (0, 2) or rounded > precise]
        of = {jk: torch.zeros(shape, dtype=self.dtype, device=clean.p.device) for jk in (*full, *wanted.low)}
        n_powers = max(k for _, k in of)
        # Kept for all pieces, since fresh memory would be faulted in page by page each time.
        buffer = torch.empty(n_powers, len(neurons), VOCAB_AT_ONCE, dtype=self.dtype, device=clean.p.device)
        low_buffer = torch.empty_like(buffer[0], dtype=self.product_dtype)
        for piece in pieces(clean.p.shape[1]):
            powers, low = (x[..., : piece.stop - piece.start] for x in (buffer, low_buffer))
            torch.index_select(tables.B[:, piece], 0, neurons, out=powers[0])
            for k in range(1, n_powers):
                torch.mul(powers[k - 1], powers[0], out=powers[k])
            weights = [clean.p[:, piece]]
            for _ in range(max(j for j, _ in of)):
                weights.append(weights[-1] * clean.G[:, piece])
            for j, k in full:
                of[j, k] += weights[j] @ powers[k - 1].T  # addmm would round as one long sum does
            rough = {j: weights[j].to(self.product_dtype) for j, _ in wanted.low}
            for k in {k for _, k in wanted.low}:
                low.copy_(powers[k - 1])
                for j in (j for j, other in wanted.low if other == k):
                    of[j, k] += rough[j] @ low.T
        rounding = {2: precise, 3: precise if (0, 3) in wanted.full else rounded, 4: rounded}
        return Moments(of=of, reach=reach, rounding=rounding)


def ablation_engine(
    readout: Readout,
    W_out: Float[Tensor, "neuron d_model"],
    *,
    precision: Precision = "fast",
    memory: int = 4 * 2**30,
    compiled: bool | None = None,
    log_frequency: Float[Tensor, " vocab"] | None = None,
) -> "AblationEngine | BehindNormEngine":
    """Return the engine that serves a readout: neurons may act through an output norm, and logits be soft-capped.

    `compiled` and `log_frequency` are as for `AblationEngine`; behind a cap sums are torch's.
    """
    engine = AblationEngine if readout.is_plain else BehindNormEngine
    return engine(readout, W_out, precision=precision, memory=memory, compiled=compiled, log_frequency=log_frequency)


def delta_loss(
    readout: Readout,
    resid: Float[Tensor, "token d_model"],
    shift: Float[Tensor, "token neuron"],
    target: Int[Tensor, " token"],
    W_out: Float[Tensor, "neuron d_model"],
    *,
    frozen_norm: bool = False,
    precision: Precision = "fast",
    mlp_out: Float[Tensor, "token d_model"] | None = None,
) -> Float[Tensor, "token neuron"]:
    r"""Return the change in every token's loss when each neuron is ablated.

    $\Delta_{ti} = L(x_t + c_{ti} w_i) - L(x_t)$, w_i row i of `W_out` and L the loss of the target after `readout`.
    Positive: the ablation raises the loss, so the neuron boosts this target; negative: it suppresses it. Computed
    without a forward pass (docs/engine.md). Where the readout has an `output_norm`, the residual stream moves by what
    the norm makes of the MLP's output with and without c w_i.

    Args:
        readout: final norm and unembedding of the model.
        resid: last block's output x at each token, [token, d_model].
        shift: change c of each activation, [token, neuron]; n̄ − n for mean-ablation.
        target: id of the token that follows, [token].
        W_out: output weights of the layer's MLP, [neuron, d_model].
        frozen_norm: whether the final norm keeps its clean scale, which gives the direct effect.
        precision: `fast` errs by at most a few 1e-6 nats per pair, `exact` sums over the vocabulary in float32,
            `reference` does so in float64.
        mlp_out: the MLP's output before its norm, [token, d_model] (`Readout.mlp_output`); only where there is one.

    Returns:
        Δ in nats, [token, neuron], in float32, or in float64 for `reference`.

    Raises:
        InvalidConfig: the tables of a few neurons alone do not fit into 4 GiB.

    Source:
        App. 5.3.1, Eq. 3 and 4 of “Emergent Specialization: Rare Token Neurons in Language Models”.

    Example:
        Two tokens are equally likely, until a neuron that writes towards the second one is switched off:

        >>> import torch
        >>> import rareneuron as rn
        >>> readout = rn.Readout(norm="rms", weight=None, bias=None, eps=0.0, W_U=torch.eye(2))
        >>> resid, W_out = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
        >>> rn.delta_loss(readout, resid, torch.tensor([[-1.0]]), torch.tensor([1]), W_out)
        tensor([[0.9387]])
    """
    compiled = None if compiling_pays(shift.shape[0], len(W_out), len(readout.W_U)) else False
    engine = ablation_engine(readout, W_out, precision=precision, compiled=compiled)
    effects = engine.effects(resid, shift, target, direct=frozen_norm, mlp_out=mlp_out)
    return effects.delta_loss if effects.direct_delta_loss is None else effects.direct_delta_loss
