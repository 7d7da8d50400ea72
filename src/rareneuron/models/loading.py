"""A local folder to a causal language model in evaluation mode, or one clear reason why not.

Files are judged before anything is allocated: the headers of the safetensors files are compared with the shapes
that config.json asks for, on torch's meta device. transformers only warns of weights that are missing and fills
them with random numbers; here that is an error. Nothing pickled is read, no code of a repository is run, and nothing
is read outside the folder, its tokenizer's and the Hub's cache. Numbers of config.json that transformers counts up to
are bounded before it sees them.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from rareneuron.errors import BrokenCheckpoint, ModelNotFound, OutOfRange, UnsupportedModel
from rareneuron.models.anatomy import family_of
from rareneuron.models.families import Family
from rareneuron.models.steps import step_of
from rareneuron.models.untrusted import refuse_links, refuse_sizes

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
STORED_DTYPES = {"F64", "F32", "F16", "BF16"}
MOST_CHARACTERS = 300  # of another library's message
# Causal masks and rotary frequencies, which old versions of transformers stored; they are not weights.
BUFFERS = re.compile(r"attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|inv_freq$")
# What a config may ask for beyond its weight files: buffers such as causal masks, and tied weights counted twice.
ALLOCATION_FACTOR, ALLOCATION_BYTES = 4, 2**30
MOST_JSON = {"config.json": 4 * 2**20, "model.safetensors.index.json": 64 * 2**20}  # bytes
MOST_TOKENIZER_JSON = 256 * 2**20  # that of 262,144 types has 33 MB


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the safetensors files of a folder say they hold."""

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    n_bytes: int


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object from a file; one larger than such a file ever is, is refused unread."""
    size, most = path.stat().st_size, MOST_JSON.get(path.name, MOST_TOKENIZER_JSON)
    if size > most:
        raise BrokenCheckpoint(
            f"{path} has {size / 2**20:,.0f} MiB, and no such file needs more than {most / 2**20:.0f}, so it isn't "
            "read. Restore the file that the model was saved with."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(
            f"{path} is not valid JSON ({error}), so {what} can't be read. Download it again."
        ) from error
    if not isinstance(content, dict):
        raise BrokenCheckpoint(f"{path} is not a JSON object, so {what} can't be read. Download it again.")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and refuse models that this package can't or mustn't load."""
    path = folder / "config.json"
    refuse_links(folder)
    refuse_adapter(folder)
    if not path.is_file():
        steps = sorted(
            child.name
            for child in (folder.iterdir() if folder.is_dir() else ())
            if step_of(child.name) is not None and (child / "config.json").is_file()
        )
        hint = (
            f"It is a series of checkpoints ({len(steps)}, such as {steps[0]}): load one of them, or study them with "
            "`--steps all`."
            if steps
            else "Give the folder that `save_pretrained` wrote: config.json beside *.safetensors."
        )
        raise ModelNotFound(f"{folder} has no config.json, so it isn't a model's folder. {hint}")
    config = read_json(path, "the model's architecture")
    heads = config.get("architectures") or []
    named = isinstance(heads, list) and all(isinstance(head, str) for head in heads)
    if not named or not isinstance(config.get("model_type"), str):
        raise BrokenCheckpoint(
            f"{path} doesn't say by a name which architecture this is (`model_type`). Restore the config that the "
            "weights were saved with."
        )
    family_of(config)
    if "auto_map" in config:
        raise UnsupportedModel(
            f"{path} asks for code of the repository to be run (`auto_map`), which this package never does. If the "
            "architecture is part of transformers now, delete `auto_map` from a local copy of config.json."
        )
    if "transformers_weights" in config:
        raise UnsupportedModel(
            f"{folder} names weights that lie elsewhere (`transformers_weights`), so what is checked here would not be "
            "what is loaded. Save the whole model with `save_pretrained`."
        )
    refuse_sizes(path, config)
    if config.get("quantization_config"):
        raise UnsupportedModel(
            f"{path} describes quantised weights, whose rows are not what a neuron reads and writes. Load the "
            "checkpoint that was quantised, in float16, bfloat16 or float32."
        )
    return config


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter, which is no model by itself; says which one it belongs to."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    content = read_json(path, "what this adapter belongs to")
    kind, base = str(content.get("peft_type") or "adapter"), content.get("base_model_name_or_path")
    named = repr(base) if isinstance(base, str) and base else "BASE"
    whose = f"for the model {named}" if named != "BASE" else "for a model that it doesn't name"
    raise UnsupportedModel(
        f"{folder} holds an adapter ({kind}, adapter_config.json) {whose}, which is no model by itself: studied alone, "
        "or left out, it would be another model. Merge it into a copy: `PeftModel.from_pretrained("
        f"AutoModelForCausalLM.from_pretrained({named}), {str(folder)!r}).merge_and_unload()"
        ".save_pretrained(NEW_FOLDER)`, with peft installed, and study NEW_FOLDER; or give the model in memory, "
        "`rn.run_study(config, model=..., tokenizer=...)`."
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up a model; other forms of weights are refused."""
    refuse_links(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if index.is_file():
        weight_map = read_json(index, "which file holds which weight").get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise BrokenCheckpoint(f"{index} has no `weight_map` of file names beside it. Download it again.")
        files = tuple(folder / name for name in sorted(set(weight_map.values())))
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise BrokenCheckpoint(
                f"{folder} lacks {len(absent)} of the {len(files)} weight files that its index lists: "
                f"{', '.join(absent)}. Download them too."
            )
        return files
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if pickled:
        raise BrokenCheckpoint(
            f"{folder} has its weights only as pickles ({', '.join(pickled)}), which can run any code when they are "
            "opened, so this package never does. Where you trust the source, convert once: "
            "`AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)`."
        )
    raise BrokenCheckpoint(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json. Only weights in safetensors files "
        "are read: save the model with `save_pretrained`, or convert pickled weights by loading and saving them once."
    )


def read_header(folder: Path) -> Header:
    """Names, shapes and dtypes of the weights, without reading them."""
    files = weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    entry = tensors.get_slice(name)
                    shapes[name], dtypes[name] = tuple(entry.get_shape()), str(entry.get_dtype())
        except (SafetensorError, OSError) as error:
            raise BrokenCheckpoint(
                f"{file} is truncated or not a safetensors file ({error}). Download or copy it again."
            ) from error
    return Header(files=files, shapes=shapes, dtypes=dtypes, n_bytes=sum(file.stat().st_size for file in files))


def sha256_of_weights(folder: Path) -> str:
    """The SHA-256 of a model's weight file; where there are several, of their names and hashes."""
    digests = {}
    for file in weight_files(folder):
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode()).hexdigest()


def load_causal_lm(folder: Path, config: Mapping[str, Any], dtype: str) -> Any:
    """Load a model to the CPU, after every check that can be made on files."""
    if dtype not in DTYPES:
        raise OutOfRange(f"There is no dtype {dtype!r}. Use one of {', '.join(DTYPES)}; float32 is the default.")
    family = family_of(config)
    header = read_header(folder)
    options = {} if family.attention is None else {"attn_implementation": family.attention}
    parsed = parsed_config(folder)
    refuse_wrong_depth(folder, parsed.num_hidden_layers, family, header)
    with config_errors(folder), torch.device("meta"):
        blueprint = AutoModelForCausalLM.from_config(parsed, trust_remote_code=False, **options)
    refuse_misfit(folder, blueprint, header)
    with config_errors(folder, "generation_config.json"):  # the only file not looked at before
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=parsed,
            dtype=DTYPES[dtype],
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    refuse_missing(folder, sorted(report["missing_keys"]), header)
    refuse_dropped(folder, sorted(report["unexpected_keys"]), family)
    return model.eval()


def parsed_config(folder: Path) -> Any:
    """config.json as transformers understands it; call `read_config` first.

    A choice of attention kernel in the file is dropped: transformers would fetch and run the one that is named there.
    """
    with config_errors(folder):
        parsed = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for name in ("_attn_implementation", "_experts_implementation"):
            if hasattr(parsed, name):
                setattr(parsed, name, None)
    return parsed


@contextmanager
def config_errors(folder: Path, name: str = "config.json") -> Iterator[None]:
    """Turn whatever transformers raises over a config's values into an error that blames the config."""
    try:
        yield
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        ImportError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise BrokenCheckpoint(
            f"{folder / name} doesn't describe a model that can be built: {type(error).__name__}: {one_line(error)}. "
            "Restore the config that the weights were saved with."
        ) from error


def one_line(error: BaseException) -> str:
    """Another library's message on one line, cut where it is long."""
    words = " ".join(str(error).split())
    return words if len(words) <= MOST_CHARACTERS else f"{words[:MOST_CHARACTERS]}…"


def refuse_wrong_depth(folder: Path, n_layers: object, family: Family, header: Header) -> None:
    """Refuse a config whose number of blocks isn't that of the weight files.

    This is the first of the checks on shapes, since building even an empty model takes time per block.
    """
    pattern = re.compile(rf"(?:^|\.){re.escape(family.blocks)}\.(\d+)\.")
    stored = {int(match[1]) for name in header.shapes if (match := pattern.search(name))}
    if stored != set(range(len(stored))) or len(stored) != n_layers:
        raise BrokenCheckpoint(
            f"{folder / 'config.json'} asks for {n_layers!r} blocks, and the weight files hold {len(stored)}. The two "
            "don't belong together: restore the config that the weights were saved with, or the missing files."
        )


def refuse_misfit(folder: Path, blueprint: Any, header: Header) -> None:
    """Refuse weight files whose shapes, types or size aren't those that the config asks for."""

    def common(name: str) -> str:
        # A checkpoint of the bare backbone lacks its prefix; transformers 5 renamed GPT-NeoX's unembedding.
        return name.removeprefix(f"{blueprint.base_model_prefix}.").replace("embed_out.", "lm_head.")

    stored = {common(name): name for name in header.shapes}
    for name, wanted in blueprint.state_dict().items():
        found = stored.get(common(name))
        if found is None:
            continue
        if header.shapes[found] != tuple(wanted.shape):
            raise BrokenCheckpoint(
                f"`{found}` has the shape {list(header.shapes[found])} in the weight files of {folder}, and "
                f"config.json asks for {list(wanted.shape)}. The two don't belong together: restore the "
                "config that the weights were saved with."
            )
        if header.dtypes[found] not in STORED_DTYPES:
            raise UnsupportedModel(
                f"`{found}` is stored as {header.dtypes[found]} in {folder}: quantised weights are not what a neuron "
                "reads and writes. Load the checkpoint in float16, bfloat16 or float32."
            )
    # GPT-J under transformers 4 keeps its table of positions as a plain attribute.
    loose = [x for module in blueprint.modules() for x in vars(module).values() if isinstance(x, torch.Tensor)]
    asked = sum(x.numel() * x.element_size() for x in (*blueprint.parameters(), *blueprint.buffers(), *loose))
    if asked > ALLOCATION_FACTOR * header.n_bytes + ALLOCATION_BYTES:
        raise BrokenCheckpoint(
            f"{folder / 'config.json'} asks for {asked / 2**30:.1f} GiB, and the weight files hold "
            f"{header.n_bytes / 2**30:.3f}. The two don't belong together: restore the config that the weights were "
            "saved with."
        )


def refuse_missing(folder: Path, missing: list[str], header: Header) -> None:
    """Refuse weight files that lack weights, which transformers fills with random numbers."""
    if not missing:
        return
    prefix = common_prefix(missing, header)
    remedy = (
        "Get the complete checkpoint; if it was saved without its language modelling head, save it again with it."
        if prefix is None
        else f"They are there under names that begin with `{prefix}`, as a wrapper's own `state_dict()` gives them: "
        "save the model inside it (`_orig_mod` of torch.compile, `module` of DDP, PEFT's after `merge_and_unload()`) "
        "with `save_pretrained`."
    )
    raise BrokenCheckpoint(
        f"The weight files of {folder} lack {len(missing)} weight{'' if len(missing) == 1 else 's'} of the model "
        f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}), which would be random numbers. {remedy}"
    )


def common_prefix(missing: list[str], header: Header) -> str | None:
    """Return what stands before every missing name in the weight files; None where they aren't there so."""
    first = [name.removesuffix(missing[0]) for name in header.shapes if name.endswith(f".{missing[0]}")]
    return next((prefix for prefix in first if all(f"{prefix}{name}" in header.shapes for name in missing)), None)


def refuse_dropped(folder: Path, unexpected: list[str], family: Family) -> None:
    """Refuse weights inside the blocks that the architecture has no place for: another model was trained.

    Heads beside the blocks may be dropped, since they don't change what the model predicts.
    """
    dropped = [name for name in unexpected if f"{family.blocks}." in name and not BUFFERS.search(name)]
    if dropped:
        raise BrokenCheckpoint(
            f"The weight files of {folder} hold {len(dropped)} weights that {family.model_type} has no place for with "
            f"this config ({', '.join(dropped[:3])}{', …' if len(dropped) > 3 else ''}), so what would be loaded is "
            "not the model that was trained. Restore its config, or merge adapters into the model."
        )


def hide_progress_bars() -> None:
    """Switch transformers' progress bars off, for the rest of this process."""
    logging.disable_progress_bar()
