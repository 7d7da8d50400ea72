import numpy as np
import pytest

from rareneuron.data import corpus
from rareneuron.data.corpus import WindowStream, token_windows
from rareneuron.data.records import Unfinished
from rareneuron.data.texts import open_corpus
from rareneuron.errors import InvalidConfig

TEXTS = ["The quick foxes", "were running", "", "past the lazy dogs.\nQuick thinking, the dogs said."] * 7


def test_windows_are_bos_and_consecutive_slices_of_texts_joined_by_eos(bpe):
    windows = token_windows(TEXTS, bpe, context_length=8)
    stream = [i for text in TEXTS for i in [*bpe.encode(text), bpe.eos_token_id]]
    n = len(stream) // 7
    assert n > 5, "the case is too small to tell right from wrong"
    assert windows.ids.tolist() == [[bpe.bos_token_id, *stream[7 * i : 7 * i + 7]] for i in range(n)]
    assert windows.n_texts == len(TEXTS)
    assert windows.n_text_tokens == len(stream) - len(TEXTS)


@pytest.mark.parametrize(("name", "value"), [("TEXTS_PER_BATCH", 1), ("CHARACTERS_PER_BATCH", 20)])
def test_batches_do_not_show_in_the_windows(bpe, monkeypatch, name, value):
    whole = token_windows(TEXTS, bpe, context_length=8)
    calls = []
    encode = corpus.encode
    monkeypatch.setattr(corpus, "encode", lambda texts, tokenizer: calls.append(texts) or encode(texts, tokenizer))
    monkeypatch.setattr(corpus, name, value)
    pieces = token_windows(TEXTS, bpe, context_length=8)
    assert len(calls) > 5
    assert [text for texts in calls for text in texts] == TEXTS
    assert np.array_equal(pieces.ids, whole.ids)
    assert pieces.fingerprint == whole.fingerprint


def test_pieces_of_a_text_are_joined_by_nothing(bpe):
    line = TEXTS[3] + "\n"
    windows = token_windows([Unfinished(line), Unfinished(line), line, TEXTS[0]], bpe, context_length=8)
    stream = [*bpe.encode(line) * 3, bpe.eos_token_id, *bpe.encode(TEXTS[0]), bpe.eos_token_id]
    n = len(stream) // 7
    assert windows.ids[:, 1:].ravel().tolist() == stream[: 7 * n]
    assert (windows.n_texts, windows.n_text_tokens) == (2, len(stream) - 2)


def test_a_long_txt_file_is_one_text(bpe, tmp_path, monkeypatch):
    """Read in blocks, it gives the windows it gives whole: no EOS in mid-sentence."""
    (tmp_path / "c.txt").write_text("".join(f"{TEXTS[3]} {i}\n" for i in range(200)))
    whole = token_windows(open_corpus(tmp_path / "c.txt"), bpe, 8)
    monkeypatch.setattr("rareneuron.data.streams.BLOCK_BYTES", 500)
    assert len(list(open_corpus(tmp_path / "c.txt"))) > 10
    pieces = token_windows(open_corpus(tmp_path / "c.txt"), bpe, 8)
    assert (pieces.n_texts, pieces.fingerprint) == (1, whole.fingerprint)
    monkeypatch.setattr(corpus, "TEXTS_PER_BATCH", 1)
    stream = WindowStream(open_corpus(tmp_path / "c.txt"), bpe, 8)
    next(iter(stream))
    assert stream.n_texts == 1  # begun, though not read to its end


def test_fingerprint_is_of_the_windows_taken_and_begins_anew(bpe):
    stream = WindowStream(TEXTS, bpe, 8)
    first = [list(stream), stream.fingerprint, stream.n_texts][1:]
    assert [list(stream), stream.fingerprint, stream.n_texts][1:] == first
    assert WindowStream(TEXTS, bpe, 8).fingerprint != first[0]
    other = WindowStream(TEXTS[::-1], bpe, 8)
    list(other)
    assert other.fingerprint != first[0]


def test_a_window_holds_a_token_and_its_target(bpe):
    with pytest.raises(InvalidConfig, match=r"context_length is 1.*--context-length"):
        WindowStream(TEXTS, bpe, 1)
