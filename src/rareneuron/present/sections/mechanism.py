"""Says how neurons act (through the final norm, along token frequency, neither way), and which kinds there are."""

import pandas as pd

from rareneuron.conclude.mechanism import mechanisms
from rareneuron.errors import NotMeasured
from rareneuron.maths.known_kinds import KINDS, LEAST_FREQUENCY_SHARE, LEAST_NORM_SHARE
from rareneuron.present.blocks import Block, Definitions, Paragraph, Section
from rareneuron.present.figures import FIGURES
from rareneuron.present.findings import Findings
from rareneuron.present.sections.curve import illustration
from rareneuron.present.wording import at_step

READING = (
    "Each effect is computed three times more: with the final norm's scale frozen, without the part of the logits' "
    "change along the log frequency of types, and without both. What mean |Δ| loses is the mechanism's share. Shares "
    "needn't add up to 1, and are below 0 where a mechanism works against the rest."
)
NAMES = {"norm_share": "through the final norm", "frequency_share": "along token frequency", "words_share": "neither"}


def mechanism_section(found: Findings) -> Section | None:
    """Return words and the figure; nothing of a run whose effects weren't taken apart."""
    step = found.steps[-1]
    try:
        table = mechanisms(found.run, step)
    except NotMeasured:
        return None
    items = tuple((label, share_text(table, name)) for name, label in NAMES.items() if name in table)
    blocks: list[Block] = [
        Paragraph(text=READING),
        Definitions(items=(*items, ("known kinds of neurons", kinds_text(table)))),
        illustration(FIGURES["mechanism"], found),
    ]
    return Section(name="mechanism", title=f"How neurons act {at_step(step)}", blocks=tuple(blocks))


def share_text(table: pd.DataFrame, name: str) -> str:
    """Say which share the largest neurons and the median one have."""
    largest, all_of_them = (100 * of[name].median() for of in (table.head(10), table))
    return f"{largest:.0f} % of mean |Δ| for the ten largest neurons (median), {all_of_them:.0f} % for all"


def kinds_text(table: pd.DataFrame) -> str:
    """Say how many neurons are of each kind, and what decides it."""
    counts = table["kind"].value_counts()
    listed = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if kind in counts) or "none"
    return (
        f"{listed}, of {len(table):,} neurons. An entropy neuron writes where the unembedding hears least and has "
        f"{100 * LEAST_NORM_SHARE:.0f} % or more of its effect through the norm; a token-frequency neuron writes along "
        f"frequency more than its layer does and has {100 * LEAST_FREQUENCY_SHARE:.0f} % or more along it."
    )
