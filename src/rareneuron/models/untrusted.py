"""What is refused in a model folder from strangers: links that lead out of it, and numbers that fill all memory.

transformers follows links, and turns some numbers of config.json into lists or dictionaries of that length before any
weight is looked at, so a kilobyte of JSON could take all memory. Both are refused with the name of what is wrong.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rareneuron.errors import BrokenCheckpoint
from rareneuron.links import allowed_roots, leads_out

PACKAGE = Path(__file__).parents[1]  # installers may make its files links into their own cache
READ_SUFFIXES = {".json", ".gguf", ".txt", ".model", ".tiktoken", ".safetensors", ".jinja"}
READ_FOLDERS = {"additional_chat_templates"}

LARGEST = 2**31 - 1  # whole number: vocabularies, widths, positions, token ids
MOST_LAYERS = 1_000
MOST_LABELS = 100_000
DEPTHS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}


def refuse_links(folder: Path) -> None:
    """Refuse links that lead out of a model's folder, but for those of a snapshot to its blobs in the Hub's cache."""
    if not folder.is_dir() or folder.absolute().is_relative_to(PACKAGE):
        return
    roots = allowed_roots(folder.resolve(), "models")
    for child in sorted(folder.iterdir()):
        if (child.suffix in READ_SUFFIXES or child.name in READ_FOLDERS) and leads_out(child, roots):
            raise BrokenCheckpoint(
                f"{child} is a link to {child.readlink()}, outside the model's folder, and a folder from elsewhere "
                "could make any file be read so. Put a copy (or a hard link) of the file in its place."
            )


def refuse_sizes(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse numbers in config.json that no model has."""
    for name, value in numbers(config):
        most = MOST_LAYERS if name in DEPTHS else MOST_LABELS if name == "num_labels" else LARGEST
        if abs(value) > most:
            shown = f"{value:,}" if abs(value) < 10**30 else f"a number of {value.bit_length():,} bits"
            raise BrokenCheckpoint(
                f"{path} asks for `{name}` = {shown}, which no model has (at most {most:,}). Restore the config that "
                "the weights were saved with."
            )
    kinds = config.get("attention_types")  # GPT-Neo: [[["global", "local"], 12]] stands for a list of 24
    for kind in kinds if isinstance(kinds, list) else []:
        repeats = kind[-1] if isinstance(kind, list) and kind else 0
        if isinstance(repeats, int) and repeats > MOST_LAYERS:
            raise BrokenCheckpoint(
                f"{path} asks for `attention_types` of {repeats:,} layers, which no model has. Restore the config that "
                "the weights were saved with."
            )


def numbers(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every whole number at any depth, with the name it stands under."""
    open_: list[tuple[str, Any]] = list(content.items())
    while open_:
        name, value = open_.pop()
        if isinstance(value, Mapping):
            open_.extend(value.items())
        elif isinstance(value, list):
            open_.extend((name, each) for each in value)
        elif isinstance(value, int):
            yield name, value
