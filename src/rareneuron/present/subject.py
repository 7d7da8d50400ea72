"""The checkpoint that a page, a table or a figure speaks of: its model's name, its layer, its facts.

One rule each for what a model is called and for what "the last layer" means, so that a report and its tables agree.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rareneuron.present.published import paper_name
from rareneuron.present.wording import step_name, visible, without_hidden
from rareneuron.runs.records import StepRecord
from rareneuron.runs.run import Run

SNAPSHOT = re.compile(r"models--([^/\\]+)")  # a folder of the Hub's cache, above those of its snapshots


def folder_name(path: str, resolved: str | None = None) -> str:
    """Return what a model in a folder is called: its id where the folder is the Hub's cache, else the folder's name.

    `resolved` is the whole path, by which `.` has a name, too.
    """
    cached = SNAPSHOT.search(resolved or path)
    if cached is not None:
        return cached[1].replace("--", "/")
    name = Path(path).name
    return name if name not in ("", "..") or resolved is None else Path(resolved).name


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint of a run."""

    run: Run
    step: int | None
    record: StepRecord

    @property
    def facts(self) -> dict[str, Any]:
        """The columns that all of its rows share in a table."""
        manifest = self.run.manifest
        return {
            "model": self.model,
            "n_params": self.record.model.n_params,
            "step": self.step,
            "layer": self.layer,
            "definitions": self.run.definitions,
            "group_size": manifest.config.group_size,
            "n_tokens": manifest.data.n_rare,
        }

    @property
    def model(self) -> str:
        """The model's name: its whole id on the Hub, or the name of its folder."""
        config = self.run.manifest.config
        name = config.model or "embedded series"
        name = name if self.hub_id else folder_name(name, self.run.manifest.resolved.get("model"))
        return without_hidden(f"{name}@{config.revision}" if config.revision else name)

    @property
    def hub_id(self) -> str | None:
        """The id on the Hub that the weights came from; None for a local folder, whatever its name."""
        return self.record.model.source if self.record.model.commit else None

    @property
    def label(self) -> str:
        """Model and step."""
        return f"{self.model}, {'final' if self.step is None else 'step ' + step_name(self.step)}"

    @property
    def layer(self) -> int:
        """The analysed layer, counted from 0."""
        return self.run.manifest.layer

    @property
    def layer_name(self) -> str:
        """The layer in words, such as `layer 3, the last`."""
        return f"layer {self.layer}{', the last' if self.is_last_layer else ''}"

    @property
    def is_last_layer(self) -> bool:
        """Whether the analysed layer is the model's last, whichever way the study asked for it."""
        return self.run.manifest.n_layers == self.layer + 1

    @property
    def in_paper(self) -> str | None:
        """The paper's name of the model, where the paper's values are of the same model and the same layer."""
        return paper_name(self.hub_id) if self.hub_id and self.is_last_layer else None


def subject(run: Run, step: int | None) -> Subject:
    """Return one checkpoint of a run; an unknown step is an error that lists the known ones."""
    record = run.step_record(step)
    return Subject(run=run, step=run.steps[-1] if step is None else step, record=record)


def subjects_with_labels(runs: Sequence[Run], step: int | None = None) -> list[tuple[str, Subject]]:
    """Return a checkpoint of each run, each with its own label: its folder is added where two would be the same."""
    subjects = [subject(run, step) for run in runs]
    labels = [of.label for of in subjects]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({visible(of.run.path.name)})" for label, of in zip(labels, subjects, strict=True)]
    if len(set(labels)) < len(labels):  # folders of the same name
        labels = [f"{label} {place}" for place, label in enumerate(labels, 1)]
    return list(zip(labels, subjects, strict=True))
