r"""What counting achieves on the same text: interpolated Kneser-Ney models of order 1, 2 and 3.

The loss of a small language model means little by itself; beside a trigram's it says whether the model learned more
than which words follow which. Written in arrays because the n-gram libraries on PyPI loop in Python, which at nine
million tokens takes hours. Oracle: tests/embedded/test_baselines.py, the recursion as textbooks write it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64


@dataclass(frozen=True)
class Counts:
    """Sorted keys and how often each was counted; 0 for a key that isn't there."""

    key: Int64[np.ndarray, " entry"]
    count: Int64[np.ndarray, " entry"]

    @classmethod
    def of(cls, keys: Int64[np.ndarray, " any"]) -> "Counts":
        """Count equal keys."""
        return cls(*np.unique(keys, return_counts=True))

    def __call__(self, keys: Int64[np.ndarray, " query"]) -> Int64[np.ndarray, " query"]:
        """How often each key was counted."""
        at = np.minimum(np.searchsorted(self.key, keys), len(self.key) - 1)
        return np.where(self.key[at] == keys, self.count[at], 0)


@dataclass(frozen=True)
class Level:
    """One order of the recursion: max(c(h w) - D, 0) / c(h) + D n(h) / c(h) · P(w | shorter h)."""

    gram: Counts  # c(h w): occurrences at the highest order, distinct left neighbours below
    history: Counts  # Σ_w c(h w)
    followers: Counts  # n(h): distinct w after h
    discount: float


def ngram_losses(
    training: Int32[np.ndarray, "context position"], held_out: Int32[np.ndarray, "window position"], vocab_size: int
) -> dict[str, float]:
    """Mean loss of a held-out set in nats per token, by order, over all positions but the first of a window.

    The n-th model sees n - 1 tokens back within the window, and fewer at its start.
    """
    return {
        name: float(-np.log(probabilities(training, held_out, vocab_size, order)).mean())
        for order, name in ((1, "unigram"), (2, "bigram"), (3, "trigram"))
    }


def probabilities(
    training: Int32[np.ndarray, "context position"],
    held_out: Int32[np.ndarray, "window position"],
    vocab_size: int,
    order: int,
) -> Float64[np.ndarray, "window target"]:
    """P(target | up to order - 1 tokens before it), interpolated down to the uniform distribution."""
    levels = make_levels(training, vocab_size, order)
    position = np.broadcast_to(np.arange(1, held_out.shape[1]), (len(held_out), held_out.shape[1] - 1))
    p = np.full(position.shape, 1 / vocab_size)
    for n, level in enumerate(levels, start=1):
        applies = position >= n - 1
        keys = gram_keys(held_out, n, vocab_size)[applies[:, max(0, n - 2) :].nonzero()] if n > 1 else held_out[:, 1:]
        keys = keys.reshape(-1).astype(np.int64)
        history = keys // vocab_size
        total = level.history(history)
        known = total > 0
        here = p[applies]
        share = np.maximum(level.gram(keys) - level.discount, 0) / np.maximum(total, 1)
        rest = level.discount * level.followers(history) / np.maximum(total, 1)
        here[known] = (share + rest * here)[known]
        p[applies] = here
    return p


def make_levels(training: Int32[np.ndarray, "context position"], vocab_size: int, order: int) -> list[Level]:
    """Count every order of n-grams up to the highest."""
    levels = []
    for n in range(1, order + 1):
        if n == order:
            gram = Counts.of(gram_keys(training, n, vocab_size).ravel())
        else:
            # Kneser-Ney: a shorter gram counts in how many ways it was preceded, not how often it stood.
            longer = np.unique(gram_keys(training, n + 1, vocab_size))
            gram = Counts.of(longer % vocab_size**n)
        history, followers = gram.key // vocab_size, Counts.of(gram.key // vocab_size)
        total = np.bincount(np.searchsorted(followers.key, history), weights=gram.count).astype(np.int64)
        # At least one: without a discount, what never stood would be impossible and its loss infinite.
        once, twice = max(1, int((gram.count == 1).sum())), int((gram.count == 2).sum())
        levels.append(Level(gram, Counts(followers.key, total), followers, once / (once + 2 * twice)))
    return levels


def gram_keys(
    windows: Int32[np.ndarray, "context position"], n: int, vocab_size: int
) -> Int64[np.ndarray, "context gram"]:
    """Every n-gram within a window as one number, the last token least significant; first tokens aren't targets."""
    ids = windows.astype(np.int64)
    if n == 1:
        return ids[:, 1:]
    length = ids.shape[1] - n + 1
    key = np.zeros((len(ids), length), np.int64)
    for offset in range(n):
        key = key * vocab_size + ids[:, offset : offset + length]
    return key
