"""The end of a language model as data: final norm, then unembedding.

Seen from the last layer's neurons the rest of the network is this one function of the residual stream, which
is why their effects have a closed form (`ablation`). Oracle: the model's own logits, compared at every load
by `models.adapter`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.output_norm import OutputNorm
from rareneuron.maths.softcap import soft_cap
from rareneuron.shown import Shown


@dataclass(frozen=True)
class Readout(Shown):
    r"""The end of a language model: final norm, then unembedding, as data.

    logits(x) = scale · (γ ⊙ x̂ + β) W_Uᵀ + b_U, with x̂ = (x − mean x)/σ for `layer` and x̂ = x/σ for `rms`; σ² is the
    mean square of the centred (`layer`) or raw (`rms`) residual, plus `eps`. With a `softcap` κ, κ tanh(logits/κ) takes
    the logits' place. Called on a residual [token, d_model] it returns logits [token, vocab] in the dtype of its
    weights.

    Args:
        norm: `layer` (LayerNorm) or `rms` (RMSNorm).
        weight: gain γ that really multiplies x̂, [d_model]; Gemma stores γ − 1. None: no gain.
        bias: β, [d_model]; None: no bias.
        eps: what is added to the mean square.
        W_U: unembedding, [vocab, d_model].
        b_U: bias of the logits, [vocab]; None: no bias.
        scale: what multiplies the logits before `b_U`, as in Cohere's models.
        softcap: κ, beyond which no logit goes, as in Gemma-2; None: no cap.
        output_norm: the norm between the layer's MLP output and the residual stream, as in Gemma-2, Gemma-3 and OLMo-2;
            None: the output is added as it is. It isn't part of logits(x), but of how a neuron moves x.

    Source:
        LM(x) of Eq. 4 in App. 5.3.1 of “Emergent Specialization: Rare Token Neurons in Language Models”: "LayerNorm and
        decoding". At every load it is compared with the model's own logits.

    Example:
        >>> import torch
        >>> import rareneuron as rn
        >>> readout = rn.Readout(norm="rms", weight=None, bias=None, eps=0.0, W_U=torch.eye(2))
        >>> readout(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]])
    """

    norm: Literal["layer", "rms"]
    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float
    W_U: Float[Tensor, "vocab d_model"]
    b_U: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    output_norm: OutputNorm | None = None

    @property
    def is_plain(self) -> bool:
        """Whether neurons write to the residual stream as they are, and no cap bends the logits."""
        return self.softcap is None and self.output_norm is None

    def __call__(self, resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        """Return the logits of every token."""
        centred = self.centre(resid)
        return self.logits_of(centred / self.sigma(centred)[:, None])

    def logits_of(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        """Return the logits of every token from its normalised residual x̂."""
        if self.weight is not None:
            x = x * self.weight
        if self.bias is not None:
            x = x + self.bias
        logits = (self.scale * x) @ self.W_U.T
        if self.b_U is not None:
            logits = logits + self.b_U
        return logits if self.softcap is None else soft_cap(logits, self.softcap)

    def mlp_output(
        self, act: Float[Tensor, "token neuron"], W_out: Float[Tensor, "neuron d_model"]
    ) -> Float[Tensor, "token d_model"] | None:
        """Return the layer's MLP output before its norm, from all its activations; None where there is no such norm."""
        return None if self.output_norm is None else self.output_norm.mlp_output(act, W_out)

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Subtract what the norm subtracts before it scales: the mean over d_model, or nothing."""
        return x - x.mean(-1, keepdim=True) if self.norm == "layer" else x

    def sigma(self, centred: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """Return the norm's scale σ of each token."""
        return (centred.square().mean(-1) + self.eps).sqrt()

    def logits_per_direction(self, dtype: torch.dtype | None = None) -> Float[Tensor, "vocab d_model"]:
        """Return A = scale · W_U diag(γ), a new array: before the norm's bias the logits are A x̂."""
        A = self.W_U.to(dtype=dtype, copy=True)
        if self.weight is not None:
            A *= self.weight
        return A.mul_(self.scale)

    def logits_at_zero(self, dtype: torch.dtype | None = None) -> Float[Tensor, " vocab"]:
        """Return the logits that x̂ = 0 would give: scale · W_U β + b_U."""
        W_U = self.W_U.to(dtype)
        zero = W_U.new_zeros(len(W_U)) if self.bias is None else self.scale * (W_U @ self.bias.to(W_U))
        return zero if self.b_U is None else zero + self.b_U

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Readout":
        """Return the same readout in another dtype or on another device."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device=device, dtype=dtype)

        return replace(
            self,
            weight=moved(self.weight),
            bias=moved(self.bias),
            b_U=moved(self.b_U),
            W_U=self.W_U.to(device=device, dtype=dtype),
            output_norm=None if self.output_norm is None else self.output_norm.to(dtype, device),
        )


def token_loss(logits: Float[Tensor, "token vocab"], target: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Return the cross-entropy of each token's target in nats."""
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")
