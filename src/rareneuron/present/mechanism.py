"""Names the columns of a table of effects that say by which mechanism a neuron acts, and what pages call them.

A run of an older version lacks them, and pages leave them out then.
"""

from typing import NamedTuple

import pandas as pd

KIND = "kind"  # a column of words: entropy, token-frequency, prediction, suppression, partition, or nothing


class Quantity(NamedTuple):
    """One number about how a neuron acts; its interval's ends are in columns `…_low` and `…_high`."""

    column: str
    label: str
    about: str
    unit: str = ""  # of a share there is none


QUANTITIES = (
    Quantity("norm_share", "through the norm's scale", "Share of E|Δ| that goes through the final norm's scale."),
    Quantity("frequency_share", "along token frequency", "Share along the direction of unigram frequency (φ)."),
    Quantity("tilt_share", "likelier by frequency", "Share of a tilt of all probabilities by a power of frequency."),
    Quantity("entropy_change", "entropy", "Change of the entropy; above 0, the model is less sure without it.", "nats"),
)


def measured(effects: pd.DataFrame) -> tuple[Quantity, ...]:
    """Return the quantities that a table of effects holds."""
    return tuple(of for of in QUANTITIES if of.column in effects and effects[of.column].notna().any())


def kinds(effects: pd.DataFrame) -> list[str]:
    """Return each neuron's kind, in the order of the table; empty words where it has none or none was measured."""
    return effects[KIND].fillna("").astype(str).tolist() if KIND in effects else [""] * len(effects)
