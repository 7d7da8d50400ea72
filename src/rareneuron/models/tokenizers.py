"""A folder's files to a tokenizer: where there is a tokenizer.json, its ids are used, whatever class is named.

transformers 5 builds a tokenizer anew from its class and takes only the vocabulary from tokenizer.json: what the file
says of normalising, of cutting or of the kind of model is lost, and the ids are not those that the model was trained
on, without a word. So the file is read as it is, and the class is asked only which tokens are BOS, EOS and the like. A
probe at every load compares the two on a text and says if they differ. Likewise a SentencePiece file's ids are those
that its own library gives, whichever class is named, and a tokenizer that a user gives must agree with the file that it
was read from. Oracle: tests/models/test_tokenizers.py, the `tokenizers` library itself on the same file.
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rareneuron.errors import BrokenCheckpoint, UnfitTokenizer
from rareneuron.links import expanded
from rareneuron.models.loading import one_line, read_json
from rareneuron.models.untrusted import refuse_links

FILE = "tokenizer.json"
# What can hold a vocabulary; the other files of a tokenizer only say how it is used.
VOCABULARIES = (FILE, "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
JSON_FILES = (FILE, "vocab.json", "tokenizer_config.json")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# Letters of both cases, runs of white space, digits, marks, composed and decomposed accents, other scripts, line ends.
PROBE = (
    "The School of Time was old.\nIn WINTER the teacher's pupils read 1,234 books  (or more) to every child:\n\n"
    "\tna\u00efve caf\u00e9, cafe\u0301, \ufb01nance \u2014 \u201cstra\u00dfe\u201d \u6771\u4eac "
    "\u0440\u0435\u0434\u043a\u0438\u0439 \U0001f600 x_y = f(a[0]) + 3.14e-5; don't, we'll\r\n"
)


@dataclass(frozen=True, kw_only=True)
class FoundTokenizer:
    """A tokenizer, and which file or class says what its ids are."""

    tokenizer: Any
    source: str
    overruled: str | None = None  # the class that would have given other ids than the file


def load_tokenizer(folder: Path, config: Any) -> Any | None:
    """Return the tokenizer in a folder, or in the one above it (a series shares one); None where there is none."""
    found = find_tokenizer(folder, config)
    return None if found is None else found.tokenizer


def find_tokenizer(folder: Path, config: Any) -> FoundTokenizer | None:
    """Return the tokenizer in a folder or the one above it, and what its ids were taken from; None without one."""
    places = (folder, folder.resolve().parent)
    place = next((place for place in places if vocabularies(place)), None)
    if place is None:
        return None
    refuse_links(place)
    refuse_unreadable(place)
    file = place / FILE
    if file.is_file():
        return of_file(file, config)
    refuse_missing_library(place)
    if library_named(place) == "sentencepiece":
        return of_pieces(place, config)
    tokenizer = of_class(place, config)
    refuse_invented_merges(place, tokenizer)
    return FoundTokenizer(tokenizer=tokenizer, source=f"{type(tokenizer).__name__} of {', '.join(vocabularies(place))}")


def vocabularies(place: Path) -> list[str]:
    """Return the names of the files in a folder that can hold a tokenizer's vocabulary."""
    return [name for name in VOCABULARIES if (place / name).is_file()]


def refuse_unreadable(place: Path) -> None:
    """Refuse JSON that can't be read, or that asks for code of the repository to be run."""
    for name in JSON_FILES:
        if not (place / name).is_file():
            continue
        try:
            content = read_json(place / name, "the tokenizer")
        except BrokenCheckpoint as error:
            raise UnfitTokenizer(str(error)) from error
        if "auto_map" in content:
            raise UnfitTokenizer(
                f"{place / name} asks for code of the repository to be run (`auto_map`), which this package never "
                f"does. Save the tokenizer as {FILE}, with `PreTrainedTokenizerFast`."
            )


# --- tokenizer.json


def of_file(file: Path, config: Any) -> FoundTokenizer:
    """Return the tokenizer that a tokenizer.json describes, with the special tokens that its class names."""
    said = rules_of(file)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=said)
    if said.pre_tokenizer is not None:  # transformers 4 takes away the space that it puts before a text
        tokenizer.backend_tokenizer.pre_tokenizer = said.pre_tokenizer
    try:
        by_class = of_class(file.parent, config)
    except UnfitTokenizer:  # the class can't be built from this file, which is whole by itself
        named, overruled = named_by_config(file.parent), None
    else:
        named = {name: str(token) for name in NAMED if (token := getattr(by_class, name, None)) is not None}
        overruled = None if gives(by_class, ids_of(said)) else type(by_class).__name__
    for name, token in named.items():
        if said.token_to_id(token) is not None:  # a token that the file doesn't know would get an id of its own
            setattr(tokenizer, name, token)
    source = FILE if overruled is None else f"{FILE}; its class {overruled} would give other ids"
    return FoundTokenizer(tokenizer=tokenizer, source=source, overruled=overruled)


def rules_of(file: Path) -> Tokenizer:
    """Return what a tokenizer.json says, without what belongs to training."""
    try:
        said = Tokenizer.from_file(str(file))
    except BaseException as error:
        raise unreadable(file.parent, error) from error
    said.no_truncation()  # set in training, as padding is, whose token would get an id of its own
    said.no_padding()
    if getattr(said.model, "dropout", None):  # joins left out at random, which belongs to training, too
        said.model.dropout = None
    return said


def of_class(place: Path, config: Any) -> Any:
    """Return the tokenizer that transformers builds from the class that a folder names."""
    try:
        return AutoTokenizer.from_pretrained(place, config=config, local_files_only=True, trust_remote_code=False)
    except BaseException as error:
        raise unreadable(place, error) from error


def unreadable(place: Path, error: BaseException) -> UnfitTokenizer:
    """Return the error for a tokenizer that can't be read; raises again what isn't a library's own complaint."""
    # The tokenizers library raises bare `Exception`s, and Rust's panics, which derive from BaseException.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return UnfitTokenizer(
        f"The tokenizer in {place} ({', '.join(vocabularies(place))}) can't be read: {type(error).__name__}: "
        f"{one_line(error).rstrip('.')}. Save it again with `save_pretrained`, or give another one with "
        "`load_model(..., tokenizer=...)`."
    )


def named_by_config(place: Path) -> dict[str, str]:
    """Return the special tokens that tokenizer_config.json names."""
    file = place / "tokenizer_config.json"
    content = read_json(file, "the tokenizer") if file.is_file() else {}
    named = {name: content.get(name) for name in NAMED}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: token for name, token in texts.items() if isinstance(token, str)}


def ids_of(said: Tokenizer) -> list[int]:
    """Return the ids that a tokenizer.json gives the probe."""
    return said.encode(PROBE, add_special_tokens=False).ids


def gives(tokenizer: Any, ids: list[int]) -> bool:
    """Return whether a tokenizer gives the probe these ids."""
    return bool(tokenizer(PROBE, add_special_tokens=False)["input_ids"] == ids)


# --- without tokenizer.json


def library_named(place: Path) -> str | None:
    """Return the library that reads a folder's vocabulary, where it needs one of its own."""
    name = vocabularies(place)[0]
    return library_of(place / name)[0] if name.endswith(".model") else None


def refuse_missing_library(place: Path) -> None:
    """Refuse a vocabulary whose form needs a library that isn't installed, by the library's name."""
    name = vocabularies(place)[0]
    if library_named(place) is None:
        return
    library, packages, form = library_of(place / name)
    if importlib.util.find_spec(library) is None:
        raise UnfitTokenizer(
            f"{place} has its tokenizer only as {name}, {form}, and the library that reads such files isn't installed. "
            f"Install it with `pip install {packages}`; or save the tokenizer as {FILE} where it is installed, with "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`."
        )


def library_of(path: Path) -> tuple[str, str, str]:
    """Return the library that reads a vocabulary file, what to install for it, and what such a file is."""
    with path.open("rb") as stream:
        begin = stream.readline(512)
    if re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+\s*", begin):  # lines of a token in base 64 and its rank
        return "tiktoken", "tiktoken", "a tiktoken file"
    return "sentencepiece", "sentencepiece protobuf", "a SentencePiece file"


def of_pieces(place: Path, config: Any) -> FoundTokenizer:
    """Return the tokenizer of a SentencePiece file whose ids are those of its own library, by its class or without it.

    transformers 5 takes only pieces and scores from such a file where a class is named, and its normalising, its
    spaces and its kind of model from that class; without one it converts all of the file.
    """
    name = vocabularies(place)[0]
    ids = pieces_of(place / name)
    by_class = of_class(place, config)
    class_name = type(by_class).__name__
    if gives(by_class, ids):
        return FoundTokenizer(tokenizer=by_class, source=f"{class_name} of {name}")
    whole = without_class(place)
    if whole is None or not gives(whole, ids):
        raise UnfitTokenizer(
            f"{place} has its tokenizer only as {name}, and transformers makes one of it ({class_name}) that gives a "
            "text other ids than the library sentencepiece does, which are those that the model was trained on. Get "
            f"the model's {FILE}, or convert {name} to one."
        )
    return FoundTokenizer(
        tokenizer=whole, source=f"{name}; its class {class_name} would give other ids", overruled=class_name
    )


def pieces_of(file: Path) -> list[int]:
    """Return the ids that the library sentencepiece gives the probe, by a file."""
    processor: Callable[..., Any] = importlib.import_module("sentencepiece").SentencePieceProcessor
    try:
        return list(processor(model_file=str(file)).encode(PROBE))
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise unreadable(file.parent, error) from error


def without_class(place: Path) -> Any | None:
    """Return the tokenizer that transformers converts a SentencePiece file to as a whole; None where it doesn't."""
    try:
        return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError):
        return None  # versions 4 read such files by their class alone


def refuse_invented_merges(place: Path, tokenizer: Any) -> None:
    """Refuse byte-pair encoding whose order of merges is lost: transformers would make one up from the vocabulary."""
    lacks = vocabularies(place)[0] == "vocab.json" and not (place / "merges.txt").is_file()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if lacks and type(getattr(backend, "model", None)).__name__ == "BPE":
        raise UnfitTokenizer(
            f"{place} has vocab.json without merges.txt, so the order in which letters are joined is lost, and ids "
            f"could be others than those that the model was trained on. Add the model's merges.txt, or its {FILE}."
        )


# --- a tokenizer and a model


def refuse_unfit_tokenizer(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer that can give a text an id for which the embedding has no row.

    Special tokens that were added beyond the embedding, as [PAD] often is, are no reason: text holds none of them. BOS
    and EOS are, since they are put into every text.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    put = {i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None}
    beyond = [i for i in tokenizer.get_vocab().values() if i >= rows and (i in put or i not in added)]
    if beyond:
        largest = max(beyond)
        raise UnfitTokenizer(
            f"The tokenizer can give the id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and the model's "
            f"embedding has {rows} rows, so the two don't belong together. Give the tokenizer that the model was "
            "trained with."
        )


def refuse_other_ids(tokenizer: Any) -> None:
    """Refuse a tokenizer that a user gives where its ids aren't those of the file that it was read from."""
    place = read_from(tokenizer)
    if place is None:
        return
    name = vocabularies(place)[0]
    if name == FILE:
        ids = ids_of(rules_of(place / name))
    elif library_named(place) == "sentencepiece" and importlib.util.find_spec("sentencepiece") is not None:
        ids = pieces_of(place / name)
    else:
        return  # nothing but a class says what its ids are
    if not gives(tokenizer, ids):
        raise UnfitTokenizer(
            f"The tokenizer that was given ({type(tokenizer).__name__}) gives a text other ids than the file that it "
            f"was read from, {place / name}: transformers rebuilds tokenizers from their class, and a model was "
            "trained with the ids of its file. Give that file's, `rn.load_model(FOLDER).tokenizer` or "
            "`PreTrainedTokenizerFast(tokenizer_file=...)`; if the change is meant, save it to a folder of its own "
            "and load it from there."
        )


def read_from(tokenizer: Any) -> Path | None:
    """Return the folder with a vocabulary that a tokenizer was read from, here or in the Hub's cache; None without."""
    name = getattr(tokenizer, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    place = expanded(name)
    if not place.is_dir():
        try:
            cached = try_to_load_from_cache(name, FILE)
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        place = Path(cached).parent
    return place if vocabularies(place) else None
