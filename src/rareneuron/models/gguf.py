"""A GGUF file as a folder that this package reads: dequantised by transformers, and kept in the user's cache.

A GGUF file holds one model, its tokenizer included, with most weights as small integers and scales. Analyses need
numbers, so the weights are multiplied out once, exactly, to float32; the result is named by the file's SHA-256.
transformers builds tokenizers of such files without the rule by which text is split before merging, and ids are then
not the model's. So the tokenizer is made here, for the rules in `SPLITS`; where the file names another, none is made,
and a tokenizer.json that lies beside the file is used instead. Oracle: tests/models/test_gguf.py, a model of known
weights written to such a file.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from rareneuron.cache import kept_folder
from rareneuron.errors import BrokenCheckpoint, ModelNotFound, RareNeuronError, UnsupportedModel
from rareneuron.models.anatomy import family_of
from rareneuron.models.untrusted import MOST_LAYERS, refuse_sizes

LIBRARIES = ("gguf", "accelerate")  # of the extra `gguf`
ORIGIN = "origin.json"  # in a folder of the cache: what it was made from
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # beside a file, these win
UNQUANTISED = {"F64", "F32", "F16", "BF16"}
CONTROL, USER_DEFINED = 3, 4  # GGUF's types of tokens that are found in a text before it is split
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
MOST_FACTOR = 2  # of a model's numbers over those in the file: an unembedding that is tied

ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"(?i:{ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
# How text is split before byte pairs are merged, by the file's word for it; llama.cpp decides these names.
SPLITS = {
    "gpt-2": (GPT2,),
    "olmo": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "qwen2": (LLAMA3.replace("{1,3}", ""),),
}
WHOLE_WORDS_FIRST = {"llama-bpe"}  # a piece that is a token isn't merged
COMPOSED = {"qwen2"}  # text in Unicode's composed form


def gguf_in(place: Path) -> Path | None:
    """Return the GGUF file that a path stands for: itself, or the only one of a folder without other weights."""
    if place.suffix == ".gguf" and place.is_file():
        found = [place]
    elif place.is_dir() and not any(place.glob("*.safetensors")):
        found = sorted(place.glob("*.gguf"))
    else:
        return None
    if len(found) > 1 or any(PART.search(file.name) for file in found):
        names = ", ".join(file.name for file in found[:4]) + (", …" if len(found) > 4 else "")
        raise ModelNotFound(
            f"{place} holds {len(found)} GGUF file{'s' if len(found) > 1 else ''} ({names}), and a model is read from "
            "one whole file. Give the path of the one to study; parts (-00001-of-…) are put together by llama.cpp's "
            "`gguf-split --merge`."
        )
    return found[0] if found else None


def converted(file: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the cache that holds a GGUF file's model, made now if need be, and what is known of it.

    The second has `form` (how the weights came to be numbers), `gguf_sha256`, and `weights_sha256` of the kept file.
    """
    digest = file_digest(file)
    beside = [file.parent / name for name in TOKENIZER if (file.parent / "tokenizer.json").is_file()]
    beside = [path for path in beside if path.is_file() and not path.is_symlink()]
    key = hashlib.sha256(" ".join([digest, *map(file_digest, beside)]).encode()).hexdigest() if beside else digest
    folder = kept_folder("models", key, lambda place: convert(file, digest, beside, place))
    return folder, known_origin(folder)


def known_origin(folder: Path) -> dict[str, Any]:
    """Return what a folder of the cache was made from; at least `form` and `weights_sha256`."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        if all(isinstance(origin[name], str) for name in ("form", "weights_sha256")):
            return dict(origin)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder) from error
    raise damaged(folder)


def damaged(folder: Path) -> BrokenCheckpoint:
    """Return the error for a folder of the cache that isn't as it was written."""
    return BrokenCheckpoint(
        f"{folder} in this user's cache is not what was put there, so it isn't the model that was asked for. Remove "
        "that folder; the same command makes it again."
    )


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    stat = file.stat()
    return digest_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def digest_of(file: Path, size: int, changed: int) -> str:
    """Return the SHA-256 of a file; `size` and `changed` are there for the cache."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def convert(file: Path, digest: str, tokenizer_files: list[Path], place: Path) -> None:
    """Write a GGUF file's model to a folder: float32 weights, config, tokenizer, and where they come from."""
    refuse_without_libraries(file.name)
    with gguf_errors(file):
        facts, kinds, n_numbers = read_metadata(file)
    # transformers looks at what lies beside the file, so the file is shown to it alone.
    source = place / "source"
    source.mkdir()
    (source / "model.gguf").symlink_to(file.resolve())
    with without_chatter():
        dequantised(file, source, n_numbers).save_pretrained(place)
    shutil.rmtree(source)
    if tokenizer_files:
        for path in tokenizer_files:
            shutil.copyfile(path, place / path.name)
    elif (tokenizer := tokenizer_of(facts)) is not None:
        tokenizer.save_pretrained(place)
    origin = {
        "form": form_of(kinds),
        "gguf_sha256": digest,
        "weights_sha256": file_digest(place / "model.safetensors"),
        "tokenizer_split": facts.get("tokenizer.ggml.pre"),
    }
    (place / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def dequantised(file: Path, source: Path, n_numbers: int) -> Any:
    """Return the model of a GGUF file in float32, without traces of how it was stored."""
    with gguf_errors(file):
        config = AutoConfig.from_pretrained(source, gguf_file="model.gguf", local_files_only=True)
    family_of(config.to_dict())
    refuse_sizes(file, config.to_dict())
    with gguf_errors(file):
        with torch.device("meta"):
            asked = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if asked > MOST_FACTOR * n_numbers:
            raise BrokenCheckpoint(
                f"{file} describes a model of {asked:,} numbers and holds {n_numbers:,}. Download it again."
            )
        loaded, report = AutoModelForCausalLM.from_pretrained(
            source, gguf_file="model.gguf", dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        lacking = sorted(report["missing_keys"])
        if lacking:
            raise BrokenCheckpoint(
                f"{file} lacks {len(lacking)} weights of its model ({', '.join(lacking[:3])}), which would be random "
                "numbers. Download it again, or get the model's safetensors files."
            )
        for name in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(loaded.config, name):
                delattr(loaded.config, name)
        with torch.device("meta"):  # no random weights for those that follow
            plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
    return plain


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep transformers from reporting its steps; its settings are as before afterwards."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def refuse_without_libraries(what: str) -> None:
    """Refuse to go on where a library is missing that transformers needs to read such files."""
    for library in LIBRARIES:
        try:
            import_module(library)
        except ImportError as error:
            raise lacks_library(what, library) from error


def lacks_library(what: str, library: str) -> UnsupportedModel:
    """Return the error for a machine without a library that reads such files."""
    return UnsupportedModel(
        f"{what} is in a GGUF file, and reading one needs the package `{library}`, which isn't installed or is too "
        "old. Install it: pip install 'rareneuron[gguf]'."
    )


@contextmanager
def gguf_errors(file: Path) -> Iterator[None]:
    """Turn what the libraries raise over a GGUF file into an error that blames the file."""
    try:
        yield
    except RareNeuronError:
        raise
    except ImportError as error:
        raise lacks_library(file.name, error.name or LIBRARIES[0]) from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        why = " ".join(str(error).split())[:300]
        raise BrokenCheckpoint(
            f"{file} can't be read as a GGUF file of a language model: {type(error).__name__}: {why}. Download it "
            "again; if its architecture is one that transformers can't read from GGUF, get the model's safetensors "
            "files."
        ) from error


def read_metadata(file: Path) -> tuple[dict[str, Any], Counter[str], int]:
    """Return a GGUF file's facts by name, its types of numbers with how many there are, and how many in all."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    kinds: Counter[str] = Counter()
    for tensor in reader.tensors:
        kinds[tensor.tensor_type.name] += int(tensor.n_elements)
    n_blocks = facts.get(f"{facts.get('general.architecture')}.block_count", 0)
    there = {int(match[1]) for tensor in reader.tensors if (match := re.match(r"blk\.(\d+)\.", tensor.name))}
    if n_blocks != len(there) or n_blocks > MOST_LAYERS:
        raise BrokenCheckpoint(
            f"{file} says that it has {n_blocks} blocks, and holds {len(there)}. It is damaged: download it again."
        )
    return facts, kinds, kinds.total()


def form_of(kinds: Mapping[str, int]) -> str:
    """Return in words how the weights were stored, the most frequent type first."""
    quantised = [name for name, _ in Counter(kinds).most_common() if name not in UNQUANTISED]
    if quantised:
        return f"dequantised from {' and '.join(quantised)}"
    return f"read from a GGUF file of {' and '.join(name for name, _ in Counter(kinds).most_common())}"


def tokenizer_of(facts: Mapping[str, Any]) -> PreTrainedTokenizerFast | None:
    """Return the byte-level tokenizer that a GGUF file describes; None where its rule for splitting isn't known here.

    Control and user-defined tokens are found before text is split, as llama.cpp does it.
    """
    split = facts.get("tokenizer.ggml.pre")
    if facts.get("tokenizer.ggml.model") != "gpt2" or split not in SPLITS:
        return None
    tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
    kinds = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=split in WHOLE_WORDS_FIRST))
    if split in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    pieces: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[split]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        found = [
            AddedToken(t, normalized=False, special=special) for t, k in zip(tokens, kinds, strict=True) if k == kind
        ]
        tokenizer.add_special_tokens(found) if special else tokenizer.add_tokens(found)
    named = {
        f"{role}_token": tokens[facts[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{name}_token_id" in facts
    }
    if facts.get("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
