"""Corpora as streams of texts: files, folders, Hub data sets.

Everything is read in pieces, so memory does not depend on the size of a corpus (`records`, `streams`). A folder says
what of it is read and what isn't (`folders`). Oracle: tests/data/test_texts.py, files written by other libraries.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HTTPError  # httpx's or requests', whichever it speaks through

from rareneuron.data.folders import files_of, shown_suffix
from rareneuron.data.records import (
    READERS,
    checked_text,
    known_suffixes,
    reader_of,
    refuse_field,
    suffix_of,
)
from rareneuron.errors import HubUnavailable, MissingText, UnreadableText
from rareneuron.links import expanded

DEFAULT_CORPUS = "allenai/c4:en:validation"  # the corpus of the paper
HUB_NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
HUB_ERRORS = (OSError, ValueError, HTTPError)  # no connection; no such data set, configuration or split; cut off


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts that can be read any number of times, from the start each time."""

    name: str
    description: str
    read: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        blank = True
        for text in self.read():
            blank = blank and not text.strip()
            yield text
        if blank:
            raise MissingText(f"{self.name} holds no text, so there is nothing to analyse. Name another with `--data`.")


def open_corpus(spec: str | Path | None = None, *, text_field: str = "text") -> Corpus:
    """Open a corpus: a file, a folder of files (all levels, in sorted order) or a data set on the Hub.

    A name that exists on disk is a path. Otherwise `owner/name[:config[:split]]` is a data set on the Hub,
    streamed; without a split it is `train`, save for `allenai/c4`: `en`, `validation`, which is also the corpus
    without a `spec`. Opening checks what can be checked without reading; texts are checked as they stream by.
    """
    if spec is None:
        return hub_corpus(DEFAULT_CORPUS, text_field)
    if spec == "":
        raise MissingText("The name of the corpus is empty, which could stand for any text. Name one with `--data`.")
    path = expanded(spec)
    if path.is_file():
        return file_corpus(path, text_field)
    if path.is_dir():
        return folder_corpus(path, text_field)
    if isinstance(spec, str) and HUB_NAME.fullmatch(spec) and reader_of(path) is None:
        return hub_corpus(spec, text_field)
    raise MissingText(
        f"There is no file or folder {spec}. Name a {known_suffixes()} file, a folder of them, or a Hub data set as "
        "owner/name[:config[:split]], with `--data`."
    )


def file_corpus(path: Path, text_field: str) -> Corpus:
    """The corpus of one file; a suffix that isn't known is refused."""
    reader = reader_of(path)
    if reader is None:
        kind = f"a {shown_suffix(path)} file" if path.suffix else "a file without a suffix"
        raise UnreadableText(
            f"{path}: it isn't known where the text is in {kind}. Convert it to one of {known_suffixes()}."
        )
    return Corpus(name=str(path), description=f"the file {path.name}", read=lambda: reader(path, text_field))


def folder_corpus(folder: Path, text_field: str) -> Corpus:
    """The corpus of all readable files below a folder, in sorted order."""
    files = files_of(folder)
    return Corpus(
        name=str(folder),
        description=files.description,
        read=lambda: (text for path in files.read for text in READERS[suffix_of(path) or ""](path, text_field)),
    )


# --- the Hub


def hub_corpus(spec: str, text_field: str) -> Corpus:
    """The corpus of a data set on the Hub, named `owner/name[:config[:split]]`."""
    match = HUB_NAME.fullmatch(spec)
    assert match is not None, spec
    name, config, split = match["id"], match["config"], match["split"]
    if name == "allenai/c4":
        config, split = config or "en", split or "validation"
    split = split or "train"
    full_name = f"{name}:{config or 'default'}:{split}"
    return Corpus(
        name=full_name,
        description=f"the Hub data set {name}" + (f", {config}" if config else "") + f", {split} split",
        read=lambda: read_hub(name, config, split, full_name, text_field),
    )


def read_hub(name: str, config: str | None, split: str, full_name: str, text_field: str) -> Iterator[str]:
    """Yield the texts of a data set on the Hub as they are streamed."""
    try:
        import datasets  # optional, and a second to import
    except ModuleNotFoundError as error:
        raise HubUnavailable(
            f"Reading {full_name} needs the package `datasets`, which isn't installed. Install it with "
            "`pip install 'rareneuron[hub]'`, or name a file or folder of text with `--data`."
        ) from error
    try:
        records = datasets.load_dataset(name, config, split=split, streaming=True)
        for number, record in enumerate(records, start=1):
            if text_field not in record:
                refuse_field(full_name, text_field, sorted(record))
            yield checked_text(record[text_field], text_field, f"{full_name}, record {number}")
    except HUB_ERRORS as error:
        raise HubUnavailable(
            f"The Hub data set {full_name} can't be read from here ({type(error).__name__}: {error}). Check its name "
            "and the connection, or name a file or folder of text with `--data`."
        ) from error
