import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from transformers import AutoTokenizer

from rareneuron.data import counts as module
from rareneuron.data.corpus import token_windows
from rareneuron.data.counts import (
    PUBLISHED,
    Unigrams,
    good_turing,
    of_corpus,
    of_merges,
    of_training,
    rare_by,
    recognised,
    tokenizer_fingerprint,
    wrong_side,
)
from rareneuron.data.rarity import load_counts, rare_types
from rareneuron.data.texts import open_corpus
from rareneuron.errors import UnusableCounts, VocabularyMismatch
from rareneuron.maths.ranks import spearman

ANY_COUNTS = nps.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 30)).filter(np.any)


# --- Good–Turing


def test_types_never_seen_share_what_types_seen_once_hold():
    p = good_turing(np.array([0, 0, 0, 0, 1, 1, 8]))
    np.testing.assert_allclose(p[:4], 2 / 10 / 4)  # N₁/N among four
    np.testing.assert_allclose(p[4:], 8 / 10 * np.array([1, 1, 8]) / 10)


@given(ANY_COUNTS)
def test_good_turing_gives_probabilities_in_the_order_of_counts(counts):
    p = good_turing(counts)
    assert p.sum() == pytest.approx(1)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(p[order]) >= -1e-15).all()  # rounding


# --- probabilities in place of counts


@given(ANY_COUNTS, st.integers(1, 99), st.sampled_from(["types", "occurrences"]))
def test_smoothed_probabilities_decide_as_their_counts_do(counts, percentile, over):
    smoothed = counts + 1
    by_counts = rare_types(counts, percentile, over)
    by_p = rare_types(smoothed / smoothed.sum(), percentile, over)
    if over == "types" or len(np.unique(smoothed)) == len(smoothed):
        # A share of a sum of rounded numbers may fall on either side of an occurrence: only the types rule is exact.
        assert by_p.n_types == by_counts.n_types or over == "occurrences"
    assert by_p.threshold == pytest.approx(by_counts.threshold) or over == "occurrences"
    assert (by_p.count_total, by_p.count_at_threshold) == (None, None)


@pytest.mark.parametrize("p", [np.array([0.5, 0.6]), np.array([-0.5, 1.5]), np.array([np.nan, 1.0])])
def test_numbers_that_are_no_probabilities_are_refused(p):
    with pytest.raises(UnusableCounts, match="aren't probabilities"):
        rare_types(p)


# --- on the wrong side of the threshold


def zipf(vocab: int = 16_000, rank: float = 10) -> np.ndarray:
    p = np.arange(rank, rank + vocab) ** -1.1
    return p / p.sum()


def shares(wrong: np.ndarray, weights: np.ndarray, rare: np.ndarray) -> np.ndarray:
    """Of all types, of occurrences of rare ones, of occurrences of common ones."""
    return np.array([wrong.mean(), *(np.average(wrong[side], weights=weights[side]) for side in (rare, ~rare))])


@pytest.mark.parametrize("n_tokens", [100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize(("over", "percentile"), [("types", 50), ("occurrences", 20)])
def test_counts_know_how_often_they_are_wrong(n_tokens, over, percentile):
    p = zipf()
    truth = rare_types(p, percentile, over).mask
    expected, found = [], []
    for seed in range(3):
        counts = np.random.default_rng(seed).poisson(n_tokens * p)
        unigrams = of_corpus(counts)
        rare = rare_by(unigrams, percentile, over)
        if not counts[rare.mask].any():
            continue
        expected.append(shares(wrong_side(unigrams, rare), counts, rare.mask))
        found.append(shares((rare.mask != truth).astype(float), counts, rare.mask))
    if expected:
        # Within a quarter, and a point for the draws: what a reader of "about 10 %" relies on.
        np.testing.assert_allclose(np.mean(expected, 0), np.mean(found, 0), rtol=0.25, atol=0.01)


def test_more_text_is_wrong_less_often():
    p = zipf()
    shares_wrong = []
    for n in (10**5, 10**6, 10**7, 10**9):
        unigrams = of_training(np.random.default_rng(0).poisson(n * p))
        shares_wrong.append(wrong_side(unigrams, rare_by(unigrams, 50, "types")).mean())
    assert shares_wrong == sorted(shares_wrong, reverse=True)
    assert shares_wrong[0] > 0.2, "the case is too tame to tell right from wrong"
    assert shares_wrong[-1] < 0.01


def test_means_over_contexts_know_how_often_they_are_wrong():
    p, rng = zipf(), np.random.default_rng(0)
    truth = rare_types(p).mask
    relative = 0.3
    drawn = p * np.exp(relative * rng.normal(size=len(p)))
    unigrams = Unigrams(source="model", p=drawn / drawn.sum(), se=relative * drawn / drawn.sum())
    rare = rare_by(unigrams, 50, "types")
    expected, found = wrong_side(unigrams, rare).mean(), (rare.mask != truth).mean()
    assert found > 0.05, "the case is too tame to tell right from wrong"
    assert expected == pytest.approx(found, rel=0.15)  # 5 % of 16,000 types are known to 4 %; the rest is the model's


def test_every_type_rare_is_never_wrong_and_merges_do_not_know(bpe):
    counts = np.array([3, 0, 5])
    assert not wrong_side(of_training(counts), rare_by(of_training(counts), 50, "none")).any()
    unigrams = of_merges(bpe, len(bpe))
    assert wrong_side(unigrams, rare_by(unigrams, 50, "types")) is None


# --- merges


def test_merges_come_in_their_order(bpe):
    vocab = len(bpe) + 3
    p = of_merges(bpe, vocab).p
    merged = [piece for piece in bpe.get_vocab() if len(piece) > 1 and not piece.startswith("<|")]
    by_id = sorted(merged, key=bpe.get_vocab().get)  # this trainer numbers types as it makes them
    assert (np.diff(p[[bpe.get_vocab()[piece] for piece in by_id]]) < 0).all()
    special = {bpe.eos_token_id, bpe.convert_tokens_to_ids("<|padding|>")}
    assert set(np.argsort(p)[:5].tolist()) == special | {vocab - 1, vocab - 2, vocab - 3}
    assert p.sum() == pytest.approx(1)


def test_pieces_of_a_unigram_tokenizer_come_by_their_score(metaspace):
    p = of_merges(metaspace, len(metaspace)).p
    assert p[metaspace.convert_tokens_to_ids("▁rare")] > p[metaspace.convert_tokens_to_ids("x")]


def test_an_order_has_no_occurrences(bpe):
    with pytest.raises(UnusableCounts, match=r"not how rare.*--rarity types"):
        rare_by(of_merges(bpe, len(bpe)), 20, "occurrences")


def test_tokenizers_without_an_order_are_refused():
    with pytest.raises(VocabularyMismatch, match="--counts-from model"):
        of_merges(object(), 10)


# --- published files


def test_the_registry_names_a_file_by_its_hash(bpe, monkeypatch):
    assert recognised("0" * 64, bpe) is None
    with pytest.raises(UnusableCounts, match="made with another tokenizer"):
        recognised(PUBLISHED[0].sha256, bpe)
    mine = module.Published(
        name="mine", of="a text", sha256="1" * 64, tokenizer=tokenizer_fingerprint(bpe), licence="MIT"
    )
    monkeypatch.setattr(module, "PUBLISHED", (mine,))
    assert recognised("1" * 64, bpe) is mine


@pytest.mark.slow
def test_published_counts_are_recognised_and_other_rungs_held_against_them(reference_data):
    """Pythia's tokenizer on 2,000 documents of C4; docs/counts.md has the table."""
    path = reference_data / "unigrams" / "pythia-unigrams.npy"
    tokenizer = AutoTokenizer.from_pretrained(reference_data / "tokenizers" / "gpt-neox")
    found = recognised(hashlib.sha256(path.read_bytes()).hexdigest(), tokenizer)
    assert found is PUBLISHED[0]
    truth = load_counts(path, 50_304, 50_277)
    known = rare_by(of_training(truth), 50, "types")
    assert wrong_side(of_training(truth), known).mean() < 1e-3  # 300 billion tokens were counted
    windows = token_windows(open_corpus(str(reference_data / "corpora" / "c4-sample.jsonl.gz")), tokenizer).ids
    counts = np.bincount(windows[:, 1:].ravel(), minlength=50_304)
    right = {}
    for unigrams in (of_corpus(counts), of_merges(tokenizer, 50_304)):
        rare = rare_by(unigrams, 50, "types")
        right[unigrams.source] = (rare.mask == known.mask).mean(), spearman(unigrams.p, truth)
    assert right["corpus"][0] > 0.6
    assert right["merges"][0] > 0.6
