r"""The norm between an MLP's output and the residual stream, as data (Gemma-2, Gemma-3, OLMo-2).

Without it, changing neuron i by c moves the residual stream by c w_i. With it, the stream receives γ⊙m/τ, where
m = Σ n_i w_i + bias is the MLP's output and τ² = mean(m²) + ε. Then m′ = m + c w_i,

    τ′² = τ² + (2c m·w_i + c²‖w_i‖²)/d,    move = (τ/τ′ − 1) γ⊙m/τ + (c/τ′) γ⊙w_i,

two directions in place of one. τ/τ′ − 1 is formed as −(τ′² − τ²)/(τ′(τ + τ′)), so nothing cancels where c is small.
Oracle: `models.probes` compares the move with the model's own at every load.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rareneuron.shown import Shown


@dataclass(frozen=True)
class OutputNorm(Shown):
    """An RMSNorm through which an MLP's output reaches the residual stream.

    Args:
        weight: gain γ that really multiplies, [d_model]; Gemma stores γ − 1.
        eps: what is added to the mean square.
        bias: what the MLP's output projection adds to the neurons' output, [d_model]; None: nothing.
    """

    weight: Float[Tensor, " d_model"]
    eps: float
    bias: Float[Tensor, " d_model"] | None = None

    def __call__(self, mlp_out: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return what the residual stream receives, in the dtype of `mlp_out`."""
        return self.weight.to(mlp_out) * mlp_out / self.scale(mlp_out)[..., None]

    def scale(self, mlp_out: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """Return τ, by which the norm divides."""
        return (mlp_out.square().mean(-1) + self.eps).sqrt()

    def mlp_output(
        self, act: Float[Tensor, "token neuron"], W_out: Float[Tensor, "neuron d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """Return the MLP's output m before the norm, in float64, from the activations of all its neurons."""
        m = act.double() @ W_out.double()
        return m if self.bias is None else m + self.bias.double()

    def move(
        self, mlp_out: Float[Tensor, "token d_model"], change: Float[Tensor, "*group token d_model"]
    ) -> Float[Tensor, "*group token d_model"]:
        """Return how far the residual stream moves when the MLP's output changes by `change`, in float64."""
        m, change = mlp_out.double(), change.double()
        tau = self.scale(m)
        rise = (change * (2 * m + change)).mean(-1)
        after = (tau.square() + rise).clamp_min(self.eps).sqrt()
        shrink = -rise / (after * (tau + after))
        return self.weight.double() * (shrink[..., None] * (m / tau[:, None]) + change / after[..., None])

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "OutputNorm":
        """Return the same norm in another dtype or on another device."""
        bias = None if self.bias is None else self.bias.to(device=device, dtype=dtype)
        return replace(self, weight=self.weight.to(device=device, dtype=dtype), bias=bias)
