import errno
import io
import re
import tempfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareneuron.data.corpus import BEGINS, WindowStream, plain_ids
from rareneuron.data.rarity import count_unigrams, rare_types
from rareneuron.data.selection import (
    CONTEXTS_PER_BLOCK,
    CONTEXTS_WANTED,
    Selection,
    TokenFilter,
    WindowSpool,
    select_tokens,
    spread_order,
)
from rareneuron.data.words import special_types, word_types
from rareneuron.errors import MissingText, NoRareTokens, RareNeuronError, VocabularyMismatch

VOCAB = 12
BOS = 0


def random_case(seed: int, n_contexts: int, context_length: int, bos: bool, words_on: bool):
    """Windows cut from a random stream, and random marks and masks: what they mean doesn't matter to the loop below."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, VOCAB, (n_contexts, context_length), dtype=np.int32)
    windows |= rng.choice(np.array([0, BEGINS], np.int32), windows.shape)
    if bos:
        windows[:, 0] = BOS
    special = np.zeros(VOCAB, bool)
    special[BOS] = True
    words = rng.random(VOCAB) < 0.6
    return windows, TokenFilter(rare=rng.random(VOCAB) < 0.5, special=special, words=words if words_on else None)


def every_token(windows, token_filter):
    """The definition, token by token: (context, position) → (is rare, is a word in place), special targets left out."""
    found = {}
    for context, window in enumerate(windows.tolist()):
        for position in range(len(window) - 1):
            target, begins = window[position + 1] % BEGINS, window[position + 1] >= BEGINS
            if token_filter.special[target]:
                continue
            word = token_filter.words is None or (begins and token_filter.words[target])
            found[context, position] = (bool(token_filter.rare[target]), bool(word))
    return found


def selected(selection: Selection) -> dict[tuple[int, int], bool]:
    keys = zip(selection.context_index[selection.context].tolist(), selection.position.tolist(), strict=True)
    return dict(zip(keys, selection.rare.tolist(), strict=True))


WHOLE = 10**6  # rare tokens that a context may give: all that it has


def select(windows, token_filter, n_tokens, seed=0, pieces=3, per_context: int | None = WHOLE) -> Selection:
    with WindowSpool(windows.shape[1], VOCAB) as spool:
        spool.fill(np.array_split(windows, pieces))
        rng = np.random.default_rng(seed)
        return select_tokens(spool, token_filter, n_tokens=n_tokens, per_context=per_context, rng=rng)


def check_against_the_loop(windows, token_filter, n_tokens, selection, per_context=WHOLE):
    tokens, windows = every_token(windows, token_filter), plain_ids(windows)
    rare = {key for key, (is_rare, word) in tokens.items() if is_rare and word}
    common = {key for key, (is_rare, word) in tokens.items() if not is_rare and word}
    got = selected(selection)
    got_rare, got_common = {key for key in got if got[key]}, {key for key in got if not got[key]}

    assert len(got) == len(selection.rare), "a token is selected twice"
    assert got_rare <= rare
    assert got_common <= common
    most = Counter(context for context, _ in rare)
    at_hand = sum(min(n, per_context) for n in most.values())
    assert len(got_rare) == min(n_tokens, at_hand) == selection.n_rare
    assert (selection.n_available, selection.n_requested) == (len(rare), n_tokens)

    drawn = selection.context_index.tolist()
    assert drawn == sorted(set(drawn)) == sorted({context for context, _ in got_rare})
    assert np.array_equal(selection.windows, windows[drawn])
    cut = 0
    counted = [Counter(context for context, _ in keys) for keys in (rare, got_rare, common, got_common)]
    for context in drawn:
        of = [counter[context] for counter in counted]
        cut += of[1] < min(of[0], per_context)
        assert of[1] <= per_context
        assert of[3] == min(of[1], of[2]), "not as many common tokens as rare ones"
    assert cut <= 1, "more than the last context was drawn in part"

    target = [windows[context, position + 1] for context, position in got]
    assert selection.target.tolist() == target
    assert list(got) == sorted(got)

    everything = windows[:, 1:].ravel().tolist()
    kept = [everything, [windows[c, t + 1] for (c, t), (is_rare, _) in tokens.items() if is_rare]]
    kept += [[windows[c, t + 1] for c, t in rare]] * (token_filter.words is not None)
    kept += [[windows[c, t + 1] for c, t in got_rare]]
    assert [(stage.types, stage.occurrences) for stage in selection.stages] == [(len(set(x)), len(x)) for x in kept]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_contexts=st.integers(1, 9),
    context_length=st.integers(2, 8),
    bos=st.booleans(),
    words_on=st.booleans(),
    n_tokens=st.integers(1, 40),
    per_context=st.sampled_from([1, 2, 3, WHOLE]),
)
def test_selection_agrees_with_a_loop_over_every_token(
    seed, n_contexts, context_length, bos, words_on, n_tokens, per_context
):
    windows, token_filter = random_case(seed, n_contexts, context_length, bos, words_on)
    if not any(is_rare and word for is_rare, word in every_token(windows, token_filter).values()):
        with pytest.raises(NoRareTokens):
            select(windows, token_filter, n_tokens)
        return
    selection = select(windows, token_filter, n_tokens, per_context=per_context)
    check_against_the_loop(windows, token_filter, n_tokens, selection, per_context)
    assert selection.per_context == per_context


def many_rare_tokens(n_contexts, context_length=30):
    """A corpus in which every target is rare with probability a half."""
    windows = np.random.default_rng(0).integers(0, 2, (n_contexts, context_length), dtype=np.int32)
    rare = np.arange(VOCAB) == 1
    return windows, TokenFilter(rare=rare, special=np.zeros(VOCAB, bool))


def test_by_default_eighty_contexts_are_used_where_there_are_as_many():
    windows, token_filter = many_rare_tokens(500)
    for n_tokens, per_context in ((160, 2), (400, 5), (79, 1)):
        selection = select(windows, token_filter, n_tokens, per_context=None)
        assert selection.per_context == per_context
        assert (selection.n_rare, len(selection.windows)) == (n_tokens, min(n_tokens, CONTEXTS_WANTED))
    whole = select(windows, token_filter, 400)
    assert len(whole.windows) < 40  # what taking whole contexts gave


def test_a_short_corpus_gives_more_tokens_a_context_before_it_gives_fewer_tokens():
    windows, token_filter = many_rare_tokens(20)
    selection = select(windows, token_filter, 200, per_context=None)
    assert (selection.n_rare, len(selection.windows)) == (200, 20)
    held = np.bincount(selection.context[selection.rare])
    assert held.max() == selection.per_context <= 11  # no context gives more than it must
    everything = select(windows, token_filter, 10**6, per_context=None)
    assert everything.n_rare == everything.n_available
    asked_for = select(windows, token_filter, 200, per_context=4)
    assert asked_for.n_rare == 80  # a setting is kept to


def test_every_beginning_of_the_order_is_spread_and_no_place_is_preferred():
    """Of n places the first k lie in k different k-ths, or nearly; over seeds each is among the first as often."""
    counts = np.zeros(37)
    for seed in range(1000):
        order = spread_order(37, np.random.default_rng(seed))
        counts[order[:5]] += 1
    assert sorted(order) == list(range(37))
    assert np.abs(counts / 1000 - 5 / 37).max() < 4 * np.sqrt(5 / 37 * (1 - 5 / 37) / 1000)
    for n, k in ((1000, 8), (1000, 100), (64, 16)):
        first = np.sort(spread_order(n, np.random.default_rng(1))[:k])
        gaps = np.diff(np.append(first, first[0] + n))
        assert gaps.max() <= 2 * n / k + 1
    shuffled = np.sort(np.random.default_rng(1).permutation(1000)[:100])
    assert np.diff(shuffled).max() > 2 * 10 + 1, "chance alone leaves larger gaps"
    assert spread_order(1, np.random.default_rng(0)).tolist() == [0]


@pytest.mark.parametrize("n_tokens", [500, 10**6])
def test_blocks_do_not_show_in_the_selection(n_tokens):
    edge, later_edge = CONTEXTS_PER_BLOCK, 2 * CONTEXTS_PER_BLOCK
    windows, token_filter = random_case(4, later_edge + 50, 3, bos=True, words_on=True)
    word = np.flatnonzero(token_filter.words & token_filter.rare & ~token_filter.special)[0]
    windows[edge, 1], windows[later_edge, 1] = word | BEGINS, word
    tokens = every_token(windows, token_filter)
    assert (tokens[edge, 0], tokens[later_edge, 0]) == ((True, True), (True, False))
    check_against_the_loop(windows, token_filter, n_tokens, select(windows, token_filter, n_tokens))


def test_the_loop_sees_a_second_shift():
    windows, token_filter = random_case(0, 9, 8, bos=True, words_on=False)
    selection = select(windows, token_filter, 20)
    shifted = Selection(**{**vars(selection), "position": selection.position - 1})
    with pytest.raises(AssertionError):
        check_against_the_loop(windows, token_filter, 20, shifted)


def test_the_target_is_the_next_id_and_the_filter_looks_at_it():
    windows = np.array([[0, 7, 8, 9, 8]], np.int32)
    rare = np.zeros(VOCAB, bool)
    rare[8] = True
    token_filter = TokenFilter(rare=rare, special=np.zeros(VOCAB, bool))
    selection = select(windows, token_filter, 10, pieces=1)
    assert selection.position[selection.rare].tolist() == [1, 3]  # the ids there are 7 and 9; 8 comes next
    assert selection.target[selection.rare].tolist() == [8, 8]


def test_the_same_seed_selects_the_same_and_another_does_not():
    windows, token_filter = random_case(5, 200, 8, bos=True, words_on=True)
    first, again, other = (select(windows, token_filter, 60, seed) for seed in (1, 1, 2))
    assert selected(first) == selected(again)
    assert selected(first) != selected(other)
    assert first.context_index.tolist() != other.context_index.tolist()
    assert select(windows, token_filter, 60, 1, pieces=7).context_index.tolist() == first.context_index.tolist()


def test_a_window_cut_within_a_word_does_not_begin_one(bpe):
    """Marks are found before windows are cut: of "un|quick", "quick" is no word wherever the cut falls."""
    pieces = bpe.encode("unquick")
    everything = np.ones(len(bpe), bool)
    token_filter = TokenFilter(rare=everything, special=special_types(bpe, len(bpe)), words=everything)
    cut_within = 0
    for length in range(3, 12):
        windows = np.concatenate(list(WindowStream([" ".join(["unquick"] * 60)], bpe, length, marks=True)))
        is_last = plain_ids(windows[:, 1:]) == pieces[-1]
        cut_within += is_last[:, 0].sum()
        assert not token_filter.words_in_place(windows)[is_last].any()
        assert token_filter.words_in_place(windows).any()
    assert cut_within > 3, "hardly a window begins within a word, so the case shows nothing"


def test_words_are_found_in_real_text(bpe):
    text = "The quick dogs were running.\nQuick foxes. unquick\n" * 40
    words = word_types(bpe, len(bpe))
    with WindowSpool(16, len(bpe)) as spool:
        spool.fill(WindowStream([text], bpe, 16, marks=True))
        token_filter = TokenFilter(rare=np.ones(len(bpe), bool), special=special_types(bpe, len(bpe)), words=words)
        selection = select_tokens(spool, token_filter, rng=np.random.default_rng(0))
    found = {bpe.decode([i]) for i in selection.target}
    assert found >= {"The", " quick", " dogs", " were", " running", "Quick", " foxes"}
    assert "quick" not in found  # of "unquick"


# --- the spool


def test_the_spool_gives_back_what_it_was_given():
    windows, _ = random_case(3, 50, 6, bos=True, words_on=False)
    with WindowSpool(6, VOCAB) as spool:
        spool.fill(np.array_split(windows, 4))
        assert (spool.n_contexts, spool.n_targets) == (50, 250)
        assert np.array_equal(np.concatenate(list(spool.blocks(7))), windows), "with their marks"
        spool.append(windows[:5])  # reading doesn't move the end
        assert np.array_equal(np.concatenate(list(spool.blocks())), np.concatenate([windows, windows[:5]]))
        index = np.array([49, 0, 51, 7])
        assert np.array_equal(spool.marked_rows(index), np.concatenate([windows, windows[:5]])[index])
        assert np.array_equal(spool.rows(index), plain_ids(spool.marked_rows(index)))
        assert not np.array_equal(spool.rows(index), spool.marked_rows(index)), "nothing is marked"


def test_the_spool_counts_as_it_fills():
    windows, _ = random_case(4, 50, 6, bos=True, words_on=False)
    with WindowSpool(6, VOCAB) as spool:
        spool.fill(np.array_split(windows, 4))
        assert np.array_equal(spool.counts, count_unigrams([plain_ids(windows)], VOCAB))
        assert spool.counts.sum() == spool.n_targets
        assert rare_types(spool.counts).n_types > 0


def test_filling_stops_with_the_block_that_is_enough():
    def blocks():
        yield np.zeros((4, 6), np.int32)
        yield np.zeros((4, 6), np.int32)
        raise AssertionError("a third block was read")

    with WindowSpool(6, VOCAB) as spool:
        assert spool.fill(blocks(), max_tokens=21).n_contexts == 8


def test_the_spool_leaves_nothing_on_disk(tmp_path):
    with WindowSpool(6, VOCAB, folder=tmp_path) as spool:
        spool.append(np.zeros((1_000, 6), np.int32))
        assert list(tmp_path.iterdir()) == []


class FullDisk(io.RawIOBase):
    """A file on a disk without space."""

    def seekable(self) -> bool:
        return True

    readable = writable = seekable

    def seek(self, offset, whence=0):
        return offset

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("n_contexts", [1, 1_000])  # within the file's buffer, and beyond
def test_a_full_temporary_folder_is_named_with_what_moves_it(monkeypatch, n_contexts):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: io.BufferedRandom(FullDisk()))
    said = rf"can't be written: No space left on device .*{re.escape(tempfile.gettempdir())}.*TMPDIR"
    with pytest.raises(RareNeuronError, match=said), WindowSpool(6, VOCAB) as spool:
        spool.append(np.zeros((n_contexts, 6), np.int32))


def test_without_a_temporary_folder_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(RareNeuronError, match=r"none is usable.*TMPDIR"):
        WindowSpool(6, VOCAB)


def test_ids_beyond_the_vocabulary_are_refused():
    with WindowSpool(3, VOCAB) as spool, pytest.raises(VocabularyMismatch, match=r"id 12, but.*12 types"):
        spool.append(np.array([[0, 1, VOCAB]], np.int32))


def test_windows_of_another_length_are_refused():
    with WindowSpool(3, VOCAB) as spool, pytest.raises(AssertionError, match="windows of 4 in a spool of 3"):
        spool.append(np.zeros((2, 4), np.int32))


# --- nothing to analyse


def test_a_corpus_shorter_than_a_window_is_refused(bpe):
    with WindowSpool(64, len(bpe)) as spool:
        spool.fill(WindowStream(["too short"], bpe, 64))
        nothing = np.zeros(len(bpe), bool)
        with pytest.raises(MissingText, match=r"shorter than one window of 64 tokens.*--context-length"):
            select_tokens(spool, TokenFilter(rare=nothing, special=nothing), rng=np.random.default_rng(0))


@pytest.mark.parametrize("words_on", [True, False])
def test_a_corpus_without_rare_words_says_what_each_stage_kept(words_on):
    windows = np.array([[0, 1, 2, 2]], np.int32)
    none, rare = np.zeros(VOCAB, bool), np.arange(VOCAB) == 2
    token_filter = TokenFilter(rare=rare if words_on else none, special=none, words=none if words_on else None)
    message = (
        r"all: 3 of 2 types, rare by frequency: 2 of 1 types, rare words: 0 of 0 types.*--words off.*percentile"
        if words_on
        else r"all: 3 of 2 types, rare by frequency: 0 of 0 types\).*Give more text, or choose otherwise what is rare"
    )
    with pytest.raises(NoRareTokens, match=message):
        select(windows, token_filter, 10, pieces=1)


def test_the_word_filter_is_not_blamed_for_what_frequency_left_out():
    none = np.zeros(VOCAB, bool)
    with pytest.raises(NoRareTokens, match="--percentile") as refused:
        select(np.array([[0, 1, 2]], np.int32), TokenFilter(rare=none, special=none, words=~none), 10, pieces=1)
    assert "--words" not in str(refused.value)
