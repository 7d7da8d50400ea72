"""A folder says what is read and what is left out, and no licence is ever the corpus."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rareneuron.data import folders
from rareneuron.data.texts import open_corpus
from rareneuron.errors import MissingText, UnreadableText

LICENCE = "Permission is hereby granted, free of charge, to any person. " * 50


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return packed.getvalue().to_pybytes()


def test_a_licence_is_never_the_corpus_beside_data(tmp_path):
    (tmp_path / "LICENSE.txt").write_text(LICENCE)
    (tmp_path / "part.jsonl.zst").write_bytes(zstd(b'{"text": "school"}\n'))
    corpus = open_corpus(tmp_path)
    assert list(corpus) == ["school"]
    assert corpus.description == f"1 file in {tmp_path.name} (1 .jsonl.zst); left out: LICENSE.txt"
    (tmp_path / "part.jsonl.zst").rename(tmp_path / "part.warc.xz")
    with pytest.raises(MissingText, match=r"holds no file of text \(but 1 \.warc\.xz, LICENSE\.txt\)"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("LICENSE.txt", "license", "LICENCE-CC-BY.txt", "COPYING", "NOTICE.txt", "README.txt", "readme.txt.gz"),
        *("sha256sums.txt", "requirements.txt", "terms_of_use.txt", "CITATION.txt", "robots.txt"),
    ],
)
def test_papers_are_no_corpus(tmp_path, name):
    (tmp_path / name).write_bytes(LICENCE.encode())
    with pytest.raises(MissingText, match="holds no file of text"):
        open_corpus(tmp_path)
    assert folders.is_paper(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["authors.jsonl", "licences-of-spain.csv", "noticed.txt", "chapter-readme.txt", "terms.txt"]
)
def test_a_corpus_with_such_a_name_is_one(tmp_path, name):
    assert not folders.is_paper(tmp_path / name)


def test_a_paper_is_read_where_it_is_named_itself(tmp_path):
    (tmp_path / "LICENSE.txt").write_text(LICENCE)
    assert list(open_corpus(tmp_path / "LICENSE.txt")) == [LICENCE]


def test_a_note_beside_an_archive_is_not_what_was_meant(tmp_path):
    (tmp_path / "about.txt").write_text("How this was made.")
    (tmp_path / "texts.tar").write_bytes(bytes(10_000))
    with pytest.raises(
        UnreadableText, match=r"1 \.tar can't be read and is more than the 1 \.txt.*10,000 bytes beside 18"
    ):
        open_corpus(tmp_path)
    (tmp_path / "about.txt").write_text("A book. " * 2_000)
    assert open_corpus(tmp_path).description.endswith("(1 .txt); left out: 1 .tar")


def test_a_folder_says_what_it_holds_by_suffix_and_count(tmp_path):
    for name in ("a.txt", "b.txt", "c.json.gz", "LICENSE", "README.md", "NOTICE", "COPYING"):
        (tmp_path / name).write_bytes(gzip.compress(b"[]") if name.endswith("gz") else b"word")
    pq.write_table(pa.table({"text": ["word"]}), tmp_path / "d.parquet")
    for name in ("x.html", "y.html", "Makefile"):
        (tmp_path / name).write_text("")
    assert open_corpus(tmp_path).description == (
        f"4 files in {tmp_path.name} (2 .txt, 1 .json.gz, 1 .parquet); left out: 2 .html, 1 without a suffix, "
        "3 without a suffix, 1 .md"
    )
