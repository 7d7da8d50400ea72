"""A model in memory as plain weights of its own: whatever wraps it, and however its modules keep their numbers.

Wrappers are opened down to the transformers model. Then a model of the same config is filled: with the tensors of
modules that are as transformers makes them, and with what other modules *do*, where they stand for linear maps or
embeddings: f(0) is the bias and f(I) − f(0) the weight, whether adapters, quantised integers or something else are
behind it. A probe compares f of random sums with sums, so what isn't linear is refused; and in the end the copy's
logits are compared with the model's, so that nothing else is studied than what was given. The model, its mode, its
hooks and the random numbers of its process stay as they are. Oracle: tests/models/test_memory.py.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rareneuron.cache import kept_folder
from rareneuron.errors import UnfitTokenizer, UnsupportedModel
from rareneuron.models.anatomy import family_of
from rareneuron.models.gguf import ORIGIN, without_chatter
from rareneuron.models.loading import sha256_of_weights
from rareneuron.models.tokenizers import refuse_other_ids

DEEPEST = 8  # wrappers around one model
IDS = (2, 8)  # contexts and positions of the last check
ROWS = 1024  # of an identity matrix or of ids that go through a module at a time
# Largest difference over largest value: rounding of float32 sums, and of half precision, which the copy hasn't.
GAPS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
MOST_SAID = 200  # characters of another library's complaint
FORM = "copied from a model in memory"


def opened(model: Any) -> PreTrainedModel:
    """Return the transformers model inside wrappers; refuses what isn't one."""
    found = model
    for _ in range(DEEPEST):
        inner = held(found, "_orig_mod")  # torch.compile, which passes for what it holds
        if inner is None and isinstance(found, PreTrainedModel):
            return found
        if inner is None and callable(getattr(found, "get_base_model", None)) and hasattr(found, "peft_config"):
            refuse_prompts(found)
            inner = found.get_base_model()  # with its adapters inside
        refuse_edits(found)
        # DDP and DataParallel; TransformerLens' bridge; nnsight, and before its version 0.5
        inner = inner if inner is not None else held(found, "module", "original_model", "_module", "_model")
        if inner is None:
            break
        found = inner
    raise UnsupportedModel(
        f"A {type(model).__name__} is no transformers model, and no wrapper that is known to hold one (PEFT, DDP, "
        "DataParallel, torch.compile, TransformerLens' bridge, nnsight), so it isn't clear what it computes. Give the "
        "`PreTrainedModel` itself, or the folder that `save_pretrained` wrote."
    )


def held(wrapper: Any, *names: str) -> Any | None:
    """Return what an object holds itself under one of the names; None where it holds nothing so named."""
    own = getattr(wrapper, "__dict__", {})
    places = (own, own.get("_modules", {}))
    return next((place[name] for name in names for place in places if name in place), None)


def refuse_prompts(model: Any) -> None:
    """Refuse adapters that put vectors before the text: the model inside hasn't got them."""
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModel(
                f"The adapter {name!r} ({getattr(config, 'peft_type', 'of prompts')}) puts learned vectors before the "
                "text, which no weights of the model hold. Only adapters inside linear maps can be studied, such as "
                "LoRA."
            )


def refuse_edits(wrapper: Any) -> None:
    """Refuse interventions that nnsight keeps and repeats in every trace: the model inside hasn't got them."""
    if held(wrapper, "_edits", "_default_mediators"):
        raise UnsupportedModel(
            f"This {type(wrapper).__name__} has edits that it repeats in every trace, which no weights of the model "
            "hold, so without them it would be another model. Remove them (`clear_edits()`), or write what they do "
            "into the weights."
        )


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of plain float32 weights (float64 where the model has them) on the CPU that computes the same."""
    config = copy.deepcopy(model.config)
    family = family_of(config.to_dict())
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    options = {} if family.attention is None else {"attn_implementation": family.attention}
    with left_alone(model):
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **options)
        weights: dict[str, Tensor] = {}
        for path, module in plain.named_modules():
            if module._parameters:
                weights |= {f"{path}.{name}": w.to(dtype) for name, w in weights_of(model, path, module).items()}
        copied = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **options).eval()
        if getattr(config, "tie_word_embeddings", False) and differs(weights, plain):
            raise UnsupportedModel(
                "The model's config ties unembedding and embedding, and the two differ, as with an adapter on one of "
                "them, so a copy would be another model. Set `config.tie_word_embeddings = False`, if that is meant."
            )
        unfit = copied.load_state_dict(weights, strict=False)
        left_out = [name for name in unfit.missing_keys if name in dict(copied.named_parameters())]
        assert not left_out, f"no module gave {left_out}"
        refuse_other_logits(model, copied)
    return copied


def differs(weights: dict[str, Tensor], plain: PreTrainedModel) -> bool:
    """Return whether embedding and unembedding, which the config ties, were read as different numbers."""
    paths = {id(module): path for path, module in plain.named_modules()}
    ends = [plain.get_input_embeddings(), plain.get_output_embeddings()]
    first, second = (weights.get(f"{paths[id(end)]}.weight") for end in ends)
    return first is not None and second is not None and not torch.equal(first, second)


def weights_of(model: PreTrainedModel, path: str, wanted: nn.Module) -> dict[str, Tensor]:
    """Return the weights that a module of the model must have in a plain model, on the CPU."""
    try:
        module: Any = model.get_submodule(path)
    except AttributeError as error:
        raise unreadable(path, "isn't there", wanted) from error
    module = getattr(module, "original_component", module)  # of TransformerLens' bridge
    shapes = {name: tuple(weight.shape) for name, weight in wanted._parameters.items() if weight is not None}
    held = {name: gathered(weight.detach()) for name, weight in module._parameters.items() if weight is not None}
    plain = type(module) is type(wanted) and {name: tuple(w.shape) for name, w in held.items()} == shapes
    if plain and all(type(w) is Tensor and w.is_floating_point() and not w.is_meta for w in held.values()):
        return {name: weight.cpu().clone() for name, weight in held.items()}
    if any(weight.is_meta for weight in module.parameters()):
        raise unreadable(path, "has its weights offloaded", wanted)
    found = what_it_does(module, path, wanted)
    if {name: tuple(weight.shape) for name, weight in found.items()} != shapes:
        raise unreadable(path, f"is a {type(module).__name__} of other width, or with a bias of its own", wanted)
    return found


def gathered(weight: Tensor) -> Tensor:
    """Return a whole weight where it is spread over processes (FSDP, tensor parallelism); others as they are."""
    whole = getattr(weight, "full_tensor", None)
    return whole() if callable(whole) else weight


def what_it_does(module: Any, path: str, wanted: nn.Module) -> dict[str, Tensor]:
    """Return weights read from what a module computes, where that is a linear map or looks vectors up."""
    try:
        if isinstance(wanted, nn.Linear | Conv1D):
            return read_linear(module, path, wanted)
        if isinstance(wanted, nn.Embedding):
            return {"weight": read_rows(module, wanted.num_embeddings)}
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        said = " ".join(str(error).split())[:MOST_SAID]
        raise unreadable(path, f"({type(module).__name__}) fails by itself ({said})", wanted) from error
    raise unreadable(path, f"is a {type(module).__name__}", wanted)


def unreadable(path: str, what: str, wanted: nn.Module) -> UnsupportedModel:
    """Return the error for a module whose weights can't be had."""
    return UnsupportedModel(
        f"`{path}` of this model {what}, where {type(wanted).__name__} of plain weights was expected, and its weights "
        "can't be read. Merge adapters (`merge_and_unload`), load the weights unquantised and on one device, or give "
        "the folder that `save_pretrained` wrote."
    )


def read_linear(module: Any, path: str, wanted: nn.Module) -> dict[str, Tensor]:
    """Return the weight and bias of what computes a linear map, from what it does; refuses what isn't linear."""
    dtype, device = module_place(module)
    stored = wanted.weight.T if isinstance(wanted, nn.Linear) else wanted.weight  # [in, out]
    assert isinstance(stored, Tensor)
    width = stored.shape[0]

    def f(x: Tensor) -> Tensor:
        return module(x.to(device, dtype)[None])[0].to("cpu", torch.float64)

    zero = f(torch.zeros(1, width))[0]
    rows = [f(part) - zero for part in torch.eye(width).split(ROWS)]
    weight = torch.cat(rows)
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype).to(torch.float64)
    expected, found = x @ weight + zero, f(x)
    gap = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
    if not gap <= GAPS.get(dtype, 0.05):
        raise unreadable(path, f"({type(module).__name__}) isn't a linear map (off by {gap:.2g} on a sum)", wanted)
    out = {"weight": weight if isinstance(wanted, Conv1D) else weight.T.contiguous()}
    return out | ({"bias": zero} if getattr(wanted, "bias", None) is not None else refuse_bias(zero, path, wanted))


def refuse_bias(zero: Tensor, path: str, wanted: nn.Module) -> dict[str, Tensor]:
    """Refuse a module that adds something where the architecture has no bias."""
    if bool((zero != 0).any()):
        raise unreadable(path, "adds a bias", wanted)
    return {}


def read_rows(module: Any, n: int) -> Tensor:
    """Return the rows of what looks vectors up, from what it gives for each id."""
    _, device = module_place(module)
    parts = [module(ids.to(device)[None])[0].to("cpu", torch.float64) for ids in torch.arange(n).split(ROWS)]
    return torch.cat(parts)


def module_place(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the precision that a module computes in, and its device."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    named = getattr(module, "compute_dtype", None)
    floats = [t.dtype for t in tensors if t.is_floating_point() and t.dtype in GAPS]
    return (named if isinstance(named, torch.dtype) else floats[0] if floats else torch.float32), device


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation while it is read; its modes and the process's random numbers are restored."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def refuse_other_logits(model: PreTrainedModel, copied: PreTrainedModel) -> None:
    """Refuse a copy that predicts something else than the model does, hooks included."""
    generator = torch.Generator().manual_seed(0)
    shape = (IDS[0], min(IDS[1], getattr(model.config, "max_position_embeddings", None) or IDS[1]))
    ids = torch.randint(copied.get_input_embeddings().weight.shape[0], shape, generator=generator)
    theirs = model(ids.to(model.device), use_cache=False).logits.to("cpu", torch.float64)
    ours = copied(ids, use_cache=False).logits.to(torch.float64)
    gap = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
    if not gap <= GAPS.get(model.dtype, 0.05):
        raise UnsupportedModel(
            f"A copy of this model's weights predicts something else than the model (logits off by {gap:.2g} of their "
            "size), so something besides its weights takes part: hooks, a changed forward, or an adapter that isn't a "
            "linear map. Remove it or merge it, and try again."
        )


def identity(copied: PreTrainedModel, tokenizer: Any) -> str:
    """Return a SHA-256 over weights, config and tokenizer, which is the same for the same model in any process."""
    out = hashlib.sha256()
    for name, weight in sorted(copied.state_dict().items()):
        out.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        out.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    changing = {"_name_or_path", "transformers_version"}
    config = {name: value for name, value in copied.config.to_dict().items() if name not in changing}
    out.update(json.dumps(config, sort_keys=True, default=str).encode())
    out.update(tokenizer_content(tokenizer).encode())
    return out.hexdigest()


def tokenizer_content(tokenizer: Any) -> str:
    """Return what decides a tokenizer's ids, as text."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return rules + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)


def kept_copy(model: Any, tokenizer: Any) -> Path:
    """Return a folder of the cache with a plain copy of a model in memory, named by its content."""
    if tokenizer is None:
        raise UnfitTokenizer(
            "A model in memory comes without a tokenizer, and a study reads text. Give its own, `tokenizer=...`, "
            "beside it."
        )
    refuse_other_ids(tokenizer)
    copied = plain_copy(opened(model))

    def write(place: Path) -> None:
        with without_chatter():
            copied.save_pretrained(place)
        tokenizer.save_pretrained(place)
        origin = {"form": FORM, "weights_sha256": sha256_of_weights(place)}
        (place / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")

    return kept_folder("models", f"in-memory-{identity(copied, tokenizer)[:24]}", write)
