"""Writes and reads details of single neurons, for the explorer of the report.

Arrays are tensors, words are JSON; only the last planned checkpoint has them.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rareneuron.runs.files import read_json, read_tensors, write_json, write_tensors
from rareneuron.runs.layout import NEURON_ARRAYS, NEURONS

MOST_DETAILED = 1_024  # neurons, by rank: a page with more would be too heavy to mail
N_CONTEXTS, N_TOKENS, N_BINS, N_NEIGHBOURS = 5, 8, 20, 5
BEFORE, AFTER = 40, 12  # tokens of text shown before and after a target
SAMPLED = 256  # rare tokens, evenly drawn, among which examples by quantile are found
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LATER = ("example_token", "example_delta", "example_act", "text_delta")  # arrays that older versions didn't write
NONE = -1  # fills the rows of neurons that have fewer entries


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Details of the neurons `shown`, largest mean |Δ| first; missing entries are `NONE` or NaN.

    A token is a row of the token table; its text is that of its target, at its position + 1. Where the model leaves
    signs of activations open, those here are times the sign of their mean; where it leaves scales open, times ‖w_out‖.
    """

    shown: Int[np.ndarray, " shown"]
    top_token: Int[np.ndarray, "shown context"]  # the largest |Δ| of each of those contexts, largest first
    near_token: Int[np.ndarray, "shown context near"]  # analysed tokens in its text, itself among them
    near_delta: Float[np.ndarray, "shown context near"]  # nats
    act_low: Float[np.ndarray, " shown"]  # at rare tokens
    act_high: Float[np.ndarray, " shown"]
    histogram: Int[np.ndarray, "shown bin"]  # rare tokens, in equal bins from low to high
    neighbour: Int[np.ndarray, "shown neighbour"]  # the largest |correlation| at rare tokens
    correlation: Float[np.ndarray, "shown neighbour"]
    W_in_norm: Float[np.ndarray, " neuron"]
    W_gate_norm: Float[np.ndarray, " neuron"] | None
    written: Int[np.ndarray, "shown written"] | None  # ids: `N_TOKENS` most promoted, then as many most demoted
    written_logit: Float[np.ndarray, "shown written"] | None  # change per unit of n/σ, relative to the mean token
    no_readout: str | None  # why there is no `written`
    texts: dict[int, str]  # of every token id that a page shows
    # None in runs of older versions, and `text_delta` also where no readout stands behind the layer.
    example_token: Int[np.ndarray, "shown by quantile"] | None = None  # by Δ and by activation, at `QUANTILES`
    example_delta: Float[np.ndarray, "shown by quantile"] | None = None
    example_act: Float[np.ndarray, "shown by quantile"] | None = None
    text_delta: Float[np.ndarray, "some context place"] | None = None  # Δ at every token of the first neurons' texts


def first_neurons(explorer: Explorer, n: int) -> Explorer:
    """Return the details of the first few neurons alone."""
    whole = ("W_in_norm", "W_gate_norm", "texts", "no_readout")
    given = {f.name: getattr(explorer, f.name) for f in fields(explorer) if f.name not in whole}
    first: dict[str, Any] = {name: None if value is None else value[:n] for name, value in given.items()}
    return replace(explorer, **first)


def text_span(position: int, context_length: int) -> range:
    """Return the positions of the text shown around a token, whose target stands at position + 1."""
    return range(max(0, position + 1 - BEFORE), min(context_length, position + 2 + AFTER))


def write_explorer(folder: Path, explorer: Explorer) -> None:
    """Write the arrays as tensors and the words as JSON."""
    given = {f.name: getattr(explorer, f.name) for f in fields(explorer)}
    arrays = {
        name: value.astype(np.float32 if value.dtype.kind == "f" else np.int32)
        for name, value in given.items()
        if isinstance(value, np.ndarray)
    }
    write_tensors(folder / NEURON_ARRAYS, arrays)
    texts = {str(i): text for i, text in explorer.texts.items()}
    write_json(folder / NEURONS, {"no_readout": explorer.no_readout, "texts": texts})


def read_explorer(folder: Path) -> Explorer | None:
    """Return the details of a checkpoint's neurons, or None for checkpoints without details.

    Only the last planned checkpoint has details. Raises if only one of the two files is there.
    """
    if not any((folder / name).exists() for name in (NEURON_ARRAYS, NEURONS)):
        return None
    record, arrays = read_json(folder / NEURONS), read_tensors(folder / NEURON_ARRAYS)
    optional = ("W_gate_norm", "written", "written_logit", *LATER)
    given: dict[str, Any] = {f.name: arrays[f.name] for f in fields(Explorer) if f.name in arrays}
    given |= {name: arrays.get(name) for name in optional}
    missing = {f.name for f in fields(Explorer)} - given.keys() - {"no_readout", "texts"}
    for name in missing:
        _ = arrays[name]  # an error that says which file is damaged
    texts = {int(i): text for i, text in record["texts"].items()}
    return Explorer(**given, no_readout=record["no_readout"], texts=texts)
