"""Writes and reads what attention heads of earlier layers write to the neurons of the studied one (`measure.routing`).

A table has all heads, by estimates; arrays have the influence of the first few on every neuron, by context.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rareneuron.errors import NotMeasured, Unavailable
from rareneuron.maths.routing import Influence
from rareneuron.runs.files import read_json, read_table, read_tensors, write_json, write_table, write_tensors
from rareneuron.runs.layout import ROUTING, ROUTING_ARRAYS, ROUTING_HEADS


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The heads of earlier layers, and the influence of those that were replaced one at a time."""

    heads: pd.DataFrame  # docs/run-folder.md describes it
    influence: dict[str, Influence]  # by the printed name of a head, the largest first


def write_routing(folder: Path, found: Routing | Unavailable) -> None:
    """Write a record, and a table and arrays where there are any."""
    if isinstance(found, Unavailable):
        write_json(folder / ROUTING, {"unavailable": found.why})
        return
    write_json(folder / ROUTING, {"unavailable": None, "patched": list(found.influence)})
    write_table(folder / ROUTING_HEADS, found.heads)
    arrays: dict[str, np.ndarray] = {}
    for head, influence in found.influence.items():
        arrays |= {f"{head}.rare": influence.rare, f"{head}.common": influence.common}
        arrays |= {"n_rare": influence.n_rare, "n_common": influence.n_common}
    write_tensors(folder / ROUTING_ARRAYS, arrays)


def read_routing(folder: Path) -> Routing:
    """Return what heads write to the neurons. Raises `NotMeasured` with the reason where the study didn't look."""
    if not (folder / ROUTING).is_file():
        raise NotMeasured(
            "What attention heads write to the neurons is measured at the last planned checkpoint of a study of "
            "several layers by this version: `rareneuron study --layers all` with the same settings and another --out "
            "has it."
        )
    record = read_json(folder / ROUTING)
    if record["unavailable"] is not None:
        raise NotMeasured(record["unavailable"])
    arrays = read_tensors(folder / ROUTING_ARRAYS)
    counts = {"n_rare": arrays["n_rare"], "n_common": arrays["n_common"]}
    return Routing(
        heads=read_table(folder / ROUTING_HEADS),
        influence={
            head: Influence(rare=arrays[f"{head}.rare"], common=arrays[f"{head}.common"], **counts)
            for head in record["patched"]
        },
    )
