import inspect

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from rareneuron.data.rarity import (
    count_unigrams,
    elbow_index,
    load_counts,
    rare_types,
    save_counts,
)
from rareneuron.errors import InvalidConfig, UnusableCounts, VocabularyMismatch

PYTHIA = ("pythia-unigrams.npy", 50_304, 50_277)
GPT2 = ("gpt2-small-unigrams_openwebtext-2M_rows_500000.npy", 50_257, 50_257)


# --- the rule


def test_half_of_the_types_are_rare():
    rare = rare_types(np.array([0, 9, 3, 1, 7, 5]))  # smoothed: 1, 10, 4, 2, 8, 6 of 31; sorted: 10, 8, 6, 4, 2, 1
    assert rare.threshold_index == 3
    assert rare.threshold == 4 / 31
    assert (rare.count_at_threshold, rare.count_total) == (3, 31)
    assert rare.mask.tolist() == [True, False, False, True, False, False]
    assert rare.n_types == 2
    assert rare.mass == 1 / 25  # of the occurrences themselves, not of count + 1
    assert (rare.over, rare.percentile) == ("types", 50)


def test_ties_with_the_threshold_are_not_rare():
    rare = rare_types(np.array([9, 2, 2, 2, 2, 1]))
    assert rare.threshold_index == 3
    assert rare.mask.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(("percentile", "index"), [(50, 5), (90, 1), (10, 9), (75, 2), (99, 0), (30, 7)])
def test_percentile_over_types(percentile, index):
    rare = rare_types(np.arange(10), percentile)
    assert rare.threshold_index == index
    assert rare.n_types == 10 - index - 1  # all distinct: those after the threshold


def test_padding_counts_as_types():
    counts = np.array([5, 9, 3, 1])
    padded = rare_types(counts, vocab_size=8)
    assert (len(padded.mask), padded.threshold_index) == (8, 4)
    assert padded.threshold == 1 / 26  # of count + 1 over all eight
    assert padded.n_types == 0  # the threshold is itself that of a type never seen, and none is rarer
    assert rare_types(counts, vocab_size=6).mask.tolist() == [False] * 4 + [True] * 2


def test_percentile_over_occurrences():
    counts = np.array([2, 0, 0, 4])  # smoothed 3, 1, 1, 5: the sorted occurrences are 5 × D, 3 × A, B, C
    assert rare_types(counts, 50, "occurrences").threshold_index == 1  # the occurrence at index 5 is an A
    assert rare_types(counts, 50, "occurrences").mask.tolist() == [False, True, True, False]
    assert rare_types(counts, 51, "occurrences").threshold_index == 0  # index ⌊4.9⌋ is a D
    assert rare_types(counts, 51, "occurrences").mask.tolist() == [True, True, True, False]


@given(
    counts=nps.arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 50)).filter(np.any),
    percentile=st.integers(1, 99),
)
def test_occurrences_are_types_repeated(counts, percentile):
    rare = rare_types(counts, percentile, "occurrences")
    repeated = sorted((c + 1 for c in counts.tolist() for _ in range(c + 1)), reverse=True)
    threshold = repeated[len(repeated) * (100 - percentile) // 100]
    assert rare.mask.tolist() == [c + 1 < threshold for c in counts.tolist()]
    assert ((counts + 1) * rare.mask).sum() <= percentile / 100 * (counts + 1).sum() + 1e-9  # 1e-9: rounding of the %


def test_none_takes_every_type():
    rare = rare_types(np.array([3, 0, 5]), over="none")
    assert rare.mask.all()
    assert (rare.threshold, rare.threshold_index, rare.n_types, rare.mass, rare.percentile) == (1.0, None, 3, 1.0, None)
    assert (rare.count_at_threshold, rare.count_total) == (None, 11)


def zipf_then(tail: np.ndarray) -> np.ndarray:
    p = np.arange(1, 12_001) ** -1.0
    p[-len(tail) :] *= tail
    return p / p.sum()


@pytest.mark.parametrize("n_never_seen", [3, 40])
def test_elbow_is_where_the_slope_changes_most(n_never_seen):
    p = zipf_then(np.full(n_never_seen, 1e-4))
    slopes = np.array(
        [np.polyfit(np.log(np.arange(i + 1, i + 2_001)), np.log(p[i : i + 2_000]), 1)[0] for i in range(6_000, 10_001)]
    )
    index = elbow_index(p)
    assert index == 6_000 + int(np.abs(np.diff(slopes)).argmax()) + 1
    assert index == 10_001 - n_never_seen  # the first window that reaches a type never seen


def test_a_curve_that_bends_gently_has_no_elbow():
    with pytest.raises(UnusableCounts, match=r"no elbow.*mean \+ 3 sd"):
        elbow_index(zipf_then(np.arange(8_000, 12_000) ** -2.0 * 8_000**2))


def test_a_small_vocabulary_has_no_elbow():
    with pytest.raises(UnusableCounts, match=r"windows of 2,000 types.*percentile"):
        rare_types(np.arange(7_000), over="elbow")


@pytest.mark.parametrize("percentile", [0, 100, -1, 150])
def test_percentiles_without_a_threshold_are_refused(percentile):
    with pytest.raises(InvalidConfig, match=f"percentile is {percentile}.*'none'"):
        rare_types(np.arange(10), percentile)


def test_unknown_rules_are_refused():
    with pytest.raises(InvalidConfig, match=r"no rule 'tokens'.*types, occurrences, elbow, none"):
        inspect.unwrap(rare_types)(np.arange(10), over="tokens")  # unwrapped: beartype would refuse it first


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(5, int), "no type occurs"),
        (np.array([1, -2]), "can't be counts"),
        (np.array([2**62, 2**62]), "can't be"),
    ],
)
def test_what_cannot_be_counts_is_refused(counts, message):
    with pytest.raises(UnusableCounts, match=message):
        rare_types(counts)


def test_more_counts_than_types_are_refused():
    with pytest.raises(UnusableCounts, match="10 counts for a vocabulary of 8 types"):
        rare_types(np.arange(10), vocab_size=8)


# --- the published count files: numbers of the reference, with the digits it gives


@pytest.mark.parametrize(
    ("source", "total", "zeros", "index", "threshold", "n_types", "mass"),
    [
        (PYTHIA, 300_039_168_000, 214, 25_152, "3.1731e-06", 25_151, "4.72"),
        (GPT2, 563_152_038, 166, 25_128, "2.6243e-06", 25_126, "3.53"),
    ],
)
def test_published_counts(reference_data, source, total, zeros, index, threshold, n_types, mass):
    """n_types is the strict rule's.

    25,152 (Pythia) and 25,128 (GPT-2), which go round, count types by their place in the sorting, from the index
    on and after it. The threshold's own type, and in GPT-2's counts two after it that are as common, aren't rare.
    """
    name, vocab_size, tokenizer_size = source
    counts = load_counts(reference_data / "unigrams" / name, vocab_size, tokenizer_size)
    raw = np.load(reference_data / "unigrams" / name, allow_pickle=False)
    assert len(raw) == tokenizer_size
    assert (counts.sum(), (raw == 0).sum(), len(counts)) == (total, zeros, vocab_size)
    rare = rare_types(counts)
    assert rare.threshold_index == index
    assert f"{rare.threshold:.4e}" == threshold
    assert rare.n_types == n_types
    assert f"{100 * rare.mass:.2f}" == mass
    smoothed = counts + 1
    assert f"{100 * smoothed[rare.mask].sum() / smoothed.sum():.2f}" == mass  # these digits don't tell the two apart


def test_published_elbow(reference_data):
    counts = load_counts(reference_data / "unigrams" / PYTHIA[0], *PYTHIA[1:])
    rare = rare_types(counts, over="elbow")
    assert rare.threshold_index == 48_064
    assert f"{rare.threshold:.4e}" == "9.4457e-07"
    assert rare.n_types == 2_239  # "about 2,240"


# --- counting


def test_targets_are_counted():
    blocks = [np.array([[0, 1, 2], [0, 2, 2]], np.int32), np.array([[0, 3, 0]], np.int32)]
    assert count_unigrams(blocks, 5).tolist() == [1, 1, 3, 1, 0]  # the first position of a window is never a target


@pytest.mark.parametrize(("max_tokens", "counted"), [(6, 6), (5, 4), (3, 2), (1, 0), (100, 6)])
def test_counting_stops_at_whole_windows(max_tokens, counted):
    blocks = [np.array([[0, 1, 2], [0, 2, 2]], np.int32), np.array([[0, 3, 0]], np.int32)]
    assert count_unigrams(blocks, 5, max_tokens).sum() == counted


def test_counting_reads_no_further_than_it_counts():
    def blocks():
        yield np.array([[0, 1, 2]], np.int32)
        raise AssertionError("a second block was read")

    assert count_unigrams(blocks(), 5, max_tokens=2).sum() == 2


@pytest.mark.parametrize("outside", [5, -1])
def test_ids_outside_the_vocabulary_are_refused(outside):
    with pytest.raises(VocabularyMismatch, match=f"id {outside}, but the model's vocabulary has 5 types"):
        count_unigrams([np.array([[outside, 1]], np.int32)], 5)


# --- count files


@pytest.mark.parametrize("name", ["c.npy", "c.npz", "c.parquet"])
def test_counts_survive_the_disk(tmp_path, name):
    counts = np.array([4, 0, 7, 300_039_168_000])
    save_counts(counts, tmp_path / name)
    save_counts(counts, tmp_path / name)  # over an older file
    assert np.array_equal(load_counts(tmp_path / name, 4), counts)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_counts_make_the_folder_they_go_to(tmp_path):
    save_counts(np.array([4, 1]), tmp_path / "new" / "deep" / "c.npy")
    assert load_counts(tmp_path / "new" / "deep" / "c.npy", 2).tolist() == [4, 1]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_counts(np.array([1, 2]), tmp_path / "c.npy")

    def half(file, counts, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_counts(np.array([3, 4]), tmp_path / "c.npy")
    assert load_counts(tmp_path / "c.npy", 2).tolist() == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["c.npy"]


def test_counts_of_the_tokenizer_are_padded_to_the_model(tmp_path):
    save_counts(np.array([4, 1, 7]), tmp_path / "c.npy")
    assert load_counts(tmp_path / "c.npy", 5, tokenizer_size=3).tolist() == [4, 1, 7, 0, 0]
    with pytest.raises(UnusableCounts, match=r"holds 3 counts.*5 types and its tokenizer 4.*rareneuron unigrams"):
        load_counts(tmp_path / "c.npy", 5, tokenizer_size=4)
    with pytest.raises(UnusableCounts, match=r"holds 3 counts.*5 types, so"):
        load_counts(tmp_path / "c.npy", 5)


@pytest.mark.parametrize("vocab_size", [2, 4])
def test_counts_of_another_length_are_refused(tmp_path, vocab_size):
    save_counts(np.array([4, 1, 7]), tmp_path / "c.parquet")
    with pytest.raises(UnusableCounts, match=f"3 counts.*{vocab_size} types"):
        load_counts(tmp_path / "c.parquet", vocab_size)


def test_npz_with_several_arrays_needs_one_named_counts(tmp_path):
    np.savez(tmp_path / "c.npz", counts=np.array([1, 2]), other=np.array([3]))
    assert load_counts(tmp_path / "c.npz", 2).tolist() == [1, 2]
    np.savez(tmp_path / "c.npz", frequency=np.array([1, 2]))
    assert load_counts(tmp_path / "c.npz", 2).tolist() == [1, 2]
    np.savez(tmp_path / "c.npz", one=np.array([1, 2]), other=np.array([3]))
    with pytest.raises(UnusableCounts, match=r"\['one', 'other'\].*'counts'"):
        load_counts(tmp_path / "c.npz", 2)


@pytest.mark.parametrize("ids", ["token", "id"])
def test_parquet_rows_may_be_in_any_order(tmp_path, ids):
    pq.write_table(pa.table({"count": [5, 6, 7], ids: [2, 0, 1], "text": list("abc")}), tmp_path / "c.parquet")
    assert load_counts(tmp_path / "c.parquet", 3).tolist() == [6, 7, 5]


def test_a_single_parquet_column_is_in_order_of_id(tmp_path):
    pq.write_table(pa.table({"n": [5, 6, 7]}), tmp_path / "c.parquet")
    assert load_counts(tmp_path / "c.parquet", 3).tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"token": [0, 1, 1], "count": [1, 2, 3]}, "doesn't hold each token id from 0 to 2 once"),
        ({"token": [0, 1, 3], "count": [1, 2, 3]}, "doesn't hold each token id"),
        ({"token": ["a", "b"], "count": [1, 2]}, "column 'token' is of type string"),
        ({"token": [0, 1], "count": [1, None]}, "1 missing values"),
        ({"count": [0.5, 0.5]}, "column 'count' is of type double"),
        ({"word": [0, 1], "n": [1, 2]}, r"columns \['word', 'n'\].*'token' \(or 'id'\) and 'count'"),
    ],
)
def test_parquet_that_is_no_count_table_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    with pytest.raises(UnusableCounts, match=message):
        load_counts(tmp_path / "c.parquet", 2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0.5, 0.5]), "type float64.*not probabilities"),
        (np.array([[1, 2]]), r"shape \(1, 2\)"),
        (np.array([True, False]), "type bool"),
        (np.array([3, -1]), "from -1 to 3"),
    ],
)
def test_arrays_that_are_no_counts_are_refused(tmp_path, array, message):
    np.save(tmp_path / "c.npy", array)
    with pytest.raises(UnusableCounts, match=message):
        load_counts(tmp_path / "c.npy", 2)


class Trap:
    """Unpickling this raises something no guard expects."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["c.npy", "c.npz"])
def test_pickled_objects_are_never_opened(tmp_path, name):
    array = np.array([Trap()], dtype=object)
    np.save(tmp_path / name, array) if name == "c.npy" else np.savez(tmp_path / name, counts=array)
    with pytest.raises(SystemExit, match="unpickled"):  # the trap is live
        np.load(tmp_path / name, allow_pickle=True)["counts" if name == "c.npz" else ...]
    with pytest.raises(UnusableCounts, match="pickled objects are never opened"):
        load_counts(tmp_path / name, 1)


@pytest.mark.parametrize("name", ["c.npy", "c.npz", "c.parquet"])
def test_cut_files_are_refused(tmp_path, name):
    save_counts(np.arange(100), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(UnusableCounts, match="isn't a readable"):
        load_counts(tmp_path / name, 100)


def test_other_formats_and_missing_files_are_refused(tmp_path):
    (tmp_path / "c.csv").write_text("1\n2\n")
    with pytest.raises(UnusableCounts, match=r"\.npy, \.npz, \.parquet.*'\.csv'"):
        load_counts(tmp_path / "c.csv", 2)
    with pytest.raises(UnusableCounts, match=r"'\.csv'"):
        save_counts(np.array([1]), tmp_path / "d.csv")
    with pytest.raises(UnusableCounts, match=r"There is no file.*--counts"):
        load_counts(tmp_path / "none.npy", 2)
