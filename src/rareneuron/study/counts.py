"""Whose counts decide what is rare: the first rung of the ladder in `data.counts` that a study has, and how sure it is.

A file that was given; training counts, where the series comes with them; otherwise the model's own mean prediction over
the text, made once for weights, tokenizer and text, and kept in the run folder and in the user's cache. The text's own
counts and the tokenizer's merges are taken where they are asked for.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from rareneuron.data.corpus import WindowStream, too_short
from rareneuron.data.counts import (
    Unigrams,
    of_corpus,
    of_merges,
    of_training,
    recognised,
    tokenizer_fingerprint,
    wrong_side,
)
from rareneuron.data.rarity import RareTypes, count_unigrams, load_counts, refuse_other_suffix, save_counts
from rareneuron.data.selection import Selection, WindowSpool
from rareneuron.data.texts import open_corpus
from rareneuron.embedded import COUNTS
from rareneuron.errors import InvalidConfig, UnfitTokenizer, UnusableCounts
from rareneuron.maths.ranks import spearman
from rareneuron.models.adapter import Adapter, load_model
from rareneuron.models.hub import model_folder
from rareneuron.models.self_unigram import self_unigram
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.progress import progress_bar
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import file_sum
from rareneuron.runs.records import CountsRecord
from rareneuron.runs.seeds import generator
from rareneuron.runs.unigrams import (
    SUFFIX,
    Origin,
    cached,
    keep_in_cache,
    known_unigrams,
    read_unigrams,
    write_unigrams,
)

PRECISION = 0.1  # of a model's own unigrams: relative standard error of the median type
MOST_POSITIONS = 500_000  # that they are a mean over at most
TINY = np.finfo(np.float64).tiny  # in place of a probability that float32 rounds to 0

OF_MODEL = "the model's own mean prediction"
OF_CORPUS = "the corpus itself, not the training set"
OF_MERGES = "nothing: the order in which the tokenizer was built"


@dataclass(frozen=True, kw_only=True)
class WhoseCounts:
    """The unigrams of a study, and the record of where they came from."""

    unigrams: Unigrams
    record: CountsRecord
    origin: Origin | None = None  # of a model's own


def whose_counts(
    config: StudyConfig, adapter: Adapter, spool: WindowSpool, fingerprint: str, kept: Path | None, show: bool
) -> WhoseCounts:
    """Return the unigrams that decide what is rare in a study; `kept` is where its run folder keeps a model's own."""
    source = config.counts_from
    if config.counts is not None:
        return from_file(Path(config.counts), config.counts, adapter)
    if source == "auto" and config.is_embedded_model:
        unigrams = of_training(load_counts(COUNTS, adapter.vocab, len(adapter.tokenizer)))
        return WhoseCounts(unigrams=unigrams, record=record_of(unigrams, str(COUNTS.name), "training set"))
    match source:
        case "corpus":
            unigrams = of_corpus(spool.counts)
            return WhoseCounts(unigrams=unigrams, record=record_of(unigrams, None, OF_CORPUS))
        case "merges":
            unigrams = of_merges(adapter.tokenizer, adapter.vocab)
            return WhoseCounts(unigrams=unigrams, record=record_of(unigrams, None, OF_MERGES))
    unigrams, origin = models_own(adapter, spool, fingerprint, kept, show=show)
    record = replace(record_of(unigrams, None, OF_MODEL), agreement=agreement(unigrams, spool.counts))
    return WhoseCounts(unigrams=unigrams, record=record, origin=origin)


def from_file(path: Path, name: str, adapter: Adapter) -> WhoseCounts:
    """Return the unigrams of a file that was given, recognised where it is one that others published."""
    unigrams = read_counts_file(path, adapter.vocab, adapter.tokenizer)
    hashed = file_sum(path)
    published = recognised(hashed, adapter.tokenizer)
    of = "a model's own mean prediction" if unigrams.source == "model" else "training set"
    record = replace(record_of(unigrams, name, of), sha256=hashed)
    if published is not None:
        record = replace(record, published=f"{published.name}: {published.of}", licence=published.licence)
    return WhoseCounts(unigrams=unigrams, record=record)


def read_counts_file(path: Path, vocab_size: int, tokenizer: Any) -> Unigrams:
    """Read counts, or a model's own unigrams, for a vocabulary; refuses those of another tokenizer."""
    if path.suffix != SUFFIX:
        return of_training(load_counts(path, vocab_size, None if tokenizer is None else len(tokenizer)))
    unigrams, origin = read_unigrams(path)
    if len(unigrams.p) != vocab_size or (
        tokenizer is not None and origin.tokenizer != tokenizer_fingerprint(tokenizer)
    ):
        raise UnusableCounts(
            f"{path} holds the unigrams of a model with another tokenizer or vocabulary ({len(unigrams.p):,} types), "
            f"and this model has {vocab_size:,}. Make them with this model: `rareneuron unigrams MODEL DATA "
            "--from model -o FILE`."
        )
    return unigrams


def record_of(unigrams: Unigrams, source: str | None, of: str) -> CountsRecord:
    """Return the record of unigrams, but for what depends on the threshold."""
    return CountsRecord(
        source=source,
        of=of,
        kind=unigrams.source,
        n_tokens=unigrams.n_tokens,
        n_contexts=unigrams.n_contexts,
        precision=unigrams.precision,
    )


def agreement(unigrams: Unigrams, counts: Int[np.ndarray, " vocab"]) -> float | None:
    """Return Spearman's correlation of frequencies with counts, over the types that were counted."""
    there = counts > 0
    if min(len(np.unique(values[there])) for values in (unigrams.p, counts)) < 2:
        return None
    return spearman(unigrams.p[there], counts[there])


def with_wrong_sides(record: CountsRecord, unigrams: Unigrams, rare: RareTypes, selection: Selection) -> CountsRecord:
    """Return the record with the expected share of analysed targets on the wrong side of the threshold."""
    wrong = wrong_side(unigrams, rare)
    if wrong is None:
        return record
    return replace(
        record,
        wrong_rare=mean_or_none(wrong[selection.target[selection.rare]]),
        wrong_common=mean_or_none(wrong[selection.target[~selection.rare]]),
    )


def mean_or_none(values: Float64[np.ndarray, " target"]) -> float | None:
    """Return the mean, where there is one."""
    return float(values.mean()) if len(values) else None


def models_own(
    adapter: Adapter,
    spool: WindowSpool,
    fingerprint: str,
    kept: Path | None,
    *,
    show: bool,
    precision: float = PRECISION,
    most_positions: int = MOST_POSITIONS,
) -> tuple[Unigrams, Origin]:
    """Return a model's own unigrams over a text: those of the run folder, of the cache, or made now.

    The run folder's count whichever weights made them: a study is of the tokens that were chosen when it began.
    """
    origin = Origin(
        weights=adapter.provenance["weights_sha256"] or 64 * "0",
        tokenizer=tokenizer_fingerprint(adapter.tokenizer),
        text=hashlib.sha256(f"{fingerprint} {spool.context_length} {precision} {most_positions}".encode()).hexdigest(),
    )
    for path in (kept, cached(origin)):
        found = None if path is None else known_unigrams(path)
        if found is None or len(found[0].p) != adapter.vocab:
            continue
        then = found[1]
        if then == origin or (path == kept and (then.tokenizer, then.text) == (origin.tokenizer, origin.text)):
            return found
    order = generator(0, "reference text").permutation(spool.n_contexts)
    most = min(spool.n_contexts, max(1, most_positions // (spool.context_length - 1)))
    with progress_bar("how frequent tokens are", most, "context", show=show) as bar:
        seen = self_unigram(
            adapter.model,
            spool.rows,
            order,
            precision=precision,
            most_positions=most_positions,
            progress=bar.update,
        )
    unigrams = Unigrams(
        source="model",
        p=np.maximum(seen.p, TINY),
        se=seen.se,
        n_contexts=seen.n_contexts,
        n_positions=seen.n_positions,
    )
    if adapter.provenance["weights_sha256"] is not None:
        keep_in_cache(unigrams, origin)
    return unigrams, origin


# --- the command


def count_corpus(
    tokenizer: str, data: str, output: Path, text_field: str, max_tokens: int, context_length: int
) -> tuple[int, int, int]:
    """Count a corpus and write the counts; return tokens counted, types seen, and types in all."""
    refuse_other_suffix(output)  # before anything is fetched or counted
    refuse_no_window(max_tokens, context_length)
    where = model_folder(tokenizer, weights=False)
    loaded = load_tokenizer(where.folder, None)
    if loaded is None:
        raise UnfitTokenizer(
            f"{tokenizer} holds no tokenizer (tokenizer.json), so nothing can be counted. Give the folder or Hub id of "
            "a model or of a tokenizer."
        )
    stream = WindowStream(open_corpus(data, text_field=text_field), loaded, context_length)
    counts = count_unigrams(stream, len(loaded), max_tokens)
    save_counts(counts, output)
    return int(counts.sum()), int((counts > 0).sum()), len(counts)


def average_model(
    model: str,
    data: str,
    output: Path,
    text_field: str,
    max_tokens: int,
    context_length: int,
    precision: float,
    device: str,
) -> Unigrams:
    """Write a model's own unigrams over a text, for `--counts`; returns them."""
    if output.suffix != SUFFIX:
        raise UnusableCounts(
            f"{output}: a model's own unigrams are probabilities with errors, and are kept in {SUFFIX} files. Choose "
            "such a name."
        )
    refuse_no_window(max_tokens, context_length)
    if not precision > 0:
        raise InvalidConfig(f"--precision {precision} can't be reached. Give a positive number; {PRECISION} is usual.")
    corpus = open_corpus(data, text_field=text_field)
    adapter = load_model(model, device=device)
    stream = WindowStream(corpus, adapter.tokenizer, context_length)
    with WindowSpool(context_length, adapter.vocab) as spool:
        spool.fill(stream)
        if spool.n_contexts == 0:
            raise too_short(corpus.name, context_length, "Give more text, or a shorter `--context-length`.")
        unigrams, origin = models_own(
            adapter,
            spool,
            stream.fingerprint,
            None,
            show=True,
            precision=precision,
            most_positions=max_tokens,
        )
    write_unigrams(output, unigrams, origin)
    return unigrams


def refuse_no_window(max_tokens: int, context_length: int) -> None:
    """Refuse to read less than one window."""
    if max_tokens < context_length - 1:
        raise InvalidConfig(
            f"--max-tokens {max_tokens} is less than one window of {context_length}, so nothing would be counted. "
            "Raise it, or lower --context-length."
        )
