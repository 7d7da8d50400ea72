"""Which tokens were analysed: the corpus, what the filter keeps at each stage, the easiest and hardest targets."""

import numpy as np
import pandas as pd

from rareneuron.maths.ranks import spearman_if_wrong
from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table, Words
from rareneuron.present.findings import Findings
from rareneuron.present.whose import disagreement, how_sure, percent, source_of
from rareneuron.present.wording import at_step, significant, visible
from rareneuron.runs.records import DataRecord

SHOWN = 20
STAGES = {
    "all": "all targets",
    "rare by frequency": "1. rare by frequency",
    "rare words": "2. and whole English words",
    "sampled": "analysed",
}


def targets_section(found: Findings) -> Section:
    """Return corpus, filter and targets."""
    data = found.data
    blocks: list[Block] = [
        Paragraph(
            text=(
                f"Corpus: {data.corpus} ({data.description}). {data.n_texts:,} texts, "
                f"{data.n_text_tokens:,} tokens, cut into {data.n_contexts_read:,} contexts; {drawn(data)} "
                f"by seed {found.config.seed} until they gave the rare tokens wanted. {data.n_common:,} "
                "common targets from the same contexts, which pass the same word filter, are the comparison."
            )
        ),
        stage_table(data, words=found.config.words),
        Paragraph(text=rule(data)),
        *whose_counts(data),
        *ranking_if_wrong(found),
        *coarse_threshold(data),
        *extremes(found),
    ]
    return Section(name="targets", title="Rare targets", blocks=tuple(blocks))


def drawn(data: DataRecord) -> str:
    """Say how contexts were drawn."""
    if data.per_context == 0:
        return "whole contexts were drawn"
    return f"contexts spread over them were drawn, with at most {data.per_context:,} rare tokens of each,"


def stage_table(data: DataRecord, *, words: bool) -> Table:
    """Return a table of what each stage keeps; without the word filter, the second one keeps all."""
    names = STAGES if words else STAGES | {"rare words": "2. any text (no word filter)"}
    everything = data.stages[0].occurrences
    return Table(
        caption="Targets that each stage of the filter keeps, in types (distinct tokens) and in occurrences",
        columns=(
            Column(head="stage", numeric=False),
            Column(head="types"),
            Column(head="occurrences"),
            Column(head="share", unit="of occurrences"),
        ),
        rows=tuple(
            (
                names.get(stage.name, stage.name),
                f"{stage.types:,}",
                f"{stage.occurrences:,}",
                f"{significant(100 * stage.occurrences / everything)} %",
            )
            for stage in data.stages
        ),
    )


def rule(data: DataRecord) -> str:
    """Say which types the rarity rule calls rare."""
    rarity = data.rarity
    match rarity.rule:
        case "none":
            return "Rarity rule: none. Every type counts as rare, so nothing here is about rare tokens in particular."
        case "types":
            where = f"that of the type below which {rarity.percentile:g} % of the vocabulary lie"
        case "occurrences":
            where = f"that below which lie at most {rarity.percentile:g} % of all occurrences"
        case _:
            where = "that at the elbow of the rank-frequency curve"
    return (
        f"Rarity rule “{rarity.rule}”: a type is rare if its unigram probability is below "
        f"{significant(rarity.threshold)} ({where}). {rarity.n_types:,} types are; together they make "
        f"{significant(100 * rarity.mass)} % of the counted tokens."
    )


def whose_counts(data: DataRecord) -> tuple[Block, ...]:
    """Say whose counts decide what is rare, what that means, and how sure it is."""
    counts = data.counts
    sure = "" if counts.kind is None else f" How sure: {how_sure(counts)}."
    if counts.of == "training set":
        whose = counts.source if counts.published is None else f"{counts.source}: {source_of(counts)}"
        return (
            Paragraph(
                text=f"The unigram counts are the training set's ({whose}): rare here means seldom seen in training."
                + sure
            ),
        )
    if counts.kind == "model":
        known = "" if counts.precision is None else f", known to {percent(counts.precision)} of the median type's"
        meaning = Paragraph(
            text=(
                f"The unigram frequencies are {source_of(counts)}{known}: “rare” means what this model seldom "
                f"expects, which follows its training text. Published training-set counts (--counts) would be better "
                f"still.{sure}"
            )
        )
        warned = disagreement(counts)
        return (meaning,) if warned is None else (meaning, Notice(text=warned))
    if counts.kind == "merges":
        return (
            Notice(
                text=(
                    f"What is rare was decided by {source_of(counts)}, which is an order and no frequency, of a text "
                    f"that isn't known: {how_sure(counts)}. The model's own prediction (--counts-from model) is better."
                )
            ),
        )
    return (
        Notice(
            text=(
                f"The unigram counts are those of {counts.of}: “rare” means seldom in this corpus, which says little "
                "about what the model saw. In a small corpus most types occur a few times or never, so counts hardly "
                "tell them apart and a percentile over types is nearly degenerate. Training-set counts (--counts) "
                f"mend both, the model's own prediction (--counts-from model) most of it.{sure}"
            )
        ),
    )


def ranking_if_wrong(found: Findings) -> tuple[Paragraph, ...]:
    """Say how far the expected share of wrong rare targets could move the ranking of neurons."""
    share, table = found.data.counts.wrong_rare, found.last
    if share is None or not found.has_common or not 0 <= share <= 1:
        return ()
    rare, common = (table[name].to_numpy() for name in ("abs_delta_loss", "common_abs_delta_loss"))
    if min(np.ptp(rare), np.ptp((1 - share) * rare + share * common)) == 0:
        return ()
    return (
        Paragraph(
            text=(
                f"Were that share of the rare targets common ones, with the mean effects of common ones, the ranking "
                f"of neurons by mean |Δ| {at_step(found.steps[-1])} would correlate with the one reported at "
                f"{spearman_if_wrong(rare, common, share):.4f} (Spearman)."
            )
        ),
    )


def coarse_threshold(data: DataRecord) -> tuple[Notice, ...]:
    """Warn of a threshold at a count of 0 or 1, which can't tell rare types from absent ones."""
    rarity = data.rarity
    count = rarity.count_at_threshold
    if count is None or count > 1:
        return ()
    types = f"{rarity.percentile:g} % of the types" if rarity.rule == "types" else "the types below it"
    return (
        Notice(
            text=(
                f"The count at the threshold is {count}: {types} were never or once seen where counts were taken, so "
                "rare is what they miss rather than what is seldom. Counts over more text (--counts) mend that."
            )
        ),
    )


def extremes(found: Findings) -> tuple[Words, ...]:
    """Return the rare targets with the highest and the lowest mean loss at the last checkpoint."""
    rare = found.tokens[found.tokens["rare"]]
    words = rare.groupby("target").agg(text=("text", "first"), loss=("loss", "mean"), n=("loss", "size"))
    words = words.sort_values("loss", kind="stable")
    shown = min(SHOWN, len(words) // 2)
    if shown == 0:
        return ()
    return tuple(
        Words(
            caption=(
                f"The {shown} rare targets with the {which} loss {at_step(found.steps[-1])}, of {len(words):,} (mean "
                "over occurrences, in nats; ␣ is a space)"
            ),
            items=tuple(word_item(row) for _, row in chosen.iterrows()),
        )
        for which, chosen in (("highest", words[::-1].head(shown)), ("lowest", words.head(shown)))
    )


def word_item(row: pd.Series) -> tuple[str, str]:
    """Return a target and its loss, and how often it occurs if more than once."""
    times = f" (×{row['n']:,})" if row["n"] > 1 else ""
    return visible(row["text"]), f"{row['loss']:.2f}{times}"
