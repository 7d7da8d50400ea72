"""Tiny random models: two blocks, d_model 16, every weight drawn large enough that effects are plain to see."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rareneuron.models.adapter import Adapter, adapt
from rareneuron.models.families import FAMILIES

VOCAB, D_MODEL, D_MLP, POSITIONS = 23, 16, 24, 12
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tiny_model(model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A random model of a family. Matrices are drawn at 1.5/√width, gains around 1, biases at 0.3."""
    family = FAMILIES[model_type]
    torch.manual_seed(seed)
    defaults = AutoConfig.for_model(model_type)
    common = {
        name: value for name, value in COMMON.items() if hasattr(defaults, name) or name in type(defaults).attribute_map
    }
    config = AutoConfig.for_model(model_type, **common | dict(family.tiny) | overrides)
    options = {} if family.attention is None else {"attn_implementation": family.attention}
    model = AutoModelForCausalLM.from_config(config, **options).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(dtype)
            if weight.ndim == 2:
                weight.copy_(1.5 * noise / D_MODEL**0.5)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1 - family.gain_offset + 0.2 * noise)
    return model


def tiny_tokenizer(n_ids: int = VOCAB) -> PreTrainedTokenizerFast:
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, n_ids)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


@dataclass(frozen=True)
class Tiny:
    adapter: Adapter
    windows: np.ndarray  # [context, position]
    tokens: tuple[np.ndarray, np.ndarray]  # every position that has a target

    @property
    def target(self) -> torch.Tensor:
        context, position = self.tokens
        return torch.from_numpy(self.windows[context, position + 1])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain nothing on matrices this small, and cost this suite sevenfold where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    def build(model_type: str, **overrides: Any) -> Tiny:
        windows = np.random.default_rng(1).integers(3, VOCAB, size=(3, 6))
        context, position = np.nonzero(np.ones((3, 5), bool))
        return Tiny(adapt(tiny_model(model_type, **overrides), tiny_tokenizer()), windows, (context, position))

    return build


@pytest.fixture
def in_float64(monkeypatch):
    """Let norms and softmax compute in float64: transformers' casts to float32 hide what tends to zero."""
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: softmax(x, dim=dim))

    def patch(model):
        for module in model.modules():
            name = type(module).__name__
            if name == "OlmoLayerNorm":
                module.forward = lambda x: nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
            elif name.endswith("RMSNorm"):
                eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
                gain = module.weight + (1.0 if name.startswith("Gemma") else 0.0)
                module.forward = lambda x, gain=gain, eps=eps: (
                    x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain
                )

    return patch
