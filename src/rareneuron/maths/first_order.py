r"""The effect of replacing a unit to first order, and the curvature of the readout, from gradients at its output.

$D_{u,s} = \sum_{t \le s} (\bar z_u - z_{t,u}) \, ∂L_s/∂z_{t,u}$: what the loss at token s would change by if it were
linear in the unit's output z. Contracting in the same way with the gradient of a random readout of the logits gives S,
and the mean of S² over draws is the variance under p of the logits' first-order change, so that
$\hat K = \tfrac12 \overline{S^2}$ is the leading term of KL(clean || ablated), and D + K̂ the estimate of Δ.
Oracle: patching with the shift times ε, tests/models/test_gradient.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """What gradients say about every unit at some tokens, in nats."""

    delta_loss: Float[Tensor, "token unit"]  # D
    here: Float[Tensor, "token unit"]  # the part of D that the token's own position contributes
    size: Float[Tensor, "token unit"]  # Σ_t |summand of D|
    kl: Float[Tensor, "token unit"]  # K̂; zero where no sign was drawn
    move: Float[Tensor, "token unit"]  # the longest way that the unit's output moves the residual stream
    move_here: Float[Tensor, "token unit"]  # that way at the token itself

    @property
    def estimate(self) -> Float[Tensor, "token unit"]:
        """Return D + K̂."""
        return self.delta_loss + self.kl


def first_order(
    shift: Float[Tensor, "token position column"],
    grads: Float[Tensor, "pass token position column"],
    position: Int[Tensor, " token"],
    W_out: Float[Tensor, "column d_model"],
    width: int = 1,
) -> FirstOrder:
    """Contract shifts with gradients: the first pass is the loss's, the others are those of random readouts.

    A unit has `width` neighbouring columns. Sums are formed in the dtype of the shift.
    """
    rows = torch.arange(len(position), device=position.device)
    summands = by_unit(shift * grads[0], width)
    draws = [by_unit(shift * grad, width).sum(1) for grad in grads[1:]]
    return FirstOrder(
        delta_loss=summands.sum(1),
        here=summands[rows, position],
        size=summands.abs().sum(1),
        kl=torch.stack(draws).square().mean(0) / 2 if draws else torch.zeros_like(summands[:, 0]),
        move=(moved := moves(shift, W_out, width)).amax(1),
        move_here=moved[rows, position],
    )


def by_unit(values: Float[Tensor, "token position column"], width: int) -> Float[Tensor, "token position unit"]:
    """Add the columns of each unit."""
    return values if width == 1 else values.unflatten(-1, (-1, width)).sum(-1)


def moves(
    shift: Float[Tensor, "token position column"], W_out: Float[Tensor, "column d_model"], width: int
) -> Float[Tensor, "token position unit"]:
    """Return the length by which replacing a unit moves what its layer puts out at every position."""
    if width == 1:
        return shift.abs() * W_out.norm(dim=1).to(shift)
    blocks = W_out.to(shift).unflatten(0, (-1, width))  # [unit, width, d_model]
    gram = blocks @ blocks.mT
    of_unit = shift.unflatten(-1, (-1, width))
    return torch.einsum("tpuw,uwx,tpux->tpu", of_unit, gram, of_unit).clamp(min=0).sqrt()


# Sums over the tokens of a context, from which effects are formed and their errors predicted (`certificate`).
SUMS = ("absolute", "signed", "kl", "first_order", "size", "here", "size_squared", "first_order_squared")


def sums_of(found: FirstOrder) -> Mapping[str, Float[Tensor, "token unit"]]:
    """Return the summands of `SUMS` at every token, in float64."""
    D, K, A = found.delta_loss.double(), found.kl.double(), found.size.double()
    values = ((D + K).abs(), D + K, K, D.abs(), A, found.here.double().abs(), A.square(), D.square())
    return dict(zip(SUMS, values, strict=True))


class ContextTotals:
    """Sums over tokens of each context, for every unit, in float64 whatever the order in which tokens come."""

    def __init__(self, n_contexts: int, n_units: int) -> None:
        self.values = {name: np.zeros((n_contexts, n_units)) for name in SUMS}
        self.move = np.zeros((n_contexts, n_units))  # the longest of a context's tokens
        self.moved = np.zeros((n_contexts, n_units))  # Σ of the moves at tokens themselves
        self.n_tokens = np.zeros(n_contexts, np.int64)

    def add(self, found: FirstOrder, context: Int[np.ndarray, " token"]) -> None:
        """Add the tokens of a batch."""
        np.add.at(self.n_tokens, context, 1)
        for name, value in sums_of(found).items():
            np.add.at(self.values[name], context, value.cpu().numpy())
        np.add.at(self.moved, context, found.move_here.double().cpu().numpy())
        np.maximum.at(self.move, context, found.move.double().cpu().numpy())
