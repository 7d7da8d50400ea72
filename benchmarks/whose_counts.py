"""How good each rung of the ladder of counts is where the truth is known: the series that comes with the package.

The truth is what is rare by the counts of the training text. Every rung is compared on all types, on the occurrences of
the text, and on those of whole English words, which are the candidates of a study. Beside that stands the share of
targets that the rung itself expects on the wrong side by its own sampling error. A tokenizer, a text and
counts of the same tokenizer's training text can be given, for the rungs that need no model.

    python benchmarks/whose_counts.py                                               three minutes on 2 idle cores
    python benchmarks/whose_counts.py --tokenizer DIR --data FILE --truth COUNTS    seconds
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rareneuron.data.corpus import WindowStream
from rareneuron.data.counts import Unigrams, of_corpus, of_merges, of_training, rare_by, wrong_side
from rareneuron.data.rarity import load_counts
from rareneuron.data.selection import WindowSpool
from rareneuron.data.texts import open_corpus
from rareneuron.data.words import special_types, word_types
from rareneuron.embedded import COUNTS, SERIES
from rareneuron.embedded.docstrings import analysis_texts
from rareneuron.maths.ranks import spearman
from rareneuron.models.adapter import load_model
from rareneuron.models.self_unigram import self_unigram
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.runs.seeds import generator

POSITIONS = (25_500, 102_000)  # that the model's own unigrams are a mean over


def embedded_rungs(step: str, spool: WindowSpool) -> Iterator[tuple[str, Unigrams]]:
    """The model's own unigrams from a little text and from more, then the rungs that need no model."""
    adapter = load_model(SERIES / step, device="cpu")
    order = generator(0, "reference text").permutation(spool.n_contexts)
    for positions in POSITIONS:
        seen = self_unigram(adapter.model, spool.rows, order, precision=0.0, most_positions=positions)
        unigrams = Unigrams(
            source="model", p=seen.p, se=seen.se, n_contexts=seen.n_contexts, n_positions=seen.n_positions
        )
        yield f"the model's own, {seen.n_positions:,} positions (median error {unigrams.precision:.1%})", unigrams


def compare(
    rungs: Iterator[tuple[str, Unigrams]], truth: np.ndarray, spool: WindowSpool, candidates: np.ndarray
) -> list[str]:
    """A row of a Markdown table for each rung."""
    known, counts = rare_by(of_training(truth), 50, "types").mask, spool.counts
    rows = []
    for name, unigrams in rungs:
        rare = rare_by(unigrams, 50, "types")
        right, wrong = rare.mask == known, wrong_side(unigrams, rare)
        words = counts * candidates
        expected = ["–", "–"] if wrong is None else [share(wrong, words * side) for side in (rare.mask, ~rare.mask)]
        actual = [share(~right, words * side) for side in (rare.mask, ~rare.mask)]
        missed = share(~rare.mask, words * known)
        there = counts > 0
        rho = [f"{spearman(unigrams.p[at], truth[at]):.3f}" for at in (np.ones_like(there), there)]
        cells = [share(right, np.ones_like(counts)), share(right, counts), share(right, words), *rho]
        cells += [*actual, missed, *expected]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def share(what: np.ndarray, weights: np.ndarray) -> str:
    """A weighted mean in per cent."""
    return "–" if weights.sum() == 0 else f"{100 * (what * weights).sum() / weights.sum():.1f} %"


HEAD = [
    "| counts | types right | occurrences right | words right | ρ, all types | ρ, types in the text "
    "| rare words wrong | common words wrong | rare words missed | expected, rare | expected, common |",
    "|---|" + "--:|" * 10,
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--vocab", type=int, help="rows of the model's embedding")
    parser.add_argument("--step", default="step4096", help="checkpoint of the series")
    asked = parser.parse_args()
    given = asked.tokenizer is not None
    tokenizer = load_tokenizer(asked.tokenizer if given else SERIES, None)
    texts = open_corpus(asked.data) if given else analysis_texts()
    vocab = asked.vocab or (len(tokenizer) if given else len(np.load(COUNTS, allow_pickle=False)))
    truth = load_counts(asked.truth if given else COUNTS, vocab, len(tokenizer))
    candidates = word_types(tokenizer, vocab) & ~special_types(tokenizer, vocab)
    with WindowSpool(256, vocab) as spool:
        spool.fill(WindowStream(texts, tokenizer, 256))
        print(f"{spool.n_targets:,} targets of {(spool.counts > 0).sum():,} types; vocabulary {vocab:,}\n")
        print("\n".join(HEAD))

        def rungs() -> Iterator[tuple[str, Unigrams]]:
            yield "the training text's", of_training(truth)
            if not given:
                yield from embedded_rungs(asked.step, spool)
            yield "the text's, with Good–Turing", of_corpus(spool.counts)
            yield "order of merges", of_merges(tokenizer, vocab)

        for row in compare(rungs(), truth, spool, candidates):
            print(row, flush=True)


if __name__ == "__main__":
    main()
