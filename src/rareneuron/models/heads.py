"""The unembedding that a folder's files hold is the one that is used, whatever its config says of ties.

A config may say that the unembedding is the embedding (`tie_word_embeddings`) while the files hold one of its own that
differs, as after untied fine-tuning. Some versions of transformers (4.54 to 4.57) tie the two all the same, and another
model is studied, without a word.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rareneuron.models.loading import read_header

OLD_NAMES = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}  # GPT-NeoX, renamed in 5


def use_stored_head(model: Any, folder: Path) -> str | None:
    """Give a model the unembedding of its files where the config ties it to the embedding and they differ.

    Returns what was done, in words; None where files and config agree.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    if name is None or not getattr(model.config, "tie_word_embeddings", False):
        return None
    stored = stored_weight(folder, f"{name}.weight")
    if stored is None:
        return None
    title, weight = stored
    weight = weight.to(head.weight.dtype)
    is_embedding = head.weight is model.get_input_embeddings().weight
    if torch.equal(weight, head.weight.detach()):
        if is_embedding:
            return None
    else:
        head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False  # so that nothing ties them later
    return f"{title} of the weight files, which differs from the embedding, though config.json says that they are one"


def stored_weight(folder: Path, name: str) -> tuple[str, Tensor] | None:
    """Return a weight of a folder by its name, or the name it had before, and the name it has; None if not stored."""
    header = read_header(folder)
    title = next((title for title in (name, OLD_NAMES.get(name)) if title in header.shapes), None)
    if title is None:
        return None
    for file in header.files:
        with safe_open(file, "pt") as tensors:
            if title in tensors.keys():  # noqa: SIM118 - not a dict
                return title, tensors.get_tensor(title)
    return None
