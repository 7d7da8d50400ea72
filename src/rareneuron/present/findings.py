"""What the sections of a report read: a run with all its checkpoints, loaded once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rareneuron.maths.gauge import Gauge
from rareneuron.present.figure import Sheets
from rareneuron.present.subject import Subject
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.records import DataRecord, Manifest, StepRecord
from rareneuron.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A run with all its checkpoints in step order; the last is the one most sections speak of."""

    run: Run
    manifest: Manifest
    steps: tuple[int | None, ...]
    records: tuple[StepRecord, ...]
    effects: tuple[pd.DataFrame, ...]
    tokens: pd.DataFrame  # with the clean loss at the last checkpoint

    @property
    def data(self) -> DataRecord:
        """The corpus and the filter, as recorded."""
        return self.manifest.data

    @property
    def config(self) -> StudyConfig:
        """The study's settings."""
        return self.manifest.config

    @property
    def last(self) -> pd.DataFrame:
        """Effects at the last checkpoint."""
        return self.effects[-1]

    @property
    def subject(self) -> Subject:
        """The last checkpoint, with the names of its model and layer."""
        return Subject(run=self.run, step=self.steps[-1], record=self.records[-1])

    @property
    def gauge(self) -> Gauge:
        """What the model leaves open about its neurons; nothing, as far as a run of an older version says."""
        return self.records[-1].gauge or Gauge()

    @cached_property
    def sheets(self) -> Sheets:
        """The run's figures, drawn once."""
        return Sheets(self.run)

    @property
    def has_common(self) -> bool:
        """Whether common targets were analysed to compare with."""
        return "common_abs_delta_loss" in self.last

    @property
    def is_finished(self) -> bool:
        """Whether the study came to its end, where it gathers all checkpoints in `run.json`."""
        return len(self.manifest.checkpoints) == len(self.steps)


def findings(run: Run) -> Findings:
    """Read all checkpoints of a run."""
    steps = tuple(run.steps or [None])  # without any, reading the last one says what to do
    return Findings(
        run=run,
        manifest=run.manifest,
        steps=steps,
        records=tuple(run.step_record(step) for step in steps),
        effects=tuple(run.effects(step) for step in steps),
        tokens=run.tokens().assign(loss=np.asarray(run.token_loss(), dtype=np.float64)),
    )
