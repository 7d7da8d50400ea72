"""Reads each neuron's mechanism from a run, and compares its kinds with lists that others have published."""

import pandas as pd

from rareneuron.errors import NotMeasured, OutOfRange
from rareneuron.runs.run import Run

SHARES = ("norm_share", "frequency_share", "tilt_share", "words_share")
NOT_MEASURED = (
    "The run doesn't say how its neurons act: that needs the last layer's closed form, which other engines and earlier "
    "layers don't have, and a run of this version. Run the study again in another folder."
)
FIRST = ["neuron", "rank", "delta_loss", "abs_delta_loss"]
LAST = ["entropy_change", "frequency_cosine", "null_space_share", "role", "kind"]

# Stolfo et al. 2024, "Confidence Regulation Neurons in Language Models": neurons of the last layer by kind.
PUBLISHED: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2-small": {"entropy": ("11.584", "11.2378", "11.2870", "11.2123", "11.1611", "11.2910")},
    "pythia-410m": {
        "entropy": ("23.1829", "23.1332", "23.2455", "23.3562", "23.2756", "23.2362"),
        "token-frequency": ("23.87", "23.417", "23.730", "23.2017", "23.3412"),
    },
}


def mechanisms(run: Run, step: int | None = None) -> pd.DataFrame:
    """Return one row per neuron, the largest mean |Δ| first: shares of its mechanisms with intervals, and its kind.

    Shares that weren't measured, for want of frequencies, are missing columns.
    """
    table = run.effects(step)
    if "kind" not in table:
        raise NotMeasured(NOT_MEASURED)
    shares = [f"{share}{end}" for share in SHARES if share in table for end in ("", "_low", "_high")]
    columns = [name for name in (*FIRST, *shares, *LAST) if name in table]
    return table.sort_values("rank", kind="stable")[columns].reset_index(drop=True)


def chosen_neurons(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows of neurons by name, in the order given."""
    missing = [name for name in names if name not in set(table["neuron"])]
    if missing:
        first, last = table["neuron"].iloc[0].partition(".")[0], len(table) - 1
        raise OutOfRange(
            f"The run has no neuron {missing[0]}; its neurons are {first}.0 to {first}.{last}. Name some of these."
        )
    return table.set_index("neuron").loc[list(names)].reset_index()


def beside_published(run: Run, model: str, step: int | None = None) -> pd.DataFrame:
    """Return the neurons of a published list with the kind they have there and here."""
    lists = PUBLISHED[model]
    table = mechanisms(run, step)
    rows = [
        chosen_neurons(table, names).assign(published=kind, agrees=lambda found, kind=kind: found["kind"] == kind)
        for kind, names in lists.items()
    ]
    return pd.concat(rows, ignore_index=True)
