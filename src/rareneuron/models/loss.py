"""The mean loss of a model on windows of text: what says whether a checkpoint is as good as its step promises."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def mean_loss(
    model: Any,
    windows: Int[np.ndarray, "context position"] | Int[Tensor, "context position"],
    contexts_per_batch: int = 4,
) -> float:
    """Mean loss of the next token over all positions but the first of each window, in nats per token.

    Logits are taken to float32 and summed in float64. The model is in evaluation mode meanwhile and then as before.
    """
    was_training, total = model.training, 0.0
    model.eval()
    ids = torch.as_tensor(windows).to(model.device, torch.long)
    for batch in ids.split(contexts_per_batch):
        with torch.inference_mode():
            logp = model(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            total -= float(logp.gather(-1, batch[:, 1:, None]).double().sum())
    model.train(was_training)
    return total / ids[:, 1:].numel()
