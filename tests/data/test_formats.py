"""Texts as they come: packed, in tables, saved by other libraries, in other encodings, in folders with other things."""

import bz2
import codecs
import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from rareneuron.data import streams
from rareneuron.data.arrow import is_packed
from rareneuron.data.records import PLAIN, READERS, Unfinished
from rareneuron.data.texts import open_corpus
from rareneuron.errors import MissingText, UnreadableText

TEXTS = ["one, ünë\t日本", 'two\nlines "quoted"', "\\ three; " * 40, "", "[{"]


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return packed.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress}


def content(suffix: str, texts: list[str]) -> bytes:
    """Texts as other programs write them: pandas tables, json's lines and arrays."""
    table = pd.DataFrame({"id": range(len(texts)), "text": texts})
    match suffix:
        case ".txt":
            return "".join(texts).encode()
        case ".jsonl" | ".ndjson":
            return table.to_json(orient="records", lines=True, force_ascii=False).encode()
        case ".json":
            return table.to_json(orient="records", force_ascii=False).encode()
        case ".csv" | ".tsv":
            return table.to_csv(index=False, sep="," if suffix == ".csv" else "\t").encode()
    raise AssertionError(suffix)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", PLAIN)
def test_every_format_is_read_in_every_packing(tmp_path, suffix, packing):
    path = tmp_path / f"c.00000-of-00008{suffix}{packing}"
    path.write_bytes(PACK[packing](content(suffix, TEXTS)))
    corpus = open_corpus(path)
    assert list(corpus) == list(corpus) == (["".join(TEXTS)] if suffix == ".txt" else TEXTS)
    assert set(PACK) == {"", *streams.UNPACK}


def test_frames_and_members_one_after_another_are_one_file(tmp_path):
    for packing in (".gz", ".zst", ".bz2"):
        path = tmp_path / f"c.jsonl{packing}"
        path.write_bytes(PACK[packing](b'{"text": "a"}\n') + PACK[packing](b'{"text": "b"}\n'))
        assert list(open_corpus(path)) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".txt.zst", ".csv.bz2", ".json.zst"])
def test_a_packed_file_that_is_cut_short_or_damaged_is_refused(tmp_path, suffix):
    kind, packing = Path(suffix).stem, Path(suffix).suffix
    whole = PACK[packing](content(kind, [f"word {i * i}" for i in range(2000)]))
    name = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}[packing]
    for spoiled in (whole[:-20], whole[:50], b"plain words"):
        (tmp_path / f"c{suffix}").write_bytes(spoiled)
        with pytest.raises(UnreadableText, match=f"the {name} stream is cut short or damaged.*Fetch or write it again"):
            list(open_corpus(tmp_path / f"c{suffix}"))


def test_what_the_system_refuses_is_not_damage(tmp_path):
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(b'{"text": "a"}\n'))
    corpus = open_corpus(tmp_path / "c.jsonl.zst")
    (tmp_path / "c.jsonl.zst").unlink()
    with pytest.raises(FileNotFoundError):
        list(corpus)


# --- encodings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".tsv.gz", ".jsonl.zst"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(tmp_path, monkeypatch, mark, encoding, suffix):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 37)  # characters and surrogate pairs are cut in two
    kind, texts = f".{suffix.split('.')[1]}", ["one, ünë 😀", "two"]
    written = mark + content(kind, texts).decode().encode(encoding)
    (tmp_path / f"c{suffix}").write_bytes(PACK[Path(suffix).suffix if suffix.count(".") > 1 else ""](written))
    found = list(open_corpus(tmp_path / f"c{suffix}"))
    assert ["".join(found)] == ["".join(texts)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
def test_utf_16_without_its_mark_is_no_text_and_the_advice_holds(tmp_path, encoding, suffix):
    raw = content(suffix, ["School begins at nine.", "Time flies."]).decode().encode(encoding)
    (tmp_path / f"c{suffix}").write_bytes(raw)
    name = encoding.replace("utf-16-", "utf-16")
    with pytest.raises(UnreadableText, match=rf"line 1: every other byte is 0.*iconv -f {name} -t utf-8"):
        list(open_corpus(tmp_path / f"c{suffix}"))
    (tmp_path / f"c{suffix}").write_text(raw.decode(name), encoding="utf-8", newline="")  # as the advice says
    assert "".join(open_corpus(tmp_path / f"c{suffix}")) == "School begins at nine.Time flies."


def refusal(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(UnreadableText) as caught:
        list(open_corpus(path))
    return str(caught.value)


def test_advice_about_an_encoding_is_given_where_it_can_be_true(tmp_path):
    path = tmp_path / "c.txt"
    latin = refusal(path, "one\ncafé\n".encode("latin1"))
    assert "line 2: byte 0xe9 isn't UTF-8" in latin
    assert "saved in another encoding, convert it (`iconv -f ENCODING -t utf-8`)" in latin
    assert "latin1" not in latin, "nobody knows that"
    mostly = refusal(path, "naïve\ncaf".encode() + b"\xe9\n")
    assert "iconv" not in mostly, "converting would spoil the rest, which is UTF-8"
    assert "What comes before it is UTF-8, so these bytes are damaged: mend or drop that line" in mostly
    assert "ENCODING" in refusal(path, "日本語のテキスト".encode("utf-16-le"))
    zero = refusal(path, b"one\ntwo \0 three\n")
    assert "line 2: holds a byte of 0" in zero
    assert "iconv" not in zero


def test_a_mark_with_something_else_behind_it_is_refused(tmp_path):
    said = refusal(tmp_path / "c.txt", codecs.BOM_UTF16_LE + b"\x00\xd8\x41\x00\x42")
    assert "declare UTF-16, and what follows is something else" in said


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (gzip.compress(b"text"), r"is a gzip file by its first bytes.*Let its name end in \.gz"),
        (zstd(b"text"), r"is a zstd file.*\.zst"),
        (bz2.compress(b"text"), r"is a bzip2 file.*\.bz2"),
        (b"PK\x03\x04rest", "is a zip archive.*Unpack it"),
        (b"%PDF-1.7", "is a PDF"),
    ],
    ids=["gzip", "zstd", "bzip2", "zip", "pdf"],
)
def test_a_name_that_hides_another_format_is_refused(tmp_path, raw, message):
    for name in ("c.txt", "c.jsonl", "c.csv"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(UnreadableText, match=message):
            list(open_corpus(tmp_path / name))


# --- JSON


@pytest.mark.parametrize("size", [5, 64, 1 << 18])
def test_an_array_is_read_by_element_whatever_the_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(streams, "BLOCK_BYTES", size)
    records = [{"id": i, "more": {"a": [1, None, -2.5e3, True]}, "text": text} for i, text in enumerate(TEXTS * 5)]
    for indent in (None, 2):
        (tmp_path / "c.json").write_text("\n " + json.dumps(records, indent=indent) + "\n")
        assert list(open_corpus(tmp_path / "c.json")) == TEXTS * 5


def test_a_json_file_of_lines_counts_lines_and_an_array_records(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    assert list(open_corpus(path)) == ["a", "b"]
    path.write_text('\n{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(UnreadableText, match="line 3: no field 'text'"):
        list(open_corpus(path))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('[{"text": "a"}, {"text": "b"', r"c\.json, record 2: not JSON .*Mend it, or write it again"),
        ('[{"text": "a"}, {"text": "b"}', "it ends within the array"),
        ('[{"text": "a"} {"text": "b"}]', "'{' where ',' should stand"),
        ('[{"text": "a"},]', r"record 2: not JSON \(Expecting value\)"),
        ('[{"text": "a"}] []', r"'\[' after the array's end"),
        ('[{"text": "a"}, {text}' + " " * 100 + "]", "record 2: not JSON"),
        ('[{"text": "a"}, 7]', "record 2: no field 'text' .found a int"),
        ('[{"text": "a"}, {"body": "b"}]', r"record 2: no field 'text' \(found \['body'\]\)"),
        ('[{"text": "\\ud800"}]', r"record 1: 'text' holds U\+D800"),
        ("[" * 100_000, "record 1: not JSON"),
        ('[{"text": ' + "9" * 5000 + "}]", "record 1: not JSON"),
        ('{\n  "text": "a"\n}', r"line 1: not JSON.*one JSON object a line, or an array of them"),
    ],
)
def test_a_json_file_that_is_neither_is_refused(tmp_path, raw, message):
    (tmp_path / "c.json").write_text(raw)
    with pytest.raises(UnreadableText, match=message):
        list(open_corpus(tmp_path / "c.json"))


def test_an_array_is_never_held_whole(tmp_path):
    path = tmp_path / "c.json"
    with path.open("w") as file:
        file.write("[")
        file.write(",".join(json.dumps({"text": f"{i} " + "word " * 2100}) for i in range(600)))
        file.write("]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_corpus(path)) == 600
        assert tracemalloc.get_traced_memory()[1] < 3e6 < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_an_element_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MOST_BYTES", 1000)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 100)
    (tmp_path / "c.json").write_text('[{"text": "a"}, {"text": "' + "x" * 5000)
    with pytest.raises(UnreadableText, match="record 2: longer than 1,000 bytes"):
        list(open_corpus(tmp_path / "c.json"))


# --- tables


def test_a_long_text_in_a_table_leaves_the_limit_of_other_readers_alone(tmp_path):
    before = csv.field_size_limit()
    text = "word " * before
    (tmp_path / "c.csv").write_bytes(content(".csv", [text, "short"]))
    rows = iter(open_corpus(tmp_path / "c.csv"))
    assert next(rows) == text
    assert csv.field_size_limit() == before
    assert list(rows) == ["short"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("id,body\n1,a\n", r"c\.csv, line 1: no column 'text' \(found \['id', 'body'\]\).*--text-field"),
        ("id;text\n1;a\n", r"columns seem to be kept apart by ';', not by ','"),
        ("text,text\na,b\n", "line 1: no column 'text'"),
        ("id,text\n1,a\n2,b,c\n", r"line 3: 3 columns, and the first row names 2.*in quotes"),
        ('id,text\n1,"a\n2,b\n', "line 3: not a row of a table .unexpected end of data"),
        ('id,text\n1,"a"b\n', "line 2: not a row of a table"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(tmp_path, raw, message):
    (tmp_path / "c.csv").write_text(raw)
    with pytest.raises(UnreadableText, match=message):
        list(open_corpus(tmp_path / "c.csv"))


def test_a_column_is_named_and_a_table_without_rows_has_no_text(tmp_path):
    (tmp_path / "c.tsv").write_text("id\tbody\r\n1\tone, two\r\n\r\n2\t\r\n")
    assert list(open_corpus(tmp_path / "c.tsv", text_field="body")) == ["one, two", ""]
    for raw in ("", "text\n"):
        (tmp_path / "c.csv").write_text(raw)
        with pytest.raises(MissingText, match="holds no text"):
            list(open_corpus(tmp_path / "c.csv"))


# --- Arrow


def arrow(path: Path, texts: list[str], options: pa.ipc.IpcWriteOptions | None = None, **columns: object) -> Path:
    table = pa.table({"id": range(len(texts)), "text": texts} | columns)
    new = pa.ipc.new_file if columns.get("file") else pa.ipc.new_stream
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def saved(folder: Path, texts: list[str], **record: object) -> Path:
    """A data set as `datasets` saves one; `test_what_datasets_saves_is_read` holds the stand-in against the library."""
    folder.mkdir(parents=True)
    arrow(folder / "data-00000-of-00001.arrow", texts)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None} | record
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string"}}}')
    return folder


def test_a_saved_data_set_is_read_without_what_lies_beside_it(tmp_path):
    folder = saved(tmp_path / "set", TEXTS)
    arrow(folder / "cache-0123.arrow", ["of a map"])
    corpus = open_corpus(folder)
    assert list(corpus) == TEXTS
    assert corpus.description == ("1 file in set (1 .arrow); left out: cache-0123.arrow, dataset_info.json, state.json")


def test_splits_of_a_saved_data_set_are_one_corpus_or_each_its_own(tmp_path):
    for split in ("test", "train"):
        saved(tmp_path / "sets" / split, [split])
    (tmp_path / "sets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert list(open_corpus(tmp_path / "sets")) == ["test", "train"]
    assert list(open_corpus(tmp_path / "sets" / "train")) == ["train"]


def test_rows_chosen_by_a_list_are_refused(tmp_path):
    folder = saved(tmp_path / "set", TEXTS, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(UnreadableText, match=r"only some rows are meant.*flatten_indices"):
        open_corpus(folder)


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the [hub] extra (tests/SKIPS.md)")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})
    rows.select([3, 1]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "splits")
    assert list(open_corpus(tmp_path / "one")) == [TEXTS[3], TEXTS[1]]
    assert list(open_corpus(tmp_path / "splits")) == [TEXTS[0], *TEXTS]


def test_arrow_files_of_both_kinds_and_types_are_read(tmp_path):
    assert list(open_corpus(arrow(tmp_path / "f.arrow", TEXTS, file=[1] * len(TEXTS)))) == TEXTS
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        assert list(open_corpus(arrow(tmp_path / "c.arrow", TEXTS, text=pa.array(TEXTS, kind)))) == TEXTS


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_an_arrow_file_that_is_packed_inside_is_refused(tmp_path, codec):
    packed = pa.ipc.IpcWriteOptions(compression=codec)
    kinds = {"texts": pa.array(TEXTS), "dictionary": pa.array(TEXTS).dictionary_encode()}
    for name, column in kinds.items():
        for extra in ({}, {"file": [1] * len(TEXTS)}):
            path = arrow(tmp_path / f"{name}.arrow", TEXTS, packed, text=column, **extra)
            with pytest.raises(UnreadableText, match="is packed inside, so nothing bounds what it takes in memory"):
                list(open_corpus(path))


def test_a_damaged_arrow_file_is_refused(tmp_path):
    whole = arrow(tmp_path / "c.arrow", TEXTS).read_bytes()
    for raw in (whole[: len(whole) // 2], b"ARROW1\0\0" + whole[:200], b"no arrow at all", b""):
        (tmp_path / "c.arrow").write_bytes(raw)
        with pytest.raises(UnreadableText, match=r"not a readable Arrow file.*fetch or write it again"):
            list(open_corpus(tmp_path / "c.arrow"))
    with pytest.raises(pa.ArrowInvalid):
        is_packed(b"\xff" * 40)


def test_a_table_without_the_column_is_refused(tmp_path):
    arrow(tmp_path / "c.arrow", TEXTS)
    with pytest.raises(UnreadableText, match=r"no column 'body' \(found \['id', 'text'\]\)"):
        list(open_corpus(tmp_path / "c.arrow", text_field="body"))
    arrow(tmp_path / "c.arrow", TEXTS, text=[["a"]] * len(TEXTS))
    with pytest.raises(UnreadableText, match="is of type list"):
        list(open_corpus(tmp_path / "c.arrow"))


def test_every_reader_has_a_test_above():
    assert len(READERS) == len(PLAIN) * len(PACK) + 2
    assert issubclass(Unfinished, str)
