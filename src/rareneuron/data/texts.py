"""Corpora as streams of texts: files, folders, Hub data sets.

Everything is read in pieces, so memory does not depend on the size of a corpus: `.jsonl` by line, `.txt` in
blocks of about 256 kB cut at line ends, `.parquet` by record batch. A `.txt` file is one text: all its blocks but the
last are `Unfinished`, which `corpus` joins without an EOS. A file that is not what its name promises
is refused with its line or record number. Bad bytes are never replaced: a replacement character would become
a token of its own, and a rare one. A folder's links may not lead out of it, and no record may fill all memory: lines
and texts are bounded, and texts that a Parquet file stores once and repeats are taken one at a time.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.errors import HTTPError  # httpx's or requests', whichever it speaks through

from rareneuron.errors import HubUnavailable, MissingText, UnreadableText
from rareneuron.links import allowed_roots, leads_out

DEFAULT_CORPUS = "allenai/c4:en:validation"  # the corpus of the paper
BLOCK_BYTES = 1 << 18
RECORDS_PER_BATCH = 256
MOST_BYTES = 1 << 28  # in one line or text; the longest novels have a hundredth of it

HUB_NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
HUB_ERRORS = (OSError, ValueError, HTTPError)  # no connection; no such data set, configuration or split; cut off
DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


class Unfinished(str):
    """A piece of a text that continues in the next piece. No token reaches across the cut."""

    __slots__ = ()


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
    path = Path(spec)
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
        raise UnreadableText(
            f"{path}: it isn't known where the text is in a file that ends in {path.suffix or 'nothing'!r}. "
            f"Convert it to one of {known_suffixes()}."
        )
    return Corpus(name=str(path), description=f"the file {path.name}", read=lambda: reader(path, text_field))


def folder_corpus(folder: Path, text_field: str) -> Corpus:
    """The corpus of all readable files below a folder, in sorted order."""
    everything = sorted(
        path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder))
    )
    refuse_links(folder, everything)
    readable = [(path, reader) for path in everything if (reader := reader_of(path)) is not None]
    if not readable:
        raise MissingText(
            f"{folder} holds no {known_suffixes()} file (but {len(everything)} others), so there is no text to read. "
            "Name another folder, or a file, with `--data`."
        )
    ignored = len(everything) - len(readable)
    return Corpus(
        name=str(folder),
        description=f"{len(readable)} files in {folder.name}"
        + (f" ({ignored} of other types ignored)" if ignored else ""),
        read=lambda: (text for path, reader in readable for text in reader(path, text_field)),
    )


def refuse_links(folder: Path, files: list[Path]) -> None:
    """Refuse links that lead out of a folder of text, but for those of a snapshot to its blobs in the Hub's cache."""
    roots = allowed_roots(folder.resolve(), "datasets")
    for path in files:
        if leads_out(path, roots):
            raise UnreadableText(
                f"{path} is a link to {path.readlink()}, outside the folder of text, and a folder from elsewhere could "
                "make any file be read so. Put a copy in its place, or name the files' own folder with `--data`."
            )


def is_hidden(path: Path) -> bool:
    """Whether a file, or a folder above it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


# --- files


def read_txt(path: Path, text_field: str) -> Iterator[str]:
    """Yield a text file as one text, in pieces cut at line ends."""
    with open_bytes(path) as file:
        line, block = 1, read_block(path, file)
        while following := read_block(path, file):  # a file of one block is one text, whatever it ends with
            cut = block_end(block)
            yield Unfinished(decode(block[:cut], path, line))
            line += block.count(b"\n", 0, cut)
            block = block[cut:] + following
        yield decode(block, path, line)


def read_block(path: Path, file: BufferedIOBase) -> bytes:
    """Read the next bytes of a text file; empty at its end."""
    try:
        return file.read(BLOCK_BYTES)
    except DAMAGED_GZIP as error:
        refuse_gzip(path, error)


def block_end(block: bytes) -> int:
    """The place at which to cut a block: after its last line, or before its last space where it has no line end.

    A block without either is cut before its last character, which may be incomplete.
    """
    if cut := block.rfind(b"\n") + 1:
        return cut
    if (cut := block.rfind(b" ")) > 0:
        return cut
    cut = len(block) - 1
    while cut > 0 and block[cut] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        cut -= 1
    return cut


def read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    """Yield the text of every line of a file of JSON objects."""
    with open_bytes(path) as file:
        for number, line in enumerate(read_lines(path, file), start=1):
            text = decode(line, path, number)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
                raise UnreadableText(
                    f"{path}, line {number}: not JSON ({error}). A .jsonl file holds one JSON object a line. "
                    "Mend or drop that line."
                ) from error
            if not isinstance(record, dict) or text_field not in record:
                found = sorted(record) if isinstance(record, dict) else f"a {type(record).__name__}"
                raise UnreadableText(
                    f"{path}, line {number}: no field {text_field!r} (found {found}), so it isn't known where its text "
                    "is. Name the field that holds the text (`--text-field`)."
                )
            yield checked_text(record[text_field], text_field, f"{path}, line {number}")


def read_lines(path: Path, file: BufferedIOBase) -> Iterator[bytes]:
    """Yield the lines of a file; one longer than `MOST_BYTES` is refused."""
    number = 0
    try:
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                refuse_length(f"{path}, line {number}")
            yield line
    except DAMAGED_GZIP as error:
        refuse_gzip(path, error)


def refuse_length(where: str) -> NoReturn:
    """Refuse a line or text that would fill all memory."""
    raise UnreadableText(
        f"{where}: longer than {MOST_BYTES:,} bytes, which no text is, so it isn't read into memory. Split it, or drop "
        "that record."
    )


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts in a column of a Parquet file."""
    try:
        schema = pq.read_schema(path)
        if text_field not in schema.names:
            raise UnreadableText(
                f"{path}: no column {text_field!r} (found {schema.names}), so it isn't known where its text is. Name "
                "the column that holds the text."
            )
        kind = schema.field(text_field).type
        if pa.types.is_nested(kind):
            raise UnreadableText(
                f"{path}: column {text_field!r} is of type {kind}, not of strings, so it can't be tokenized. Name the "
                "column that holds the text."
            )
        once = [text_field] if pa.types.is_string(kind) else []  # a repeated text takes its place once
        with pq.ParquetFile(path, read_dictionary=once) as file:
            number = 0
            for batch in file.iter_batches(batch_size=RECORDS_PER_BATCH, columns=[text_field]):
                for scalar in batch.column(0):
                    number += 1
                    yield checked_text(scalar.as_py(), text_field, f"{path}, record {number}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UnreadableText(
            f"{path}: not a readable parquet file ({error}). It may be cut short: fetch or write it again."
        ) from error


def checked_text(value: Any, text_field: str, where: str) -> str:
    """Return a record's text as it is, or refuse what can't be tokenized; `where` names the record in the message."""
    if not isinstance(value, str):
        raise UnreadableText(
            f"{where}: {text_field!r} is {type(value).__name__}, not a string, so it can't be tokenized. "
            "Mend or drop that record, or name the field that holds the text."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnreadableText(
            f"{where}: {text_field!r} holds U+{ord(value[error.start]):04X} at character {error.start}, half of a "
            "surrogate pair, which isn't a character and has no tokens. Mend or drop that record."
        ) from error
    if len(value) > MOST_BYTES:
        refuse_length(where)
    return value


def open_bytes(path: Path) -> BufferedIOBase:
    """Open a file to read its bytes, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def decode(block: bytes, path: Path, first_line: int) -> str:
    """Decode UTF-8; bytes that aren't are refused with the number of their line."""
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        raise UnreadableText(
            f"{path}, line {line}: byte 0x{block[error.start]:02x} isn't UTF-8 ({error.reason}). Guessing an encoding "
            "would change the tokens. Convert the file, e.g. `iconv -f latin1 -t utf-8`."
        ) from error
    return text.removeprefix("\ufeff") if first_line == 1 else text  # some editors begin a file with U+FEFF


def refuse_gzip(path: Path, error: Exception) -> NoReturn:
    """Refuse a gzip file that is cut short or damaged."""
    raise UnreadableText(
        f"{path}: the gzip stream is cut short or damaged ({error}), so part of the corpus is missing. "
        "Fetch or write it again."
    ) from error


Reader = Callable[[Path, str], Iterator[str]]
READERS: dict[str, Reader] = {
    ".txt": read_txt,
    ".txt.gz": read_txt,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".parquet": read_parquet,
}


def reader_of(path: Path) -> Reader | None:
    """The function that reads files of this name; None where the suffix isn't known."""
    return next((reader for suffix, reader in READERS.items() if path.name.lower().endswith(suffix)), None)


def known_suffixes() -> str:
    """The suffixes of files that can be read, as a sentence lists them."""
    return ", ".join(READERS)


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
                raise UnreadableText(
                    f"{full_name}: no field {text_field!r} (found {sorted(record)}), so it isn't known where its text "
                    "is. Name the field that holds the text (`--text-field`)."
                )
            yield checked_text(record[text_field], text_field, f"{full_name}, record {number}")
    except HUB_ERRORS as error:
        raise HubUnavailable(
            f"The Hub data set {full_name} can't be read from here ({type(error).__name__}: {error}). Check its name "
            "and the connection, or name a file or folder of text with `--data`."
        ) from error
