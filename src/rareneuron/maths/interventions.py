"""What an ablation puts in place of an activation, as a shift of it (Eq. 3).

x̃ = x + shift · w_out, with shift = replacement − activation. The paper replaces by the mean over a reference
set; zero and resampling are the field's other two choices, for comparison.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def mean_shift(
    act: Float[Tensor, "token neuron"], mean_act: Float[Tensor, "*#token neuron"]
) -> Float[Tensor, "token neuron"]:
    """Return the shift of mean ablation, n̄ − n; n̄ is the mean over the reference set, for all tokens or for each."""
    return mean_act - act


def zero_shift(act: Float[Tensor, "token neuron"]) -> Float[Tensor, "token neuron"]:
    """Return the shift of zero ablation, 0 − n."""
    return -act


def resample_shift(act: Float[Tensor, "token neuron"], rng: np.random.Generator) -> Float[Tensor, "token neuron"]:
    """Return the shift of resampling: neurons take their activations from another token, by one permutation for all."""
    order = torch.from_numpy(rng.permutation(len(act))).to(act.device)
    return act[order] - act
