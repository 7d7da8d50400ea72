"""Whose counts decided what is rare, and how sure that is, as the command line, the report and the card say it."""

from rareneuron.present.wording import significant
from rareneuron.runs.records import CountsRecord

LEAST_AGREEMENT = 0.5  # Spearman; below it a model hardly predicts even which tokens of a text are frequent


def source_of(counts: CountsRecord) -> str:
    """Return whose counts these are."""
    if counts.published is not None:
        licence = "no licence stated" if counts.licence is None else counts.licence
        return f"published counts ({counts.published}; {licence})"
    match counts.kind:
        case "model":
            size = f"{counts.n_tokens or 0:,} positions of {counts.n_contexts or 0:,} contexts"
            return f"{counts.of} over {size}" + ("" if counts.source is None else f" ({counts.source})")
        case "merges":
            return "the order of the tokenizer's merges"
        case "training":
            return f"the training set's ({counts.source})"
    return counts.of


def how_sure(counts: CountsRecord) -> str:
    """Return how many analysed targets their own sampling error puts on the wrong side of the threshold."""
    kinds = (("rare", counts.wrong_rare), ("common", counts.wrong_common))
    shares = [f"{percent(share)} of the {kind} targets" for kind, share in kinds if share is not None]
    if not shares:
        return "how many targets are on the wrong side of the threshold isn't known"
    return f"by their sampling error alone {' and '.join(shares)} are expected on the wrong side of the threshold"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return "under 0.01 %" if 0 < share < 1e-4 else f"{significant(100 * share, 2)} %"


def disagreement(counts: CountsRecord) -> str | None:
    """Return a warning where the model's own unigrams hardly follow the text's; None where they do, or weren't used."""
    if counts.agreement is None or counts.agreement >= LEAST_AGREEMENT:
        return None
    return (
        f"What the model predicts on average hardly follows how frequent tokens are in this text (Spearman "
        f"{significant(counts.agreement, 2)} over the types that occur): it has learned little, or this is another "
        "kind of text, and what it calls rare means little. Give counts (--counts), or count the text "
        "(--counts-from corpus)."
    )


def counts_line(counts: CountsRecord) -> str:
    """Return a line of the summary on whose counts were used."""
    return f"Counts: {source_of(counts)}" + ("" if counts.kind is None else f"; {how_sure(counts)}")
