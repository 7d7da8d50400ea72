"""How large a model is, from its config alone: no weights are read, and none downloaded."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from rareneuron.models.anatomy import anatomy
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.hub import model_folder
from rareneuron.models.loading import config_errors, parsed_config, read_config


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that decide what a study costs."""

    n_params: int
    n_backbone_params: int  # those multiplied at every position; embeddings left out
    vocab: int
    d_model: int
    d_mlp: int
    n_layers: int


def model_shape(checkpoint: Checkpoint) -> ModelShape:
    """Build the model without memory for its weights, and count."""
    folder = model_folder(checkpoint.source, checkpoint.revision, weights=False).folder
    read_config(folder)
    config = parsed_config(folder)
    with config_errors(folder), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parts = anatomy(model)
    embeddings = {id(model.get_input_embeddings().weight), id(parts.unembedding.weight)}
    n_neurons, d_model = parts.weights(-1).W_out.shape
    return ModelShape(
        n_params=sum(p.numel() for p in model.parameters()),
        n_backbone_params=sum(p.numel() for p in model.parameters() if id(p) not in embeddings),
        vocab=parts.unembedding.weight.shape[0],
        d_model=d_model,
        d_mlp=n_neurons,
        n_layers=len(parts.blocks),
    )
