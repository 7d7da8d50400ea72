"""Encodes one checkpoint as a task: a small JSON object that any worker can compute."""

from dataclasses import asdict
from typing import Any

from rareneuron import errors
from rareneuron.errors import RareNeuronError
from rareneuron.measure.checkpoint import compute_checkpoint
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.loading import hide_progress_bars
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layout import step_folder
from rareneuron.runs.options import with_option
from rareneuron.runs.store import RunStore

TRIES = 3  # for a checkpoint whose worker died: memory may have been short only once


def task_of(config: StudyConfig, checkpoint: Checkpoint, *, is_last: bool) -> dict[str, Any]:
    """Return everything that a worker needs beside the run folder."""
    return {"config": asdict(config), "checkpoint": asdict(checkpoint), "is_last": is_last}


def do_task(task: dict[str, Any]) -> dict[str, Any]:
    """Compute one checkpoint in a worker. Errors that a user can mend are part of the answer; others are raised."""
    hide_progress_bars()  # those of several workers would overlap
    settings, checkpoint = task["config"], Checkpoint(**task["checkpoint"])
    if isinstance(settings["steps"], list):
        settings = settings | {"steps": tuple(settings["steps"])}
    config = StudyConfig(**settings)
    try:
        compute_checkpoint(RunStore(config.run_folder), config, checkpoint, is_last=task["is_last"])
    except RareNeuronError as error:
        return {"step": step_folder(checkpoint.step), "error": type(error).__name__, "message": with_option(error)}
    return {"step": step_folder(checkpoint.step)}


def refuse_failed(answer: dict[str, Any]) -> None:
    """Raise the error that a worker's answer holds, if any, as if it had happened here."""
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
