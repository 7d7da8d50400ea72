"""Writes and reads the effects of the units of several layers at one checkpoint (`measure.layers` computes them)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rareneuron.errors import NotMeasured
from rareneuron.runs.files import read_record, read_table, read_tensors, write_json, write_table, write_tensors
from rareneuron.runs.layout import LAYER_SUMS, LAYERS, LAYERS_RECORD
from rareneuron.runs.records import LayersRecord, as_json

CERTAINTIES = {  # what the word beside a number says
    "exact": "computed at every token, by the closed form or by patching",
    "verified": "estimated by gradient, with an interval from patched cells",
    "screen": "estimated by gradient, and not verified",
}


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Effects of the units of several layers: a table, sums for resampling contexts, and what they rest on."""

    table: pd.DataFrame  # docs/run-folder.md describes it
    sums: Mapping[str, np.ndarray]  # [context, layer], by kind of unit, kind of target and name
    record: LayersRecord


def write_layers(folder: Path, found: Layers) -> None:
    """Write three files."""
    write_table(folder / LAYERS, found.table)
    write_tensors(folder / LAYER_SUMS, dict(found.sums))
    write_json(folder / LAYERS_RECORD, as_json(found.record))


def read_layers(folder: Path) -> Layers:
    """Return the effects of all layers. Raises `NotMeasured` for a study that looked at one."""
    if not (folder / LAYERS_RECORD).is_file():
        raise NotMeasured(
            "The study looked at one layer. Effects of others are there after `rareneuron study --layers all` with the "
            "same settings and another --out."
        )
    return Layers(
        table=read_table(folder / LAYERS),
        sums=read_tensors(folder / LAYER_SUMS),
        record=read_record(folder / LAYERS_RECORD, LayersRecord),
    )
