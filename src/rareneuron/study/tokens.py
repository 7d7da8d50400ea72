"""Chooses which tokens of which contexts are analysed, the same at every checkpoint: a study's first stage."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.data.corpus import WindowStream, too_short
from rareneuron.data.counts import Unigrams, rare_by
from rareneuron.data.rarity import RareTypes
from rareneuron.data.selection import Selection, TokenFilter, WindowSpool, select_tokens
from rareneuron.data.texts import Corpus, open_corpus
from rareneuron.data.words import refuse_wordless, special_types, word_types
from rareneuron.embedded.docstrings import analysis_texts
from rareneuron.errors import NoRareTokens
from rareneuron.maths.frequency import log_frequency
from rareneuron.models.adapter import Adapter
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.records import CountsRecord, DataRecord, RarityRecord, StageRecord
from rareneuron.runs.seeds import generator
from rareneuron.runs.tokens import TokenStage, selection_digest
from rareneuron.runs.unigrams import write_unigrams
from rareneuron.study.counts import whose_counts, with_wrong_sides


def study_corpus(config: StudyConfig) -> Corpus:
    """Return the corpus that the settings name, or the default for this model."""
    if config.is_embedded_corpus:
        return Corpus(
            name="embedded corpus",
            description="language reference, docstrings of the standard library and of packages kept out of training",
            read=analysis_texts,
        )
    return open_corpus(config.data, text_field=config.text_field)


def choose_tokens(
    config: StudyConfig, corpus: Corpus, adapter: Adapter, kept: Path | None = None, *, show: bool = False
) -> TokenStage:
    """Read the corpus once, decide what is rare, and draw contexts (App. 5.3.1).

    `kept` is where the run folder keeps a model's own unigrams: read there if they are, and written if they were made.
    """
    tokenizer, vocab = adapter.tokenizer, adapter.vocab
    words = word_types(tokenizer, vocab) if config.words else None
    if words is not None:
        refuse_wordless(words, tokenizer)
    stream = WindowStream(corpus, tokenizer, config.context_length, marks=config.words)
    with WindowSpool(config.context_length, vocab) as spool:
        spool.fill(stream, config.max_corpus_tokens)
        if spool.n_contexts == 0:
            remedy = "Give more text (`--data`), or a shorter `--context-length`."
            raise too_short(corpus.name, config.context_length, remedy)
        whose = whose_counts(config, adapter, spool, stream.fingerprint, kept, show)
        unigrams = whose.unigrams
        rare = rare_by(unigrams, config.percentile, config.rarity)
        if unigrams.counts is not None:
            refuse_degenerate(rare, unigrams.counts, of_corpus=unigrams.source == "corpus")
        token_filter = TokenFilter(rare=rare.mask, special=special_types(tokenizer, vocab), words=words)
        rng = generator(config.seed, "tokens")
        selection = select_tokens(
            spool, token_filter, n_tokens=config.tokens_wanted, per_context=config.per_context, rng=rng
        )
    refuse_too_few(selection, config)
    if kept is not None and whose.origin is not None:
        write_unigrams(kept, unigrams, whose.origin)
    counted = with_wrong_sides(whose.record, unigrams, rare, selection)
    record = data_record(corpus, stream, selection, counted, rare)
    return TokenStage(
        selection=selection,
        table=token_table(selection, tokenizer, unigrams.p),
        record=record,
        log_frequency=frequency_of_types(unigrams, len(tokenizer)),
    )


def frequency_of_types(unigrams: Unigrams, n_ids: int) -> np.ndarray | None:
    """Return how much more frequent each type is than others, in nats; None where only their order is known.

    Types that were never counted, and rows of the embedding that no token has, take no part.
    """
    if unigrams.source == "merges":
        return None
    seen = np.arange(len(unigrams.p)) < n_ids if unigrams.counts is None else unigrams.counts > 0
    return log_frequency(unigrams.p, seen) if len(np.unique(unigrams.p[seen])) > 1 else None


def data_record(
    corpus: Corpus, stream: WindowStream, selection: Selection, counts: CountsRecord, rare: RareTypes
) -> DataRecord:
    """Return the record of the text that was read, and of the tokens that were chosen from it."""
    return DataRecord(
        corpus=corpus.name,
        description=corpus.description,
        fingerprint=stream.fingerprint,
        sha256=selection_digest(selection),
        n_texts=stream.n_texts,
        n_text_tokens=stream.n_text_tokens,
        n_contexts_read=selection.n_contexts_read,
        n_contexts=len(selection.windows),
        n_requested=selection.n_requested,
        n_available=selection.n_available,
        n_rare=selection.n_rare,
        n_common=selection.n_common,
        per_context=selection.per_context,
        stages=tuple(StageRecord(**asdict(stage)) for stage in selection.stages),
        counts=counts,
        rarity=RarityRecord(
            rule=rare.over,
            percentile=rare.percentile,
            threshold=rare.threshold,
            count_at_threshold=rare.count_at_threshold,
            count_total=rare.count_total,
            n_types=rare.n_types,
            mass=rare.mass,
        ),
    )


def refuse_degenerate(rare: RareTypes, counts: np.ndarray, *, of_corpus: bool) -> None:
    """Refuse a percentile that falls among types that never occur, or that occur once in the analysed text itself.

    At a count of 0 no type is rarer. At 1 the rarer types never occur, so a corpus that was counted itself holds none.
    """
    if rare.percentile is None or not (rare.count_at_threshold == 0 or (of_corpus and rare.count_at_threshold == 1)):
        return
    unseen = int((counts == 0).sum())
    share = "More than half" if 2 * unseen > len(counts) else f"{100 * unseen / len(counts):.0f} %"
    where = "in this text" if of_corpus else "in the text that was counted"
    remedy = (
        "take the percentile over occurrences (`--rarity occurrences`)"
        if rare.over == "types"
        else "more text, or raise `--percentile`"
    )
    raise NoRareTokens(
        f"{share} of the vocabulary never occurs {where} ({unseen:,} of {len(counts):,} types), so the threshold at "
        f"{rare.percentile:g} % of the {rare.over} is a count of {rare.count_at_threshold}, and no token {where} is "
        f"rarer. Give the training set's counts (`--counts FILE`), let the model say what is rare (`--counts-from "
        f"model`), or {remedy}."
    )


def refuse_too_few(selection: Selection, config: StudyConfig) -> None:
    """Refuse fewer tokens than a group has neurons: their correlation matrix would be singular in any case."""
    if selection.n_rare >= config.group_size:
        return
    if selection.n_rare < min(config.tokens_wanted, selection.n_available):
        cause = f"all that contexts give at {selection.per_context} each (the corpus has {selection.n_available:,})"
        remedy = "Raise `--per-context`, give more text (`--data`), or lower"
    elif selection.n_available >= config.group_size:
        cause = f"as `--n-tokens` asks (the corpus has {selection.n_available:,})"
        remedy = "Raise `--n-tokens`, or lower"
    else:
        cause, remedy = "all that the corpus has", "Give more text (`--data`), or lower"
    raise NoRareTokens(
        f"The sample holds {selection.n_rare} rare tokens, {cause}: fewer than a group's {config.group_size} neurons, "
        f"and correlations within a group need more tokens than neurons. {remedy} `--group-size`."
    )


def token_table(selection: Selection, tokenizer: Any, frequency: np.ndarray) -> pd.DataFrame:
    """Return one row per token, in the order of the selection; the loss is added at the end of the study."""
    types, inverse = np.unique(selection.target, return_inverse=True)
    texts = np.array(
        tokenizer.batch_decode([[int(i)] for i in types], clean_up_tokenization_spaces=False), dtype=object
    )
    return pd.DataFrame(
        {
            "context": selection.context,
            "position": selection.position,
            "target": selection.target,
            "text": texts[inverse],
            "frequency": frequency[selection.target],
            "rare": selection.rare,
        }
    )
