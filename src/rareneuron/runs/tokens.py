"""Writes and reads the analysed tokens of a study: a table, the contexts, and how they were chosen.

A study continues from these without its corpus; a digest tells whether two runs analysed the same tokens.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rareneuron.data.selection import Selection, Stage
from rareneuron.runs.files import digest, read_table, read_tensors, write_table, write_tensors
from rareneuron.runs.layout import CONTEXTS, TOKENS
from rareneuron.runs.records import DataRecord
from rareneuron.runs.store import RunStore


@dataclass(frozen=True, kw_only=True)
class TokenStage:
    """The analysed tokens, their table as stored, and the record of how they were chosen."""

    selection: Selection
    table: pd.DataFrame
    record: DataRecord
    log_frequency: Float[np.ndarray, " vocab"] | None = None  # `maths.mechanism.log_frequency`; None: unknown


def save_tokens(store: RunStore, tokens: TokenStage) -> None:
    """Write the token table and the contexts, so that a study continues without its corpus."""
    selection = tokens.selection
    write_table(store.root / TOKENS, tokens.table)
    of_types = {} if tokens.log_frequency is None else {"log_frequency": tokens.log_frequency}
    write_tensors(
        store.root / CONTEXTS,
        {"windows": selection.windows, "context_index": selection.context_index, **of_types},
        {"fingerprint": tokens.record.fingerprint},
    )


def load_tokens(store: RunStore) -> TokenStage:
    """Return the tokens of a study that was begun before."""
    record = store.read_manifest().data
    table = read_table(store.root / TOKENS)
    contexts = read_tensors(store.root / CONTEXTS)
    selection = Selection(
        windows=contexts["windows"],
        context_index=contexts["context_index"],
        context=table["context"].to_numpy(np.int64, copy=True),  # pandas hands out read-only views
        position=table["position"].to_numpy(np.int64, copy=True),
        target=table["target"].to_numpy(np.int64, copy=True),
        rare=table["rare"].to_numpy(bool, copy=True),
        stages=tuple(
            Stage(name=stage.name, types=stage.types, occurrences=stage.occurrences) for stage in record.stages
        ),
        n_requested=record.n_requested,
        n_available=record.n_available,
        n_contexts_read=record.n_contexts_read,
        per_context=record.per_context,
    )
    return TokenStage(selection=selection, table=table, record=record, log_frequency=contexts.get("log_frequency"))


def selection_digest(selection: Selection) -> str:
    """Return the SHA-256 of the choice of tokens: contexts, positions, targets."""
    names = ("windows", "context_index", "context", "position", "target", "rare")
    return digest({name: getattr(selection, name) for name in names})
