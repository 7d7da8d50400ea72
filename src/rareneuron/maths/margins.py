r"""How much more likely the original of two words is, and how that changes when whole groups of neurons are ablated.

Behind the last layer one forward pass serves any number of groups: a group moves the residual stream by
$\sum_i c_i w_{out}^{(i)}$, and at the place of the word both words are predicted from the same state, so the change of
their margin $\log p(o) - \log p(s)$ is that of two logits, without a sum over the vocabulary. What follows the word is
read from two states, one behind either word, and costs a readout of each token and group.
Domain: `joint`. Oracle: tests/maths/test_margins.py, by running the model with hooks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.joint import JointAblation
from rareneuron.maths.readout import Readout

ROWS_AT_ONCE = 128  # whose distributions are in memory
GROUPS_AT_ONCE = 32  # whose moves are in memory


@dataclass(frozen=True, kw_only=True)
class States:
    """Places of some contexts as the clean model sees them, and the token that each predicts."""

    resid: Float[Tensor, "row d_model"]  # before the final norm
    act: Float[Tensor, "row neuron"]
    target: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.target)

    def part(self, rows: slice) -> "States":
        """Return some of the rows."""
        return States(resid=self.resid[rows], act=self.act[rows], target=self.target[rows])


class AblatedReadout:
    """The end of a model, whose neurons are replaced group by group by `value` at the places of some `States`."""

    def __init__(
        self, readout: Readout, W_out: Float[Tensor, "neuron d_model"], value: Float[Tensor, " neuron"]
    ) -> None:
        self.readout, self.W_out, self.value = readout, W_out, value.double().to(W_out.device)
        self.rows = W_out.double()

    def clean_logp(self, states: States) -> Float[np.ndarray, " row"]:
        """Return log p of the target of each row, in nats."""
        parts = [joint.logp.gather(1, joint.target[:, None])[:, 0].double() for _, joint in self.blocks(states)]
        return torch.cat(parts).cpu().numpy()

    def clean_margin(self, states: States, other: Int[Tensor, " row"]) -> Float[np.ndarray, " row"]:
        """Return log p of the target less that of another token, in nats."""
        parts = []
        for rows, joint in self.blocks(states):
            both = torch.stack([joint.target, other[rows]], 1)
            of = joint.logp.gather(1, both).double()
            parts.append(of[:, 0] - of[:, 1])
        return torch.cat(parts).cpu().numpy()

    def logp_changes(self, states: States, groups: Int[np.ndarray, "group member"]) -> Float[np.ndarray, "group row"]:
        """Return how log p of each target changes without each group; one readout a row and group."""
        out = np.zeros((len(groups), len(states)))
        for rows, joint in self.blocks(states):
            for some, move in self.moves(states.part(rows), groups):
                out[some, rows] = -joint.delta_loss(move).double().cpu().numpy()
        return out

    def margin_changes(
        self, states: States, other: Int[Tensor, " row"], groups: Int[np.ndarray, "group member"]
    ) -> Float[np.ndarray, "group row"]:
        """Return how log p of the target less that of another token changes without each group: two logits each."""
        out = np.zeros((len(groups), len(states)))
        for rows, joint in self.blocks(states):
            for some, move in self.moves(states.part(rows), groups):
                out[some, rows] = joint.delta_margin(move, other[rows]).cpu().numpy()
        return out

    def blocks(self, states: States) -> Iterator[tuple[slice, JointAblation]]:
        """Yield the rows a few at a time, with their distributions."""
        for start in range(0, len(states), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(states)))
            part = states.part(rows)
            mlp_out = self.readout.mlp_output(part.act, self.W_out)
            yield rows, JointAblation(self.readout, part.resid, part.target, mlp_out=mlp_out)

    def moves(
        self, states: States, groups: Int[np.ndarray, "group member"]
    ) -> Iterator[tuple[slice, Float[Tensor, "group row d_model"]]]:
        """Yield how far each group moves each row, a few groups at a time."""
        shift = self.value - states.act.double()
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = slice(start, min(start + GROUPS_AT_ONCE, len(groups)))
            members = torch.from_numpy(groups[some]).to(shift.device)
            yield some, torch.stack([shift[:, i] @ self.rows[i] for i in members])
