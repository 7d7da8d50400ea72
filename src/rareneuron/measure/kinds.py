"""Adds to the table of effects what each neuron writes, and which known kind it is of (`maths.neuron_kinds`)."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from rareneuron.errors import Unavailable
from rareneuron.maths.neuron_kinds import kinds_of, written
from rareneuron.models.adapter import Adapter


def with_kinds(
    table: pd.DataFrame, adapter: Adapter, layer: int, log_frequency: Float[np.ndarray, " vocab"] | None
) -> pd.DataFrame:
    """Return the table of effects with its neurons' kinds; as it is where no readout stands behind the layer."""
    readout = adapter.readout_behind(layer)
    if isinstance(readout, Unavailable) or "norm_share" not in table:
        return table
    W_out = adapter.weights(layer).W_out
    sign = torch.ones(len(W_out), dtype=torch.float64, device=W_out.device)
    if adapter.gauge(layer).sign:
        negative = torch.from_numpy(table["mean_act"].to_numpy() < 0).to(W_out.device)
        sign[negative] = -1.0
    f = None if log_frequency is None else torch.from_numpy(log_frequency).to(W_out.device)
    found = written(readout, W_out, f, sign, min(adapter.vocab, len(adapter.tokenizer)))
    low = table["frequency_share_low"].to_numpy() if "frequency_share_low" in table else None
    return table.assign(**asdict(found), kind=kinds_of(found, table["norm_share_low"].to_numpy(), low))
