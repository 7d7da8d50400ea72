"""How frequent every type is, by whichever source there is, and how often that puts a target on the wrong side.

The ladder, best first: counts of the training text (a file; published ones are known by their hash, `published`), the
model's own mean next-token distribution (`models.self_unigram`), counts of another corpus with Good–Turing's mass for
the types it never shows, and the order in which the tokenizer was built, which is an order and no frequency.

Whatever the source, a frequency is an estimate. `wrong_side` says of every type how probable it is that its true
frequency lies on the other side of the threshold: for counts by empirical Bayes (the rates of all types are a mixture
that the counts themselves tell, as in Good–Turing, and a count is Poisson given its rate), for a mean over contexts
by its standard error. It knows nothing of a text that is another kind of text. Oracle: tests/data/test_counts.py,
counts drawn again and again from frequencies that are known.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import gammaincc, gammaln, ndtr

from rareneuron.data.rarity import RareTypes, rare_types
from rareneuron.errors import UnusableCounts, VocabularyMismatch

Source = Literal["training", "model", "corpus", "merges"]

MOST_RATE = 300  # counts up to here share what their histogram tells; a larger one is known by itself
LEAST_RATE = 1e-3  # what never occurs in a thousand such texts
RATE_STEP = 0.03  # of log rate, half the error of the largest count that the mixture is fitted to
ITERATIONS = 300  # of EM, from a flat start: more of them only sharpen atoms


@dataclass(frozen=True, kw_only=True)
class Unigrams:
    """The frequency of every type, and what its error is known by."""

    source: Source
    p: Float64[np.ndarray, " vocab"]
    counts: Int64[np.ndarray, " vocab"] | None = None
    se: Float64[np.ndarray, " vocab"] | None = None  # standard error of p, clustered by context
    n_contexts: int | None = None  # that the mean was taken over
    n_positions: int | None = None

    @property
    def precision(self) -> float | None:
        """The median type's relative standard error; None where there is none, as after a single context."""
        median = np.inf if self.se is None else float(np.median(self.se / self.p))
        return median if np.isfinite(median) else None

    @property
    def n_tokens(self) -> int | None:
        """Tokens counted, or positions averaged over."""
        return self.n_positions if self.counts is None else int(self.counts.sum())


def of_training(counts: Int64[np.ndarray, " vocab"]) -> Unigrams:
    """Return the frequencies that training counts give: p = (count + 1)/Σ(count + 1), as in the paper."""
    return Unigrams(source="training", p=(counts + 1) / (counts + 1).sum(), counts=counts)


def of_corpus(counts: Int64[np.ndarray, " vocab"]) -> Unigrams:
    """Return the frequencies that the counts of a corpus give, with Good–Turing's mass for what it never shows."""
    return Unigrams(source="corpus", p=good_turing(counts), counts=counts)


def good_turing(counts: Int64[np.ndarray, " vocab"]) -> Float64[np.ndarray, " vocab"]:
    """Return probabilities from counts: the types never seen share N₁/N, the others (1 - N₁/N) by their counts.

    N₁ types occur once among N tokens. Where so many do that a type never seen would be more probable than one seen
    once, they are made equal, so the order of counts is kept.
    """
    n, never, once = int(counts.sum()), int((counts == 0).sum()), int((counts == 1).sum())
    unseen = min(once / n, never / (n + never)) if never else 0.0
    return np.where(counts == 0, unseen / max(never, 1), (1 - unseen) * counts / n)


def of_merges(tokenizer: Any, vocab_size: int) -> Unigrams:
    """Return Zipf's frequencies 1/rank in the order in which a tokenizer was built; only that order means anything.

    Byte-pair encoding merges the most frequent pair first; a unigram tokenizer keeps the log-probability of each piece.
    The alphabet comes before the first merge. Types that were not made so, special ones and padding, come last.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    place = np.full(vocab_size, np.inf)
    match model.get("type"):
        case "BPE":
            vocab = model["vocab"]
            merges = ["".join(m.split(" ")) if isinstance(m, str) else "".join(m) for m in model["merges"]]
            first = {piece: i for i, piece in reversed(list(enumerate(merges)))}
            for piece, token in vocab.items():
                place[token] = first.get(piece, -1 if len(piece) == 1 else np.inf)
        case "Unigram":
            place[: len(model["vocab"])] = [-score for _, score in model["vocab"]]
        case _:
            raise VocabularyMismatch(
                f"A tokenizer of the kind {model.get('type', type(tokenizer).__name__)} doesn't say in which order its "
                "types were made, so it can't say which are rare. Use `--counts-from model`, or counts (`--counts`)."
            )
    place[[token for token in getattr(tokenizer, "all_special_ids", []) if token < vocab_size]] = np.inf
    rank = np.empty(vocab_size)
    rank[np.argsort(place, kind="stable")] = np.arange(1, vocab_size + 1)
    return Unigrams(source="merges", p=1 / rank / (1 / rank).sum())


def rare_by(unigrams: Unigrams, percentile: float | int, over: Any) -> RareTypes:
    """Return the rare types by the rule of the study: of training counts as in the paper, of others by their p."""
    if unigrams.source == "merges" and over != "types":
        raise UnusableCounts(
            f"The order of a tokenizer's merges says which of two types is rarer, not how rare, and the rule {over!r} "
            "needs that. Use `--rarity types`, or `--counts-from model`."
        )
    if unigrams.source == "training" and unigrams.counts is not None:
        return rare_types(unigrams.counts, percentile, over)
    rare, counts = rare_types(unigrams.p, percentile, over), unigrams.counts
    if counts is None or rare.threshold_index is None:
        return rare
    return replace(
        rare,
        count_at_threshold=int(np.sort(counts)[::-1][rare.threshold_index]),
        count_total=int((counts + 1).sum()),
        mass=float(counts[rare.mask].sum() / counts.sum()),
    )


# --- on the wrong side of the threshold


def wrong_side(unigrams: Unigrams, rare: RareTypes) -> Float64[np.ndarray, " vocab"] | None:
    """Return for each type how probable it is that its true frequency says otherwise than `rare`; None if unknown.

    A type called rare is on the wrong side if its true frequency reaches the threshold, another one if it doesn't. The
    threshold is that of the true frequencies: the same percentile of them.
    """
    if rare.over == "none":
        return np.zeros(len(rare.mask))
    if unigrams.counts is not None:
        above = rate_above(unigrams.counts, rare)
    elif unigrams.se is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            above = ndtr(np.log(unigrams.p / rare.threshold) / (unigrams.se / unigrams.p))
        above = np.where(np.isnan(above), 1.0, above)  # the threshold's own type, without error: it reaches it
    else:
        return None
    return np.where(rare.mask, above, 1 - above)


def rate_above(counts: Int64[np.ndarray, " vocab"], rare: RareTypes) -> Float64[np.ndarray, " vocab"]:
    """Return for each type the probability that its rate, the count to expect of it, reaches the threshold's."""
    seen, inverse = np.unique(counts, return_inverse=True)
    at_threshold = rare.count_at_threshold
    assert at_threshold is not None, "every type is taken"
    above = gammaincc(seen + 1.0, at_threshold + 1.0)  # of many counts: a flat prior, and the threshold's own as it is
    if at_threshold > MOST_RATE / 2:
        return above[inverse]
    few, times = seen <= MOST_RATE, np.bincount(inverse)
    rates, posterior = mixture(seen[few], times[few])
    types = times[few] @ posterior  # expected at each rate
    match rare.over:
        case "types":
            weights, wanted = types, percentile_of(rare) * len(counts)
        case "occurrences":
            weights, wanted = types * rates, percentile_of(rare) * counts.sum()
        case _:
            weights, wanted = types, types[rates < at_threshold + 1].sum()
    below = np.cumsum(weights)
    at = min(int(np.searchsorted(below, wanted)), len(rates) - 1)
    share = min(1.0, (below[at] - wanted) / weights[at]) if weights[at] > 0 else 0.0  # of the types at that rate
    above[few] = posterior[:, at + 1 :].sum(1) + share * posterior[:, at]
    return above[inverse]


def percentile_of(rare: RareTypes) -> float:
    """Return the percentile of a rule that has one, as a share."""
    assert rare.percentile is not None
    return rare.percentile / 100


def mixture(
    seen: Int64[np.ndarray, " count"], times: Int64[np.ndarray, " count"]
) -> tuple[Float64[np.ndarray, " rate"], Float64[np.ndarray, "count rate"]]:
    """Return rates, and how probable each is of a type that was seen so many times.

    `times` types were seen `seen` times each. Their rates are a mixture whose weights make these numbers most likely
    (Kiefer and Wolfowitz; Robbins and Good–Turing in a smooth form), found by EM on a grid.
    """
    log_rates = np.arange(np.log(LEAST_RATE), np.log(2 * MOST_RATE), RATE_STEP)
    likely = np.exp(seen[:, None] * log_rates - np.exp(log_rates) - gammaln(seen[:, None] + 1.0))
    weights = np.full(len(log_rates), 1 / len(log_rates))
    for _ in range(ITERATIONS):
        joint = likely * weights
        weights = (times / joint.sum(1)) @ joint / times.sum()
    joint = likely * weights
    return np.exp(log_rates), joint / joint.sum(1, keepdims=True)


# --- tokenizers and published counts


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's types in the order of their ids: the same ids stand for the same text."""
    vocab = sorted((int(token), piece) for piece, token in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocab, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A count file that others published. It is recognised where a user gives it, and never shipped or fetched."""

    name: str
    of: str  # text that was counted
    sha256: str
    tokenizer: str  # fingerprint
    licence: str | None  # None: none was stated, so it may not be passed on


PUBLISHED = (
    Published(
        name="Pythia, Stolfo et al.",
        of="the whole training stream of Pythia",
        sha256="76e5945bc51540b823f5dbd26bda082995f9beb4334b2c315f9da637f0fa3a8f",
        tokenizer="af493515495a3b90b02f16dfe823baf37ce77fe253c994e5f2f8c3dc61b8b4b0",
        licence=None,
    ),
    Published(
        name="GPT-2, Stolfo et al.",
        of="500,000 texts of OpenWebText",
        sha256="fa9039d6a5acced4b2c5dc9b6f55862574e4d13002b1246b19b55bec1518c9ef",
        tokenizer="08f8f6dd8cd5c8a2cbde73c001e63acca2f66f142d2a289a37921fb0f737e770",
        licence=None,
    ),
)


def recognised(sha256: str, tokenizer: Any) -> Published | None:
    """Return the registry's entry for a file's hash; refuses one that was counted with another tokenizer."""
    found = next((entry for entry in PUBLISHED if entry.sha256 == sha256), None)
    if found is not None and found.tokenizer != tokenizer_fingerprint(tokenizer):
        raise UnusableCounts(
            f"These are the published counts “{found.name}”, made with another tokenizer than this model's: the same "
            "ids stand for other text. Count with this model's tokenizer (`rareneuron unigrams`), or leave --counts "
            "out."
        )
    return found
