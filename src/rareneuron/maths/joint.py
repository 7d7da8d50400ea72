r"""The change in loss when a whole group of neurons is ablated at once, exactly.

The group moves the residual stream by $v = \sum_i c_i w_{out}^{(i)}$, one vector a token, so the clean distribution is
computed once and each group costs one product with the unembedding, several groups at a time, since a few tokens alone
would only wait for A to be read. With x̂ and x̂′ the normalised residual before and after, δ = A (x̂′ − x̂), a
difference of directions taken in float64, and Δ = log E_p[exp(δ)] − δ_target: not two losses. δ_target, one row of A,
stays in float64. exp(δ) − 1 takes half the time of expm1(δ), and errs by 6e-8 in float32, which averages out over the
vocabulary: so it is taken where logits change by more than that could spoil. Behind an output norm, the stream moves by
what the norm makes of v (`output_norm`); behind a soft cap, δ is the change of the capped logits (`softcap`).
Exact where the closed form is (`models.adapter` checks). Oracle: tests/maths/test_joint.py, two losses in float64.
"""

from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.readout import Readout
from rareneuron.maths.softcap import capped_change, soft_cap

ELEMENTS_AT_ONCE = 2**22  # group · token · vocab: 16 MB in float32
LARGE = 0.02  # nats by which logits change: beyond, what exp rounds is a few millionths of it
EVERY = 64  # types of the vocabulary of which one is looked at to see how much logits change


class JointAblation:
    """Holds some tokens as the clean model sees them, and gives Δ for any movement of their residual stream.

    Memory: A [vocab, d_model], two arrays [token, vocab] and one more of a few groups; time
    O(token · vocab · d_model) a group.
    """

    def __init__(
        self,
        readout: Readout,
        resid: Float[Tensor, "token d_model"],
        target: Int[Tensor, " token"],
        *,
        mlp_out: Float[Tensor, "token d_model"] | None = None,
        dtype: torch.dtype = torch.float32,
        A: Float[Tensor, "vocab d_model"] | None = None,
    ) -> None:
        if readout.output_norm is not None and mlp_out is None:
            raise ValueError("This readout has a norm behind the MLP, so `mlp_out` is needed (`Readout.mlp_output`).")
        self.readout, self.target, self.mlp_out, self.dtype = readout, target, mlp_out, dtype
        self.centred = readout.centre(resid.double())
        self.direction = self.centred / readout.sigma(self.centred)[:, None]
        self.A = readout.logits_per_direction(dtype) if A is None else A  # given where many tokens take turns
        logits = self.direction.to(dtype) @ self.A.T + readout.logits_at_zero(dtype).to(dtype)
        cap = readout.softcap
        self.scaled = None if cap is None else logits / cap
        self.logp = (logits if cap is None else soft_cap(logits, cap)).log_softmax(-1)
        self.p = self.logp.exp()

    def part(self, tokens: slice) -> "JointAblation":
        """Return the same for some of the tokens."""
        out = copy(self)
        for name in ("target", "mlp_out", "centred", "direction", "scaled", "logp", "p"):
            whole = getattr(self, name)
            setattr(out, name, None if whole is None else whole[tokens])
        return out

    def delta_loss(self, move: Float[Tensor, "*group token d_model"]) -> Float[Tensor, "*group token"]:
        """Return Δ in nats when each token's MLP output is moved by `move`; positive: the loss rises.

        Without an output norm that is how far the residual stream moves.
        Moves of several groups are taken a few at a time.
        """
        if move.ndim > 2:
            vocab = len(self.A)
            at_once = max(1, ELEMENTS_AT_ONCE // max(1, move.shape[-2] * vocab))
            parts = [self._delta_loss(part) for part in move.flatten(0, -3).split(at_once)]
            return torch.cat(parts).unflatten(0, move.shape[:-2])
        return self._delta_loss(move[None])[0]

    def delta_margin(
        self, move: Float[Tensor, "group token d_model"], other: Int[Tensor, " token"]
    ) -> Float[Tensor, "group token"]:
        """Return by how much log p of the target less that of another token changes: two logits, in float64."""
        change = self.change(move)
        return self.delta_at(change, self.target) - self.delta_at(change, other)

    def change(self, move: Float[Tensor, "group token d_model"]) -> Float[Tensor, "group token d_model"]:
        """Return x̂′ − x̂, in float64."""
        norm = self.readout.output_norm
        if norm is not None:
            assert self.mlp_out is not None
            move = norm.move(self.mlp_out, move)
        moved = self.centred + self.readout.centre(move.double())
        return moved / self.readout.sigma(moved)[..., None] - self.direction

    def delta_at(
        self, change: Float[Tensor, "group token d_model"], ids: Int[Tensor, " token"]
    ) -> Float[Tensor, "group token"]:
        """Return the change of one logit of each token, in float64."""
        delta = (change * self.A[ids]).sum(-1)
        if self.scaled is None or self.readout.softcap is None:
            return delta
        scaled = self.scaled.gather(1, ids[:, None])[:, 0].double()
        return capped_change(delta, scaled, self.readout.softcap)

    def _delta_loss(self, move: Float[Tensor, "group token d_model"]) -> Float[Tensor, "group token"]:
        change = self.change(move)
        at_target = self.delta_at(change, self.target)
        delta = self._delta(change, self.scaled)
        rise = growth(delta).mul_(self.p).sum(-1).double()  # in place: these arrays are the time and the memory
        # log1p keeps the digits of a small change; a large one may overflow there, and is a log-sum-exp
        out, large = torch.log1p(rise), ~(rise.abs() < 0.5)
        again = self._delta(change[large], None if self.scaled is None else self.scaled.expand_as(delta)[large])
        out[large] = (self.logp.expand_as(delta)[large] + again).logsumexp(-1).double()
        return (out - at_target).to(self.dtype)

    def _delta(
        self, change: Float[Tensor, "*rows d_model"], scaled: Float[Tensor, "*token vocab"] | None
    ) -> Float[Tensor, "*rows vocab"]:
        """Return the change of the logits; `scaled` are those before the cap, over the cap."""
        delta = change.to(self.dtype) @ self.A.T
        if scaled is None or self.readout.softcap is None:
            return delta
        return capped_change(delta, scaled, self.readout.softcap)


def growth(delta: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token vocab"]:
    """Return exp(δ) − 1 in place of δ, by expm1 where any token's logits change little."""
    size = delta[..., ::EVERY].square().mean(-1).sqrt()
    return delta.exp_().sub_(1) if (size > LARGE).all() else delta.expm1_()
