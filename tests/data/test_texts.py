import gzip
import importlib
import json
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rareneuron.data import streams
from rareneuron.data.records import Unfinished
from rareneuron.data.texts import open_corpus
from rareneuron.errors import HubUnavailable, MissingText, RareNeuronError, UnreadableText

TEXTS = ["one, ünë", "two\nlines", "three " * 50]


def write(path: Path, content: list[str]) -> Path:
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(content)).encode()
    match path.suffixes:
        case [".jsonl"]:
            path.write_bytes(lines)
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress(lines))
        case [".parquet"]:
            pq.write_table(pa.table({"id": range(len(content)), "text": content}), path, row_group_size=2)
        case [".txt"]:
            path.write_bytes("".join(content).encode())
        case [".txt", ".gz"]:
            path.write_bytes(gzip.compress("".join(content).encode()))
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.parquet"])
def test_records_are_texts_any_number_of_times(tmp_path, name):
    corpus = open_corpus(write(tmp_path / name, TEXTS))
    assert list(corpus) == TEXTS
    assert list(corpus) == TEXTS
    assert corpus.name == str(tmp_path / name)
    assert name in corpus.description


@pytest.mark.parametrize("name", ["c.txt", "c.txt.gz"])
def test_a_small_txt_file_is_one_text(tmp_path, name):
    assert list(open_corpus(write(tmp_path / name, TEXTS))) == ["".join(TEXTS)]


@pytest.mark.parametrize("name", ["c.txt", "c.txt.gz"])
@pytest.mark.parametrize("size", [7, 64, 301])
def test_txt_blocks_end_with_lines_and_lose_nothing(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(streams, "BLOCK_BYTES", size)
    content = "".join(f"line {i} é\n" for i in range(100))
    blocks = list(open_corpus(write(tmp_path / name, [content])))
    assert "".join(blocks) == content
    assert len(blocks) > 2
    assert max(len(block.encode()) for block in blocks) <= 2 * size
    assert [isinstance(block, Unfinished) for block in blocks] == [True] * (len(blocks) - 1) + [False]
    if size > len("line 99 é\n".encode()):
        assert all(block.endswith("\n") for block in blocks)


@pytest.mark.parametrize("content", ["é" * 500, "word " * 200, "日本" * 300, "a" + "é" * 500])
def test_txt_lines_longer_than_a_block_are_cut_between_words_or_characters(tmp_path, monkeypatch, content):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 64)
    blocks = list(open_corpus(write(tmp_path / "c.txt", [content])))
    assert "".join(blocks) == content
    assert len(blocks) > 10
    if " " in content:
        assert all(block.startswith(" ") for block in blocks[1:-1])  # the space stays with the word after it


def test_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert list(open_corpus(tmp_path / "c.txt")) == ["hello"]


def test_a_folder_is_its_files_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "x.jsonl", ["second"])
    write(tmp_path / "a.txt", ["first"])
    write(tmp_path / "c.parquet", ["third"])
    (tmp_path / "README.md").write_text("not text of the corpus")
    (tmp_path / ".hidden.txt").write_text("hidden")
    corpus = open_corpus(tmp_path)
    assert list(corpus) == ["first", "second", "third"]
    assert corpus.description.startswith("3 files in ")
    assert corpus.description.endswith("(1 .jsonl, 1 .parquet, 1 .txt); left out: README.md")


def test_text_field_names_the_field(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"body": "here"}\n\n{"body": "there"}\n')
    assert list(open_corpus(tmp_path / "c.jsonl", text_field="body")) == ["here", "there"]


def bad(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


ok = b'{"text": "fine"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", ok + b"{text}\n", r"c\.jsonl, line 2: not JSON"),
        ("c.jsonl", ok * 3 + b'{"body": "x"}\n', r"line 4: no field 'text' \(found \['body'\]\)"),
        ("c.jsonl", ok + b'["text"]\n', r"line 2: no field 'text' \(found a list\)"),
        ("c.jsonl", ok + b'\n{"text": null}\n', r"line 3: 'text' is NoneType, not a string"),
        ("c.jsonl", ok + b'{"text": 7}\n', r"line 2: 'text' is int"),
        ("c.jsonl", ok + b'{"text": "caf\xe9"}\n', r"line 2: byte 0xe9 isn't UTF-8.*iconv"),
        (
            "c.jsonl",
            ok + b'{"text": "ab\\ud800"}\n',
            r"c\.jsonl, line 2: 'text' holds U\+D800 at character 2.*Mend or drop",
        ),
        ("c.jsonl", ok + b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", r"c\.jsonl, line 2: not JSON.*Mend or drop"),
        ("c.jsonl", ok * 2 + b"[" * 100_000 + b"\n", r"c\.jsonl, line 3: not JSON.*Mend or drop"),
        ("c.txt", b"one\ntwo\nthr\xffee\n", r"c\.txt, line 3: byte 0xff isn't UTF-8"),
        ("c.txt", b"ends within a character \xc3", r"line 1: byte 0xc3 isn't UTF-8"),
        ("c.jsonl.gz", gzip.compress(ok * 1000)[:-20], r"c\.jsonl\.gz: the gzip stream is cut short or damaged"),
        ("c.txt.gz", gzip.compress(b"text " * 1000)[:-20], r"c\.txt\.gz: the gzip stream is cut short or damaged"),
        ("c.jsonl.gz", ok, "the gzip stream is cut short or damaged"),
        ("c.parquet", b"PAR1 not really", r"c\.parquet: not a readable parquet file"),
        ("c.html", b"text\nx\n", r"c\.html: it isn't known where the text is in a \.html file.*\.jsonl"),
        ("c.warc.gz", b"text\nx\n", r"in a \.warc\.gz file.*with \.gz"),  # what it is packed in isn't the fault
        ("c", b"x", r"isn't known where the text is in a file without a suffix"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # gzip's bytes hold the time: not a stable name
)
def test_unreadable_text_is_refused_with_its_place(tmp_path, name, content, message):
    with pytest.raises(UnreadableText, match=message):
        list(open_corpus(bad(tmp_path, name, content)))


def test_invalid_bytes_are_placed_right_in_later_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 32)
    path = bad(tmp_path, "c.txt", b"a line\n" * 41 + b"bad \xff\n" + b"a line\n" * 20)
    with pytest.raises(UnreadableText, match="line 42: byte 0xff"):
        list(open_corpus(path))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["x"]}, r"no column 'text' \(found \['body'\]\)"),
        ({"text": ["x", "y", None]}, "record 3: 'text' is NoneType"),
        ({"text": [1, 2]}, "record 1: 'text' is int"),
    ],
)
def test_parquet_without_text_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    with pytest.raises(UnreadableText, match=message):
        list(open_corpus(tmp_path / "c.parquet"))


def test_cut_parquet_is_refused(tmp_path):
    content = write(tmp_path / "whole.parquet", TEXTS).read_bytes()
    with pytest.raises(UnreadableText, match="not a readable parquet file"):
        list(open_corpus(bad(tmp_path, "cut.parquet", content[:-30])))


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.jsonl.gz", "c.txt.gz", "c.parquet"])
@pytest.mark.parametrize("content", [[], ["  ", "\n"]])
def test_a_corpus_without_text_is_refused(tmp_path, name, content):
    with pytest.raises(MissingText, match=r"holds no text.*--data"):
        list(open_corpus(write(tmp_path / name, content)))


@pytest.mark.parametrize(
    "spec", ["nowhere", "nowhere/at/all", "some/file.txt", "a/b.jsonl", "owner/name:a:b:c", "owner/name:a:test[:9]"]
)
def test_a_missing_path_says_what_may_be_named(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingText, match=r"no file or folder.*owner/name\[:config\[:split\]\], with `--data`"):
        open_corpus(spec)


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", ["not asked for"])
    with pytest.raises(MissingText, match=r"is empty.*--data"):
        open_corpus("")


def test_a_path_object_is_never_a_hub_name(tmp_path):
    with pytest.raises(MissingText, match="no file or folder"):
        open_corpus(tmp_path.relative_to(tmp_path) / "owner" / "name")


def test_a_folder_without_readable_files_is_refused(tmp_path):
    (tmp_path / "a.html").write_text("x")
    with pytest.raises(MissingText, match=r"holds no file of text \(but 1 \.html\).*\.parquet or \.arrow files"):
        open_corpus(tmp_path)


# --- the Hub, by a stand-in for `datasets`: the real one is tested where it is installed, without a network


@pytest.fixture
def hub(monkeypatch):
    """Stands in for `datasets`; `hub.records` is what it streams, `hub.calls` how it was asked."""
    module = types.ModuleType("datasets")
    module.records, module.calls = [{"text": "one"}, {"text": "two"}], []  # type: ignore[attr-defined]

    def load_dataset(name, config, *, split, streaming):
        module.calls.append((name, config, split, streaming))
        if isinstance(module.records, Exception):
            raise module.records
        return iter(module.records)

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (None, ("allenai/c4", "en", "validation", True)),
        ("allenai/c4", ("allenai/c4", "en", "validation", True)),
        ("allenai/c4:de", ("allenai/c4", "de", "validation", True)),
        ("allenai/c4:en:train", ("allenai/c4", "en", "train", True)),
        ("owner/set", ("owner/set", None, "train", True)),
        ("owner/set-2:conf.1:test", ("owner/set-2", "conf.1", "test", True)),
    ],
)
def test_hub_names_are_id_config_split(tmp_path, monkeypatch, hub, spec, asked):
    monkeypatch.chdir(tmp_path)
    corpus = open_corpus(spec)
    assert hub.calls == []  # nothing is loaded before it's read
    assert list(corpus) == ["one", "two"]
    assert list(corpus) == ["one", "two"]
    assert hub.calls == [asked] * 2
    assert corpus.name == f"{asked[0]}:{asked[1] or 'default'}:{asked[2]}"


def test_a_path_that_exists_wins_over_a_hub_name(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    write(Path("owner/name/a.txt"), ["local"])
    assert list(open_corpus("owner/name")) == ["local"]
    assert hub.calls == []


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), FileNotFoundError("no such set"), ValueError("Bad split")]
)
def test_a_hub_out_of_reach_names_data(hub, error):
    hub.records = error
    with pytest.raises(HubUnavailable, match=f"allenai/c4:en:validation.*{error}.*--data"):
        list(open_corpus())


def test_a_hub_lost_midway_names_data(hub):
    def records():
        yield {"text": "one"}
        raise ConnectionError("reset")

    hub.records = records()
    stream = iter(open_corpus())
    assert next(stream) == "one"
    with pytest.raises(HubUnavailable, match=r"reset.*--data"):
        next(stream)


@pytest.mark.parametrize(
    ("record", "message"),
    [({"body": "x"}, r"no field 'text' \(found \['body'\]\)"), ({"text": 1}, "record 1: 'text' is int")],
)
def test_hub_records_without_text_are_refused(hub, record, message):
    hub.records = [record]
    with pytest.raises(UnreadableText, match=message):
        list(open_corpus())


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what `import` sees where it isn't installed
    with pytest.raises(HubUnavailable, match=r"rareneuron\[hub\].*--data"):
        list(open_corpus())


def test_the_real_datasets_library_offline_names_data():
    pytest.importorskip("datasets", reason="needs the [hub] extra (tests/SKIPS.md)")
    with pytest.raises(HubUnavailable, match=r"(?s)allenai/c4:en:validation.*--data"):
        list(open_corpus())


def test_every_error_is_for_the_user():
    errors = importlib.import_module("rareneuron.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 15
    assert all(issubclass(kind, RareNeuronError) for kind in kinds)
