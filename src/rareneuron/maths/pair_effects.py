"""What engines of the last layer return for each pair of token and neuron, and in which precisions they compute it."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rareneuron.maths.mechanism import EffectParts
from rareneuron.shown import Shown

Precision = Literal["fast", "exact", "reference"]

TOLERANCE = 5e-6  # nats per pair, bound on the error of KL; float32 recomputation of the losses errs by 5e-6 and more


@dataclass(frozen=True, kw_only=True)
class AblationEffects(Shown):
    """What ablating each neuron does to each token's prediction, in nats.

    Positive `delta_loss`: the ablation hurts this token, so the neuron boosts its target; negative: it suppresses
    it. `direct_delta_loss` is the same with the final norm's scale frozen at its clean value.
    """

    delta_loss: Float[Tensor, "token neuron"]  # L(ablated) - L(clean)
    direct_delta_loss: Float[Tensor, "token neuron"] | None  # None where it wasn't asked for
    kl: Float[Tensor, "token neuron"]  # KL(clean || ablated), total effect
    loss: Float[Tensor, " token"]  # clean
    full_share: float  # of pairs summed over the whole vocabulary
    parts: EffectParts | None = None  # where the frequency of types was given, and the direct effect was asked for
