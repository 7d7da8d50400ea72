"""Everything the sections of a report read, loaded once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A run with all its checkpoints in step order; the last is the one most sections speak of."""

    run: Run
    manifest: dict[str, Any]
    steps: tuple[int | None, ...]
    records: tuple[dict[str, Any], ...]
    effects: tuple[pd.DataFrame, ...]
    tokens: pd.DataFrame  # with the clean loss at the last checkpoint

    @property
    def data(self) -> dict[str, Any]:
        """The corpus and the filter, as recorded."""
        return self.manifest["data"]

    @property
    def config(self) -> dict[str, Any]:
        """The study's settings."""
        return self.manifest["config"]

    @property
    def last(self) -> pd.DataFrame:
        """Effects at the last checkpoint."""
        return self.effects[-1]

    @property
    def layer(self) -> int:
        """The analysed layer, from 0."""
        return int(self.manifest["layer"])

    @property
    def layer_name(self) -> str:
        """The layer in words."""
        return f"layer {self.layer}, the last" if self.config["layer"] == -1 else f"layer {self.layer}"

    @property
    def model(self) -> str:
        """The model by the name it was asked for."""
        name = self.config["model"] or "embedded series"
        return f"{name}@{self.config['revision']}" if self.config["revision"] else name

    @property
    def has_common(self) -> bool:
        """Whether there were common targets to compare with."""
        return "common_abs_delta_loss" in self.last

    @property
    def is_finished(self) -> bool:
        """Whether the study came to its end: it then gathers all checkpoints in `run.json`."""
        return len(self.manifest["checkpoints"]) == len(self.steps)


def findings(run: Run) -> Findings:
    """Read a run folder."""
    steps = tuple(run.steps or [None])  # without any, reading the last one says what to do
    return Findings(
        run=run,
        manifest=run.manifest,
        steps=steps,
        records=tuple(run.step_record(step) for step in steps),
        effects=tuple(run.effects(step) for step in steps),
        tokens=run.tokens().assign(loss=np.asarray(run.token_loss(), dtype=np.float64)),
    )
