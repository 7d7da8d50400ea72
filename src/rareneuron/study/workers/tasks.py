"""One checkpoint as a task: a few words of JSON that any worker can do."""

from dataclasses import asdict
from typing import Any

from rareneuron import errors
from rareneuron.errors import RareNeuronError
from rareneuron.measure.checkpoint import compute_checkpoint
from rareneuron.measure.identity import step_name
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.loading import hide_progress_bars
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.options import with_option
from rareneuron.runs.store import RunStore

TRIES = 3  # for a checkpoint whose worker died: short of memory once, it may not be again


def task_of(config: StudyConfig, checkpoint: Checkpoint, *, is_last: bool) -> dict[str, Any]:
    """Everything that a worker needs beside the run folder."""
    return {"config": asdict(config), "checkpoint": asdict(checkpoint), "is_last": is_last}


def do_task(task: dict[str, Any]) -> dict[str, Any]:
    """Compute one checkpoint in a worker; what a user can mend is answered, anything else is let through."""
    hide_progress_bars()  # several workers' would run into one another
    settings, checkpoint = task["config"], Checkpoint(**task["checkpoint"])
    if isinstance(settings["steps"], list):
        settings = settings | {"steps": tuple(settings["steps"])}
    config = StudyConfig(**settings)
    try:
        compute_checkpoint(RunStore(config.run_folder), config, checkpoint, is_last=task["is_last"])
    except RareNeuronError as error:
        return {"step": step_name(checkpoint), "error": type(error).__name__, "message": with_option(error)}
    return {"step": step_name(checkpoint)}


def refuse_failed(answer: dict[str, Any]) -> None:
    """Raise what a worker ran into, as if it had happened here."""
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
