"""Which tokens are analysed: rare targets that are words in place, and common ones from the same contexts.

A token is (context, t) and its target is the id at t + 1. The corpus streams by once: windows go to a temporary
file, counts of their types are kept on the way, and only the contexts drawn are read back. So the threshold of
rarity may come from the very corpus it is applied to, and memory is that of a block of windows and of the
contexts drawn, plus 32 bytes for each context of the corpus. Oracle: tests/data/test_selection.py, a loop over
every token.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Bool, Int32, Int64

from rareneuron.data.corpus import begins_word, plain_ids, too_short
from rareneuron.data.rarity import check_ids
from rareneuron.errors import NoRareTokens, RareNeuronError
from rareneuron.maths.significance import FEWEST_CONTEXTS

PER_CONTEXT = 16  # rare tokens; what a context costs and how alike its tokens are decide it (docs/contexts.md)
CONTEXTS_WANTED = 2 * FEWEST_CONTEXTS  # since groups are chosen on one half of them and judged on the other
CONTEXTS_PER_BLOCK = 1_024  # about 1 MB of ids, 256 a context
ID_BYTES = np.dtype(np.int32).itemsize


@contextmanager
def spooling(folder: str | Path | None) -> Iterator[None]:
    """Turn the refusal of a temporary folder, full or forbidden, into an error that names it."""
    try:
        yield
    except OSError as error:
        raise RareNeuronError(
            f"Windows of the corpus are kept in a temporary file, 4 bytes a token, and it can't be written: "
            f"{error.strerror} (temporary folder: {folder or tempfile.tempdir or 'none is usable'}). Free some space "
            "there, set the environment variable TMPDIR to a folder on another disk, or read less of the corpus "
            "(`--max-corpus-tokens`)."
        ) from error


class WindowSpool:
    """Token windows on disk, in the order they came, and the counts of their targets.

    The file has no name and is gone when the spool closes, or the process ends however it ends.
    """

    def __init__(self, context_length: int, vocab_size: int, folder: str | Path | None = None) -> None:
        self.context_length, self.vocab_size, self.folder = context_length, vocab_size, folder
        self.n_contexts = 0
        self.counts: Int64[np.ndarray, " vocab"] = np.zeros(vocab_size, np.int64)
        with spooling(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "WindowSpool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # closing tries once more to write what a full disk has refused
            self._file.close()

    @property
    def n_targets(self) -> int:
        """How many targets all windows appended have, whatever they are."""
        return self.n_contexts * (self.context_length - 1)

    def fill(
        self, window_blocks: Iterable[Int32[np.ndarray, "_ position"]], max_tokens: int | None = None
    ) -> "WindowSpool":
        """Append blocks until they end, or until the block with which there are `max_tokens` targets."""
        for ids in window_blocks:
            self.append(ids)
            if max_tokens is not None and self.n_targets >= max_tokens:
                break
        return self

    def append(self, ids: Int32[np.ndarray, "context position"]) -> None:
        """Write windows after those that are there, and count their targets."""
        assert ids.shape[1] == self.context_length, f"windows of {ids.shape[1]} in a spool of {self.context_length}"
        plain = check_ids(plain_ids(ids), self.vocab_size)
        with spooling(self.folder):
            self._file.seek(self.n_contexts * self.context_length * ID_BYTES)
            self._file.write(np.ascontiguousarray(ids).tobytes())
            self._file.flush()
        self.n_contexts += len(ids)
        self.counts += np.bincount(plain[:, 1:].ravel(), minlength=self.vocab_size)

    def blocks(self, n: int = CONTEXTS_PER_BLOCK) -> Iterator[Int32[np.ndarray, "context position"]]:
        """Yield all windows in order, `n` at a time, with the marks they came with."""
        for start in range(0, self.n_contexts, n):
            yield self.read(start, min(n, self.n_contexts - start))

    def rows(self, index: Int64[np.ndarray, " context"]) -> Int32[np.ndarray, "context position"]:
        """The windows of these contexts, in the order asked for, without marks."""
        return plain_ids(self.marked_rows(index))

    def marked_rows(self, index: Int64[np.ndarray, " context"]) -> Int32[np.ndarray, "context position"]:
        """The windows of these contexts, with the marks they came with."""
        out = np.empty((len(index), self.context_length), np.int32)
        for row, context in enumerate(index):
            out[row] = self.read(int(context), 1)
        return out

    def read(self, start: int, n: int) -> Int32[np.ndarray, "context position"]:
        """Read `n` windows from the file, from the context `start` on, as they were written."""
        self._file.seek(start * self.context_length * ID_BYTES)
        ids = np.frombuffer(self._file.read(n * self.context_length * ID_BYTES), np.int32)
        return ids.reshape(n, self.context_length)


@dataclass(frozen=True, kw_only=True)
class TokenFilter:
    """What makes a token analysable; all masks are over the model's vocabulary."""

    rare: Bool[np.ndarray, " vocab"]
    special: Bool[np.ndarray, " vocab"]  # never a target: BOS, EOS, padding
    words: Bool[np.ndarray, " vocab"] | None = None  # None: any text will do

    def countable(self, ids: Int32[np.ndarray, "context position"]) -> Bool[np.ndarray, "context token"]:
        """Mark the targets that are text, and not BOS, EOS or padding."""
        return ~self.special[ids[:, 1:]]

    def words_in_place(self, marked: Int32[np.ndarray, "context position"]) -> Bool[np.ndarray, "context token"]:
        """Mark the targets that are words and begin one where they stand, which their marks say (`corpus.BEGINS`)."""
        if self.words is None:
            return np.ones((len(marked), marked.shape[1] - 1), bool)
        return self.words[plain_ids(marked[:, 1:])] & begins_word(marked[:, 1:])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How much of the whole corpus one stage of the filter keeps."""

    name: str
    types: int  # distinct types among the targets kept
    occurrences: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tokens of a study and their contexts. Tokens are in the order of `windows`, then of position.

    Rare tokens carry the paper's statistics; the others are the contrast: common targets that pass the same word
    filter, as many from each context as it has rare ones, where it has that many.
    """

    windows: Int32[np.ndarray, "context position"]  # contexts drawn, in the order of the corpus
    context_index: Int64[np.ndarray, " context"]  # which context of the corpus each is
    context: Int64[np.ndarray, " token"]  # row of `windows`
    position: Int64[np.ndarray, " token"]  # t: where activation and residual are read
    target: Int64[np.ndarray, " token"]  # the id at t + 1, shifted here and never again
    rare: Bool[np.ndarray, " token"]
    stages: tuple[Stage, ...]
    n_requested: int  # rare tokens asked for
    n_available: int  # rare tokens in the corpus
    n_contexts_read: int
    per_context: int = 0  # rare tokens that a context gives at most; 0: all that it has

    @property
    def n_rare(self) -> int:
        """Rare tokens selected: `n_requested`, or all there are."""
        return int(self.rare.sum())

    @property
    def n_common(self) -> int:
        """Matched common tokens selected, at most as many."""
        return len(self.rare) - self.n_rare


def select_tokens(
    spool: WindowSpool,
    token_filter: TokenFilter,
    *,
    n_tokens: int = 25_088,
    per_context: int | None = None,
    rng: np.random.Generator,
) -> Selection:
    """Draw contexts, spread over the corpus, until they give `n_tokens` rare targets; use all if there are fewer.

    A context gives at most `per_context` of its rare targets, drawn at random, and as many common ones. None stands
    for `widest_spread`. The same corpus, filter and generator state give the same selection.
    """
    if spool.n_contexts == 0:
        raise too_short("The corpus", spool.context_length, "Give more text, or a shorter `--context-length`.")
    n_rare, stages = survey(spool, token_filter)
    if not n_rare.any():
        raise NoRareTokens(why_nothing_is_rare(stages, token_filter))
    most = widest_spread(n_rare, n_tokens) if per_context is None else per_context
    drawn, wanted = draw_contexts(n_rare, n_tokens, most, rng)
    marked = spool.marked_rows(drawn)
    windows = plain_ids(marked)
    eligible = token_filter.countable(windows) & token_filter.words_in_place(marked)
    is_rare = token_filter.rare[windows[:, 1:]]
    found = [
        tokens_of(np.flatnonzero(eligible[row] & is_rare[row]), np.flatnonzero(eligible[row] & ~is_rare[row]), n, rng)
        for row, n in enumerate(wanted.tolist())
    ]
    rows = np.repeat(np.arange(len(drawn)), [len(position) for position, _ in found])
    positions, rarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    target = windows[rows, positions + 1].astype(np.int64)
    sampled = Stage(name="sampled", types=len(np.unique(target[rarity])), occurrences=int(rarity.sum()))
    return Selection(
        windows=windows,
        context_index=drawn,
        context=rows,
        position=positions,
        target=target,
        rare=rarity,
        stages=(*stages, sampled),
        n_requested=n_tokens,
        n_available=int(n_rare.sum()),
        n_contexts_read=spool.n_contexts,
        per_context=most,
    )


def tokens_of(
    rare_at: Int64[np.ndarray, " rare"], common_at: Int64[np.ndarray, " common"], n: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
    """Draw `n` of a context's rare positions and as many common ones; returns them in order, and which are rare."""
    if n < len(rare_at):
        rare_at = rng.choice(rare_at, n, replace=False)
    if len(rare_at) < len(common_at):
        common_at = rng.choice(common_at, len(rare_at), replace=False)
    at = np.concatenate([rare_at, common_at])
    order = np.argsort(at)
    return at[order], (np.arange(len(at)) < len(rare_at))[order]


def survey(spool: WindowSpool, token_filter: TokenFilter) -> tuple[Int64[np.ndarray, " context"], tuple[Stage, ...]]:
    """Count rare targets per context, and what each stage keeps, in one pass over the spool."""
    names = ["all", "rare by frequency"] + ["rare words"] * (token_filter.words is not None)
    counts = np.zeros((len(names), spool.vocab_size), np.int64)
    n_rare = np.empty(spool.n_contexts, np.int64)
    start = 0
    for marked in spool.blocks():
        ids = plain_ids(marked)
        target = ids[:, 1:]
        rare = token_filter.countable(ids) & token_filter.rare[target]
        kept = rare & token_filter.words_in_place(marked)
        for stage, mask in zip(range(len(names)), (np.ones_like(rare), rare, kept), strict=False):
            counts[stage] += np.bincount(target[mask], minlength=spool.vocab_size)
        n_rare[start : start + len(ids)] = kept.sum(1)
        start += len(ids)
    stages = tuple(
        Stage(name=name, types=int((row > 0).sum()), occurrences=int(row.sum()))
        for name, row in zip(names, counts, strict=True)
    )
    return n_rare, stages


def widest_spread(n_rare: Int64[np.ndarray, " corpus"], n_tokens: int) -> int:
    """Return how many rare tokens a context should give at most: `PER_CONTEXT`, or fewer, so that 80 contexts are used.

    It is raised as far as needed where the corpus has too few contexts to give `n_tokens` otherwise.
    """
    least = int(np.clip(n_tokens // CONTEXTS_WANTED, 1, PER_CONTEXT))
    given, contexts = np.unique(n_rare, return_counts=True)  # how many contexts have how many rare tokens
    most = np.arange(1, given[-1] + 1)
    totals = (np.minimum(given, most[:, None]) * contexts).sum(1)
    enough = 1 + int(np.searchsorted(totals, min(n_tokens, int(totals[-1]))))
    return max(least, enough)


def draw_contexts(
    n_rare: Int64[np.ndarray, " corpus"], n_tokens: int, per_context: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " context"], Int64[np.ndarray, " context"]]:
    """Draw contexts spread over the corpus; returns them in its order, and how many rare tokens each shall give."""
    holding = np.flatnonzero(n_rare)
    order = holding[spread_order(len(holding), rng)]
    wanted = np.minimum(n_rare[order], per_context)
    enough = int(np.searchsorted(np.cumsum(wanted), n_tokens)) + 1
    order, wanted = order[:enough], wanted[:enough]
    wanted[-1] -= max(0, int(wanted.sum()) - n_tokens)
    corpus_order = np.argsort(order)
    return order[corpus_order], wanted[corpus_order]


def spread_order(n: int, rng: np.random.Generator) -> Int64[np.ndarray, " place"]:
    """Return 0…n−1 in a random order whose every beginning is spread evenly over them.

    Neighbours are windows of one document, so taking far ones first spreads the contexts over documents. The order is
    van der Corput's sequence, turned by a random angle: each place is as likely as any other to be among the first k.
    """
    bits = max(1, (n - 1).bit_length())
    index = np.arange(2**bits)
    reversed_bits = sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    place = ((reversed_bits / 2**bits + rng.random()) % 1 * n).astype(np.int64).clip(max=n - 1)
    first = np.unique(place, return_index=True)[1]
    return place[np.sort(first)]


def why_nothing_is_rare(stages: tuple[Stage, ...], token_filter: TokenFilter) -> str:
    """The message for a corpus in which no target passes the filter, with what each stage left and what to do."""
    found = ", ".join(f"{stage.name}: {stage.occurrences:,} of {stage.types:,} types" for stage in stages)
    words_decide = token_filter.words is not None and stages[1].occurrences > 0
    words = "turn the word filter off (`--words off`), " if words_decide else ""
    return (
        f"No token of this corpus passes the filter for rare targets ({found}), so there is nothing to analyse. "
        f"Give more text, {words}or choose otherwise what is rare (`--percentile`, `--rarity`)."
    )
