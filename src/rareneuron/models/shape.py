"""How large a model is, from its config alone: no weights are read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rareneuron.models.anatomy import anatomy
from rareneuron.models.loading import config_errors, parsed_config, read_config


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that decide what a study costs."""

    n_params: int
    n_backbone_params: int  # those multiplied at every position; embeddings left out
    vocab: int
    d_model: int
    d_mlp: int  # neurons of the layer that was asked for
    n_layers: int
    output_norm: bool = False  # whether a norm stands between MLP output and residual stream
    capped: bool = False  # whether logits are soft-capped

    @property
    def is_plain(self) -> bool:
        """Whether the readout is a final norm and an unembedding alone."""
        return not (self.output_norm or self.capped)


def model_shape(folder: Path, layer: int = -1) -> ModelShape:
    """Build the model on torch's meta device, which takes no memory for weights, and count.

    `folder` holds config.json; `layer` is the one whose neurons are counted.
    """
    read_config(folder)
    config = parsed_config(folder)
    with config_errors(folder), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parts = anatomy(model)
    return ModelShape(
        n_params=sum(p.numel() for p in model.parameters()),
        n_backbone_params=parts.n_backbone_params,
        vocab=parts.unembedding.weight.shape[0],
        d_model=parts.d_model,
        d_mlp=len(parts.weights(layer).W_out),
        n_layers=len(parts.blocks),
        output_norm=parts.family.mlp_norm is not None,
        capped=parts.softcap is not None,
    )
