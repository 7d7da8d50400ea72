r"""The change in loss when one of very many groups is ablated, from some of the types of a large vocabulary.

With ℓ = D A (x̂′ − x̂) the change of logits to first order (D = 1 without a soft cap), c = E_p ℓ and y the change itself,

    Δ = c + log(1 + E_p[e^(y−c) − 1 − (ℓ − c)]) − y_target,

since E_p[ℓ − c] = 0. So c and y_target, which are most of Δ, come from the whole vocabulary, for all groups at the
price of one product with A for each token; and only what is left, half a variance where moves are small, is summed over
some types: the target and the likeliest of each token with their probabilities, and of the others as many again, one
for every equal part of their probability in the order of ids. Where what is left is large (`LARGEST`), the group is
summed over the whole vocabulary (`joint`), at its price. There is nothing random in it. What it can't see is one
improbable type that isn't the target and alone gains several nats; Cauchy and Schwarz bound that far too loosely to
tell. On the last layers of the embedded series and of SmolLM2, joint effects of groups of 50 come out within 7e-4 and
3e-4 of themselves (root mean square), and their excess over single effects within 0.5 % of its spread over groups.
Oracle: tests/maths/test_joint_sampled.py, the same sums over all types in float64.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.joint import JointAblation
from rareneuron.maths.softcap import change_from_tanh

LIKELIEST = 1_024  # types of a token
SPREAD = 1_024  # of its others
LARGEST = 0.5  # nats of KL beyond which the whole vocabulary is summed
TOKENS_AT_ONCE = 8  # whose probabilities are summed up in float64
SMALLEST = 2 * (LIKELIEST + SPREAD)  # vocabulary up to which all types are summed, which is fast enough


def types_summed(vocab: int) -> int:
    """Return over how many types of a vocabulary a group's effect is summed."""
    return vocab if vocab <= SMALLEST else LIKELIEST + SPREAD


def likeliest_and_spread(
    p: Float[Tensor, "token vocab"], target: Int[Tensor, " token"], n_likeliest: int, n_spread: int
) -> tuple[Int[Tensor, "token type"], Float[Tensor, "token type"]]:
    """Return types of each token and their weights: Σ weight · f(type) is E_p f, but for what the others spread.

    The target comes first, then the likeliest of the others.
    """
    first = target[:, None]
    likeliest = p.scatter(1, first, -1.0).topk(n_likeliest - 1, dim=1).indices
    ids = torch.cat([first, likeliest], 1)
    probability = p.gather(1, ids)
    others = p.double().scatter(1, ids, 0.0).cumsum(1)
    mass = others[:, -1:]
    middle = (torch.arange(n_spread, device=p.device) + 0.5) / n_spread
    spread = torch.searchsorted(others, mass * middle).clamp_max(p.shape[1] - 1)
    weight = (mass / n_spread).expand(-1, n_spread)
    return torch.cat([ids, spread], 1), torch.cat([probability.double(), weight], 1)


class SampledJointAblation:
    """Holds some tokens as the clean model sees them, and gives Δ for many movements of their residual stream.

    Memory: that of a `JointAblation` of the same tokens, [token, d_model], a copy of one token's rows of A, and for a
    moment three arrays [8, vocab] in float64.
    """

    def __init__(self, joint: JointAblation, *, n_likeliest: int = LIKELIEST, n_spread: int = SPREAD) -> None:
        self.joint, p = joint, joint.p
        tokens = zip(p.split(TOKENS_AT_ONCE), joint.target.split(TOKENS_AT_ONCE), strict=True)
        ids, weights = zip(*(likeliest_and_spread(*some, n_likeliest, n_spread) for some in tokens), strict=True)
        self.ids, self.weight = torch.cat(ids), torch.cat(weights).to(p)
        scaled = joint.scaled
        self.scaled = None if scaled is None else scaled.gather(1, self.ids)
        steep = p if scaled is None else p * (1 - scaled.tanh().square())
        self.mean_A = steep @ joint.A  # E_p[D A]

    def delta_loss(self, move: Float[Tensor, "group token d_model"]) -> Float[Tensor, "group token"]:
        """Return Δ in nats when each token's MLP output is moved by `move`; positive: the loss rises."""
        return torch.cat([self._of_token(t, move[:, [t]]) for t in range(move.shape[1])], 1)

    def _of_token(self, t: int, move: Float[Tensor, "group 1 d_model"]) -> Float[Tensor, "group 1"]:
        """Return Δ at one token."""
        joint = self.joint.part(slice(t, t + 1))
        change = joint.change(move)
        mean = change[:, 0] @ self.mean_A[t].double()
        rest = self._beyond_first_order(t, change[:, 0], mean)
        out = (mean + torch.log1p(rest))[:, None] - joint.delta_at(change, joint.target)
        large = ~(rest.abs() < LARGEST)  # or not a number
        out[large] = joint.delta_loss(move[large]).double()
        return out.to(joint.dtype)

    def _beyond_first_order(
        self, t: int, change: Float[Tensor, "group d_model"], mean: Float[Tensor, " group"]
    ) -> Float[Tensor, " group"]:
        """Return E_p[e^(y−c) − 1 − (ℓ − c)], summed over some types."""
        joint, c = self.joint, mean.to(self.joint.dtype)[:, None]
        linear = change.to(joint.dtype) @ joint.A[self.ids[t]].T
        if self.scaled is None or joint.readout.softcap is None:
            x = linear.sub_(c)
            return (torch.expm1(x).sub_(x) @ self.weight[t]).double()
        scaled = self.scaled[t]
        T = scaled.tanh()
        D = 1 - T.square()
        first = (linear * D).sub_(c)
        y = change_from_tanh(linear, scaled, T, D, joint.readout.softcap).sub_(c)
        return (y.expm1_().sub_(first) @ self.weight[t]).double()
