"""Which types are rare: unigram counts and thresholds on them (App. 5.3.1, stage 1).

p = (count + 1) / Σ(count + 1) over the model's whole vocabulary, padding rows included; a type is rare where p
is strictly below a threshold. The smoothing decides nothing but the scale of p: a type never seen is rarer
than one seen once, with or without it. Types as common as the threshold itself are not rare, so ties at the
threshold make the rare half a little smaller than half (GPT-2 on OpenWebText: 25,126 of 50,257). Stage 2, valid
words, is in `words`.
"""

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int, Int32, Int64, Num

from rareneuron.data import Rule
from rareneuron.errors import InvalidConfig, UnusableCounts, VocabularyMismatch
from rareneuron.links import expanded
from rareneuron.shown import Shown

COUNT_SUFFIXES = (".npy", ".npz", ".parquet")
TOKEN_COLUMNS = ("token", "id")
MOST_TYPES = 1 << 27  # a file of a few bytes can claim to hold any number
# numpy reads a header with Python's own parser, and believes what it says.
DAMAGED = (
    *(ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError, TypeError, OverflowError, MemoryError),
    *(NotImplementedError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error, pa.ArrowException),
)

SUM_GAP = 1e-3  # from 1, of probabilities that were summed in float32 over a large vocabulary
ELBOW_WINDOW = 2_000  # ranks in each least-squares fit
ELBOW_DEVIATIONS = 3.0  # a change of slope is a candidate beyond mean + 3 sd


@dataclass(frozen=True, kw_only=True)
class RareTypes(Shown):
    """The rare types of a vocabulary: those with `p < threshold`; of counts, p = (count + 1) / Σ(count + 1)."""

    mask: Bool[np.ndarray, " vocab"]
    threshold: float  # a probability; 1.0 where every type is taken
    threshold_index: int | None  # from 0, in the types sorted by p descending; None where every type is taken
    count_at_threshold: int | None  # of that type, unsmoothed; None of probabilities
    count_total: int | None  # Σ(count + 1); None of probabilities
    n_types: int
    mass: float  # share of all occurrences (unsmoothed counts, or p) that are of rare types
    over: Rule
    percentile: float | None  # None where the rule has none


def rare_types(
    counts: Num[np.ndarray, " types"],
    percentile: float | int = 50,
    over: Rule = "types",
    vocab_size: int | None = None,
) -> RareTypes:
    """Decide which types of a vocabulary are rare, from how often each occurs in the training text.

    A type is rare where its smoothed probability p = (count + 1) / Σ(count + 1) lies strictly below a threshold: the
    first stage of the paper's filter (App. 5.3.1). `over` says where the threshold is, in the descending order of p:

    - `"types"` (paper): p of the type at index ⌊V · (1 - percentile/100)⌋;
    - `"occurrences"`: the same rule with every type repeated count + 1 times, so p of the type that holds the
      occurrence at index ⌊Σ(count + 1) · (1 - percentile/100)⌋; rare types hold at most `percentile` % of the mass;
    - `"elbow"`: p where the log-log curve of p by rank bends most (`elbow_index`);
    - `"none"`: every type.

    Args:
        counts: How often each type occurs, by token id: whole numbers, [types]. Or the probability of each type of the
            vocabulary, in float64: these are taken as they are, unsmoothed.
        percentile: Between 0 and 100, exclusive; what it is a share of, `over` says. Not used by "elbow" and "none".
        over: The rule.
        vocab_size: Rows of the model's embedding. Counts are padded with zeros to this length.

    Returns:
        A mask over the vocabulary, [vocab], with the threshold as a probability, as a count and as an index, the number
        of rare types, and their share of all occurrences.

    Raises:
        InvalidConfig: There is no such rule, or the percentile is out of range.
        UnusableCounts: Counts are neither whole numbers nor positive probabilities, are negative, all zero or more than
            `vocab_size`, or the curve has no elbow.

    Source:
        App. 5.3.1, stage 1.

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> counts = np.array([100, 0, 5, 20, 1, 2])
        >>> rare = rn.rare_types(counts, percentile=50)
        >>> np.flatnonzero(rare.mask), rare.count_at_threshold
        (array([1, 4]), 2)
        >>> rare.n_types, round(rare.mass, 4)  # two of six types, and one of 128 occurrences
        (2, 0.0078)
    """
    exact = not np.issubdtype(counts.dtype, np.floating)
    if exact:
        counts = pad_counts(check_counts(counts, "counts"), vocab_size or len(counts))
    else:
        refuse_other_than_p(counts)
    weights = counts + 1 if exact else counts
    descending = np.sort(weights)[::-1]
    if over not in get_args(Rule):
        raise InvalidConfig(f"There is no rule {over!r} for what is rare. The rules are: {', '.join(get_args(Rule))}.")
    if over in ("types", "occurrences") and not 0 < percentile < 100:
        raise InvalidConfig(
            f"percentile is {percentile}, but a threshold lies between 0 and 100. "
            "To take every type, use the rule 'none'."
        )
    index: int | None
    match over:
        case "types":
            index = floor_of_rest(len(descending), percentile)
        case "occurrences":
            total = descending.sum()
            occurrence = floor_of_rest(int(total), percentile) if exact else total * (100 - percentile) / 100
            index = int(np.searchsorted(np.cumsum(descending), occurrence, side="right"))
        case "elbow":
            index = elbow_index(descending / descending.sum())
        case "none":
            index = None
    mask = np.ones(len(counts), bool) if index is None else weights < descending[index]
    return RareTypes(
        mask=mask,
        threshold=1.0 if index is None else float(descending[index] / descending.sum()),
        threshold_index=index,
        count_at_threshold=None if index is None or not exact else int(descending[index]) - 1,
        count_total=int(descending.sum()) if exact else None,
        n_types=int(mask.sum()),
        mass=float(counts[mask].sum() / counts.sum()),
        over=over,
        percentile=float(percentile) if over in ("types", "occurrences") else None,
    )


def refuse_other_than_p(p: Num[np.ndarray, " types"]) -> None:
    """Refuse numbers that aren't the probabilities of all types of a vocabulary."""
    if not (bool(np.isfinite(p).all()) and bool((p >= 0).all()) and abs(float(p.sum()) - 1) < SUM_GAP):
        raise UnusableCounts(
            "counts: numbers that aren't whole, and aren't probabilities either (0 or more, with the sum 1). "
            "Give the counts themselves, or p of every type."
        )


def floor_of_rest(n: int, percentile: float | int) -> int:
    """⌊n · (1 - percentile/100)⌋, exactly."""
    return math.floor(n * (100 - percentile) / 100)  # not n·(1 - percentile/100): 10·(1 - 0.9) is 0.9999…


def elbow_index(p: Float64[np.ndarray, " rank"]) -> int:
    """The index at which the tail of a rank-frequency curve bends most; `p` is sorted descending.

    Least-squares slopes of log p on log rank in windows of 2,000 ranks, one starting at every index from
    max(V/2, 4,000). Changes of slope between neighbours beyond mean + 3 sd are candidates; the elbow is the start
    of the window after the largest.
    """
    start = max(len(p) // 2, 2 * ELBOW_WINDOW)
    if len(p) < start + 2 * ELBOW_WINDOW:
        raise UnusableCounts(
            f"The elbow rule compares slopes in windows of {ELBOW_WINDOW:,} types beyond rank {start:,}, and the "
            f"vocabulary has {len(p):,} types, which leaves too few. Use a percentile over types or occurrences."
        )
    log_rank = np.log(np.arange(1, len(p) + 1))[start:]
    slopes = sliding_slopes(log_rank, np.log(p)[start:], ELBOW_WINDOW)
    change = np.abs(np.diff(slopes))
    largest = int(change.argmax())
    if change[largest] <= change.mean() + ELBOW_DEVIATIONS * change.std():
        raise UnusableCounts(
            "The frequency curve has no elbow: no change of its slope lies beyond mean + 3 sd. "
            "Use a percentile over types or occurrences."
        )
    return start + largest + 1


def sliding_slopes(
    x: Float64[np.ndarray, " rank"], y: Float64[np.ndarray, " rank"], width: int
) -> Float64[np.ndarray, " window"]:
    """Least-squares slope of y on x in every window, each centred on its own means: running sums would cancel."""
    slopes = np.empty(len(x) - width + 1)
    for i in range(len(slopes)):
        centred = x[i : i + width] - x[i : i + width].mean()
        slopes[i] = centred @ y[i : i + width] / (centred @ centred)
    return slopes


def count_unigrams(
    window_blocks: Iterable[Int32[np.ndarray, "_ position"]], vocab_size: int, max_tokens: int = 50_000_000
) -> Int64[np.ndarray, " vocab"]:
    """Count how often each type is a target, which leaves out the BOS put before each window.

    Stops at the last whole window within `max_tokens` targets.
    """
    counts = np.zeros(vocab_size, np.int64)
    n = 0
    for ids in window_blocks:
        fit = (max_tokens - n) // (ids.shape[1] - 1)
        targets = check_ids(ids[:fit], vocab_size)[:, 1:]
        counts += np.bincount(targets.ravel(), minlength=vocab_size)
        n += targets.size
        if fit <= len(ids):
            break
    return counts


def check_ids(ids: Int32[np.ndarray, "context position"], vocab_size: int) -> Int32[np.ndarray, "context position"]:
    """Return the ids as they are, or refuse those for which the model's embedding has no row."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        outside = ids.max() if ids.max() >= vocab_size else ids.min()
        raise VocabularyMismatch(
            f"The text holds token id {outside}, but the model's vocabulary has {vocab_size:,} types, so this "
            "tokenizer isn't the model's. Use the tokenizer that the model was trained with."
        )
    return ids


# --- count files


def refuse_other_suffix(path: Path) -> None:
    """Refuse a file whose name doesn't say, by its suffix, how counts are written in it."""
    if path.suffix not in COUNT_SUFFIXES:
        raise UnusableCounts(
            f"{path}: counts are kept in {', '.join(COUNT_SUFFIXES)} files, and this one ends in "
            f"{path.suffix or 'nothing'!r}. Choose one of these."
        )


def load_counts(path: str | Path, vocab_size: int, tokenizer_size: int | None = None) -> Int64[np.ndarray, " vocab"]:
    """Read counts by token id from a file.

    The file is `.npy`, `.npz` (one array, or `counts`) or `.parquet` (`count`, and `token` or `id`). As many counts as
    the tokenizer has types are padded with zeros to the model's vocabulary (Pythia: 50,277 → 50,304, since embeddings
    are padded); another length means another tokenizer, and is refused.
    """
    path = expanded(path)
    if not path.is_file():
        raise UnusableCounts(f"There is no file {path}. Name a count file with `--counts`, or count with `unigrams`.")
    counts = check_counts(read_counts(path), str(path))
    if len(counts) not in (vocab_size, tokenizer_size):
        sizes = f"{vocab_size:,} types" + (f" and its tokenizer {tokenizer_size:,}" if tokenizer_size else "")
        raise UnusableCounts(
            f"{path} holds {len(counts):,} counts, but the model's vocabulary has {sizes}, so these are of another "
            "tokenizer. Count with this model's tokenizer: `rareneuron unigrams TOKENIZER DATA -o FILE`."
        )
    return pad_counts(counts, vocab_size)


def save_counts(counts: Int[np.ndarray, " vocab"], path: str | Path) -> None:
    """Write `.npy`, `.npz` or `.parquet` so that a reader never sees half a file."""
    path = expanded(path)
    refuse_other_suffix(path)
    counts = check_counts(counts, "counts")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write_counts(counts, file, path.suffix)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_counts(counts: Int64[np.ndarray, " vocab"], file: IO[bytes], suffix: str) -> None:
    """Write counts to an open file, in the form that a suffix stands for."""
    match suffix:
        case ".npy":
            np.save(file, counts, allow_pickle=False)
        case ".npz":
            np.savez_compressed(file, counts=counts)
        case _:
            pq.write_table(pa.table({"token": np.arange(len(counts)), "count": counts}), file)


def read_counts(path: Path) -> np.ndarray:
    """Read the array of counts from a file of any of the three forms; whether they are counts isn't checked."""
    refuse_other_suffix(path)
    try:
        return count_column(path) if path.suffix == ".parquet" else count_array(path)
    except DAMAGED as error:
        raise UnusableCounts(
            f"{path} isn't a readable {path.suffix} file ({error}). Files of pickled objects are never opened. "
            "Fetch or write it again."
        ) from error


def count_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, or the one of counts in a `.npz` file."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            refuse_too_many(path, max((member.file_size for member in archive.infolist()), default=0) // 8)
    with path.open("rb") as file:  # np.load leaves a damaged archive open where it opens it itself
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = loaded.files
        if "counts" not in names and len(names) != 1:
            raise UnusableCounts(
                f"{path} holds the arrays {names}, and it isn't known which are the counts. Name that array 'counts'."
            )
        return loaded["counts" if "counts" in names else names[0]]


def refuse_too_many(path: Path, n: int) -> None:
    """Refuse a file that claims to hold more counts than any vocabulary has types."""
    if n > MOST_TYPES:
        raise UnusableCounts(
            f"{path} claims {n:,} counts, and no vocabulary has so many types, so it isn't read. Write it again."
        )


def count_column(path: Path) -> np.ndarray:
    """The column of counts of a Parquet file, in the order of token ids."""
    refuse_too_many(path, pq.read_metadata(path).num_rows)
    table = pq.read_table(path)
    names = table.column_names
    if len(names) == 1:
        return whole_numbers(table, names[0], path)
    ids = next((name for name in TOKEN_COLUMNS if name in names), None)
    if ids is None or "count" not in names:
        raise UnusableCounts(
            f"{path} has the columns {names}, and it isn't known which are the counts. Name them 'token' (or 'id') and "
            "'count', or keep a single column in order of token id."
        )
    token, count = whole_numbers(table, ids, path), whole_numbers(table, "count", path)
    order = np.argsort(token)
    if not np.array_equal(token[order], np.arange(len(token))):
        raise UnusableCounts(
            f"{path}: column {ids!r} doesn't hold each token id from 0 to {len(token) - 1:,} once, so it isn't known "
            "how large its vocabulary is. Write one row for every id, with count 0 where it never occurs."
        )
    return count[order]


def whole_numbers(table: pa.Table, name: str, path: Path) -> np.ndarray:
    """A column of a table as an array; anything but whole numbers is refused."""
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UnusableCounts(
            f"{path}: column {name!r} is of type {column.type} with {column.null_count} missing values, not whole "
            "numbers. Store whole numbers."
        )
    return column.to_numpy()


def check_counts(counts: np.ndarray, name: str) -> Int64[np.ndarray, " types"]:
    """Return counts in int64, or refuse what can't be counts; `name` says in the message which they are."""
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer):
        raise UnusableCounts(
            f"{name}: shape {counts.shape} and type {counts.dtype}, but counts are whole numbers in one dimension, by "
            "token id. Store the counts themselves, not probabilities."
        )
    if not counts.any():
        raise UnusableCounts(f"{name}: no type occurs at all, so none is rarer than another. Count a larger text.")
    if counts.min() < 0 or counts.sum(dtype=float) >= 2**62:  # a sum in int64 must not wrap
        raise UnusableCounts(
            f"{name}: values from {counts.min()} to {counts.max()}, which can't be counts of tokens. "
            "Count again, in int64."
        )
    return counts.astype(np.int64)


def pad_counts(counts: Int64[np.ndarray, " types"], vocab_size: int) -> Int64[np.ndarray, " vocab"]:
    """Counts with zeros added for the rows of the embedding that no token uses."""
    if len(counts) > vocab_size:
        raise UnusableCounts(
            f"There are {len(counts):,} counts for a vocabulary of {vocab_size:,} types, so they are of another "
            "tokenizer. Count with this model's tokenizer."
        )
    return np.concatenate([counts, np.zeros(vocab_size - len(counts), np.int64)])
