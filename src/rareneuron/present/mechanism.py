"""Names the columns of a table of effects that say by which mechanism a neuron acts, and what pages call them.

A run of an older version lacks them, and pages leave them out then.
"""

from typing import NamedTuple

import pandas as pd

KIND = "kind"  # a column of words: entropy, token-frequency, prediction, suppression, partition, or nothing


class Quantity(NamedTuple):
    """One number about how a neuron acts; its 95 % interval is in columns `…_low` and `…_high`, or follows `…_se`."""

    column: str
    label: str
    about: str
    unit: str = ""  # of a share there is none


QUANTITIES = (
    Quantity("norm_share", "through the final norm", "What of mean |Δ| goes through the final norm's scale."),
    Quantity("frequency_share", "along token frequency", "What goes along log frequency in the logits."),
    Quantity("tilt_share", "as a tilt by frequency", "What multiplies probabilities by a power of frequency."),
    Quantity("words_share", "neither way", "What stays without norm and frequency."),
    Quantity("entropy_change", "entropy", "Above 0: the model is less sure without the neuron.", "nats"),
)


def measured(effects: pd.DataFrame) -> tuple[Quantity, ...]:
    """Return the quantities that a table of effects holds."""
    return tuple(of for of in QUANTITIES if of.column in effects and effects[of.column].notna().any())


def kinds(effects: pd.DataFrame) -> list[str]:
    """Return each neuron's kind, in the order of the table; empty words where it has none or none was measured."""
    return effects[KIND].fillna("").astype(str).tolist() if KIND in effects else [""] * len(effects)
