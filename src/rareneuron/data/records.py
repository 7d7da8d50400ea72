"""Reads the texts of files, record by record: plain text, JSON, tables of text, Parquet, Arrow.

Everything is read in pieces, so memory doesn't depend on the size of a file: `.jsonl` by line, a JSON array by element,
`.csv` by row, `.parquet` and `.arrow` by batch, and `.txt` in blocks of about 256 kB cut at line ends. A `.txt` file is
one text: all its blocks but the last are `Unfinished`, which `corpus` joins without an EOS. A file that is not what its
name promises is refused with its line or record number.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from rareneuron.data import streams
from rareneuron.data.arrow import refuse_packed_batches
from rareneuron.data.streams import decode, read_lines, reading, refuse_length, text_blocks
from rareneuron.errors import UnreadableText

RECORDS_PER_BATCH = 256
LONGEST_TOKEN = 16  # of JSON beside strings; an error so near to the end of what was read may be a piece of one
JSONL = "A .jsonl file holds one JSON object a line."
JSON = "A .json file holds one JSON object a line, or an array of them."


class Unfinished(str):
    """A piece of a text that continues in the next piece. No token reaches across the cut."""

    __slots__ = ()


def read_txt(path: Path, text_field: str) -> Iterator[str]:
    """Yield a text file as one text, in pieces cut at line ends."""
    with reading(path) as file:
        for text, is_last in text_blocks(path, file):
            yield text if is_last else Unfinished(text)


# --- JSON


def read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    """Yield the text of every line of a file of JSON objects."""
    with reading(path) as file:
        yield from json_lines(path, file, text_field)


def read_json(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts of a JSON file, whose first sign says whether it is an array or lines."""
    with reading(path) as file:
        line = 1
        while (head := file.peek(1)[:1]) and head in b" \t\r\n":
            line += file.read(1) == b"\n"
        if head == b"[":
            yield from json_array(path, file, text_field, line)
        else:
            yield from json_lines(path, file, text_field, line, JSON)


def json_lines(
    path: Path, file: BufferedIOBase, text_field: str, first_line: int = 1, form: str = JSONL
) -> Iterator[str]:
    """Yield the text of every line; lines without anything are left out."""
    for number, line in enumerate(read_lines(path, file), start=first_line):
        text = decode(line, path, number)
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
            raise UnreadableText(f"{where}: not JSON ({error}). {form} Mend or drop that line.") from error
        yield field_of(record, text_field, where)


def json_array(path: Path, file: BufferedIOBase, text_field: str, line: int) -> Iterator[str]:
    """Yield the texts of the elements of an array, of which one at a time is in memory."""
    array = JsonArray(path, text_blocks(path, file, line))
    array.take("[")
    number = 0
    while array.sign() != "]":
        if number:
            array.take(",")
        number += 1
        yield field_of(array.element(number), text_field, f"{path}, record {number}")
    array.take("]")
    if rest := array.sign():
        array.refuse(f"{rest!r} after the array's end")


class JsonArray:
    """An array that is read as its elements are asked for."""

    def __init__(self, path: Path, blocks: Iterator[tuple[str, bool]]) -> None:
        self.path, self.blocks = path, blocks
        self.text, self.at = "", 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Read on, at least as much as is there; False at the end of the file."""
        parts = [self.text[self.at :]]
        n = 0
        for text, _ in self.blocks:
            parts.append(text)
            n += len(text)
            if n >= len(parts[0]):
                break
        self.text, self.at = "".join(parts), 0
        return n > 0

    def sign(self) -> str:
        """Return the next sign that isn't blank; none at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, sign: str) -> None:
        """Go past a sign that has to stand here."""
        if self.sign() != sign:
            self.refuse(f"{self.sign()!r} where {sign!r} should stand" if self.sign() else "it ends within the array")
        self.at += 1

    def element(self, number: int) -> Any:
        """Return the next element, reading on until it is whole."""
        self.sign()
        while True:
            try:
                found, self.at = self.decoder.raw_decode(self.text, self.at)
                return found
            except json.JSONDecodeError as error:
                whole = error.pos < len(self.text) - LONGEST_TOKEN and not error.msg.startswith("Unterminated string")
                if whole or not self.more():
                    self.refuse(error.msg, number)
            except (ValueError, RecursionError) as error:
                self.refuse(str(error), number)
            if len(self.text) > streams.MOST_BYTES:
                refuse_length(f"{self.path}, record {number}")

    def refuse(self, what: str, number: int | None = None) -> NoReturn:
        """Refuse the file."""
        where = "" if number is None else f", record {number}"
        raise UnreadableText(f"{self.path}{where}: not JSON ({what}). {JSON} Mend it, or write it again.")


def field_of(record: Any, text_field: str, where: str) -> str:
    """Return the text of a record."""
    if not isinstance(record, dict) or text_field not in record:
        refuse_field(where, text_field, sorted(record) if isinstance(record, dict) else f"a {type(record).__name__}")
    return checked_text(record[text_field], text_field, where)


def refuse_field(where: str, text_field: str, found: Any, kind: str = "field") -> NoReturn:
    """Refuse a record that lacks the field of the text."""
    raise UnreadableText(
        f"{where}: no {kind} {text_field!r} (found {found}), so it isn't known where its text is. Name the {kind} that "
        "holds the text (`--text-field`), or leave the file out."
    )


# --- tables of text


def read_table(path: Path, text_field: str, *, separator: str) -> Iterator[str]:
    """Yield the texts in a column of a .csv or .tsv file, whose first row names the columns."""
    with reading(path) as file:
        lines = (decode(line, path, number) for number, line in enumerate(read_lines(path, file), start=1))
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header = next(filled_rows(path, rows), None)
        if header is None:
            return
        if header.count(text_field) != 1:
            apart = next((sign for sign in ";\t,|" if len(header) == 1 and sign in header[0]), None)
            hint = "" if apart is None else f"; columns seem to be kept apart by {apart!r}, not by {separator!r}"
            refuse_field(f"{path}, line 1", text_field, f"{header}{hint}", "column")
        place = header.index(text_field)
        for row in filled_rows(path, rows):
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise UnreadableText(
                    f"{where}: {len(row)} columns, and the first row names {len(header)}, so it isn't known which "
                    f"holds the text. A text with {separator!r} or a line end in it stands in quotes: mend or drop "
                    "that row."
                )
            yield checked_text(row[place], text_field, where)


def filled_rows(path: Path, rows: Any) -> Iterator[list[str]]:
    """Yield the rows that aren't empty. The module's limit on the length of a field is the whole program's."""
    while True:
        before = csv.field_size_limit(streams.MOST_BYTES)
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UnreadableText(
                f"{path}, line {rows.line_num}: not a row of a table ({error}). Quotes within a text are doubled, and "
                "a text with a line end in it stands in quotes: mend or drop that row."
            ) from error
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield row


# --- Parquet and Arrow


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts in a column of a Parquet file."""
    try:
        schema = pq.read_schema(path)
        refuse_column(path, schema, text_field)
        kind = schema.field(text_field).type
        once = [text_field] if pa.types.is_string(kind) else []  # a repeated text takes its place once
        with pq.ParquetFile(path, read_dictionary=once) as file:
            batches = file.iter_batches(batch_size=RECORDS_PER_BATCH, columns=[text_field])
            yield from column_texts(path, batches, text_field)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        refuse_binary(path, "parquet", error)


def read_arrow(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts in a column of an Arrow file, as saved data sets of the library `datasets` have."""
    try:
        with pa.memory_map(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            refuse_packed_batches(path, file, 8 if is_file else 0)
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            refuse_column(path, reader.schema, text_field)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            yield from column_texts(path, batches, text_field)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        refuse_binary(path, "Arrow", error)


def column_texts(path: Path, batches: Iterable[Any], text_field: str) -> Iterator[str]:
    """Yield the texts of one column, one at a time: a text that is stored once may be repeated a million times."""
    number = 0
    for batch in batches:
        column = batch.column(text_field)
        column.validate(full=True)  # of a stranger's file: offsets may lead anywhere
        for scalar in column:
            number += 1
            yield checked_text(scalar.as_py(), text_field, f"{path}, record {number}")


def refuse_column(path: Path, schema: Any, text_field: str) -> None:
    """Refuse a table without the column of the text, or with something else in it."""
    if schema.names.count(text_field) != 1:
        refuse_field(f"{path}", text_field, schema.names, "column")
    kind = schema.field(text_field).type
    if pa.types.is_nested(kind):
        raise UnreadableText(
            f"{path}: column {text_field!r} is of type {kind}, not of strings, so it can't be tokenized. Name the "
            "column that holds the text."
        )


def refuse_binary(path: Path, kind: str, error: Exception) -> NoReturn:
    """Refuse a damaged table."""
    raise UnreadableText(
        f"{path}: not a readable {kind} file ({error}). It may be cut short: fetch or write it again."
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
    if len(value) > streams.MOST_BYTES:
        refuse_length(where)
    return value


Reader = Callable[[Path, str], Iterator[str]]
PLAIN: dict[str, Reader] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": partial(read_table, separator=","),
    ".tsv": partial(read_table, separator="\t"),
}
BINARY: dict[str, Reader] = {".parquet": read_parquet, ".arrow": read_arrow}
READERS: dict[str, Reader] = {
    **{f"{suffix}{packing}": reader for suffix, reader in PLAIN.items() for packing in ("", *streams.UNPACK)},
    **BINARY,
}


def suffix_of(path: Path) -> str | None:
    """Return the suffix by which a file is read; None where it isn't known."""
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def reader_of(path: Path) -> Reader | None:
    """Return the function that reads files of this name; None where the suffix isn't known."""
    suffix = suffix_of(path)
    return None if suffix is None else READERS[suffix]


def known_suffixes() -> str:
    """Return the suffixes of files that can be read, as a sentence lists them."""
    return f"{', '.join(PLAIN)} (each also with {listed(tuple(streams.UNPACK))}), {listed(tuple(BINARY))}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists choices."""
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
