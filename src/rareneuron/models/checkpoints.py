"""A training run as a list of checkpoints, each of which `load_model` takes.

A series is a folder of `step<N>/` folders, or a model on the Hub with branches named `step<N>`. A single model is
a series of one; its step is read from its folder's or revision's name, and is `UNKNOWN_STEP` where that isn't
`step<N>`.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.models.hub import branches, is_local, model_folder, split_revision
from rareneuron.models.loading import weight_files

UNKNOWN_STEP = -1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One set of weights: `load_model(source, revision)`."""

    step: int  # optimiser steps, or UNKNOWN_STEP
    source: str
    revision: str | None = None


def list_checkpoints(
    model: str | os.PathLike[str],
    revision: str | None = None,
    steps: str | Iterable[int] | None = None,
) -> list[Checkpoint]:
    """The checkpoints of a model, by step.

    `steps` is "all" or the steps wanted. Without: all of a folder of `step<N>/` folders, else the one model named.
    A revision names one checkpoint, so it excludes `steps`.
    """
    name, revision = split_revision(model, revision)
    if revision is not None and steps is not None:
        raise ModelNotFound(
            f"{name} at revision {revision!r} is one checkpoint, and steps were asked for beside it. Give one of the "
            "two."
        )
    if is_local(name):
        found = local_checkpoints(name, series=steps is not None)
    elif steps is None:
        found = [Checkpoint(step=step_of(revision), source=name, revision=revision)]
    else:
        named = [(step_of(branch), branch) for branch in branches(name)]
        found = [Checkpoint(step=step, source=name, revision=b) for step, b in named if step != UNKNOWN_STEP]
    found = sorted(found, key=lambda checkpoint: checkpoint.step)
    for first, second in pairwise(found):
        if first.step == second.step:
            raise BrokenCheckpoint(
                f"{name} has two checkpoints of step {first.step}: {label(first)} and {label(second)}. Rename or "
                "remove one."
            )
    return found if steps is None else chosen(name, found, steps)


def all_checkpoints(model: str | os.PathLike[str], revision: str | None = None) -> list[Checkpoint]:
    """Every step of a series, or the one checkpoint that is named."""
    name, revision = split_revision(model, revision)
    return list_checkpoints(name, revision, None if revision is not None else "all")


def local_checkpoints(name: str, *, series: bool) -> list[Checkpoint]:
    """The step folders of a folder; or the folder itself, where it holds a model and no series is asked for."""
    folder = model_folder(name).folder
    holds_model = (folder / "config.json").is_file()
    inside = [child for child in folder.iterdir() if child.is_dir() and step_of(child.name) != UNKNOWN_STEP]
    if inside and (series or not holds_model):
        return [Checkpoint(step=step_of(child.name), source=str(child)) for child in inside]
    if not holds_model:
        raise ModelNotFound(
            f"{name} holds neither config.json nor folders named step<N>, so it is neither a model nor a series. Give "
            "a folder that `save_pretrained` wrote, or one of step<N>/ folders."
        )
    return [Checkpoint(step=step_of(Path(folder).resolve().name), source=name)]


def without_weights(checkpoint: Checkpoint) -> str | None:
    """Why a folder of this machine has no weights that could be read; None where it has, and for the Hub's models."""
    if is_local(checkpoint.source):
        try:
            weight_files(Path(checkpoint.source).expanduser())
        except BrokenCheckpoint as error:
            return str(error)
    return None


def chosen(name: str, found: list[Checkpoint], steps: str | Iterable[int]) -> list[Checkpoint]:
    """The checkpoints of the steps asked for."""
    if not found:
        raise ModelNotFound(
            f"{name} has no branches named step<N>, so its training can't be followed. Leave the steps out to study "
            "its default branch, or name a branch with `--revision`."
        )
    if isinstance(steps, str):
        if steps != "all":
            raise ModelNotFound(f"Steps are `all` or a list of numbers, not {steps!r}.")
        return found
    wanted = set(steps)
    absent = sorted(wanted - {checkpoint.step for checkpoint in found})
    if absent:
        there = ", ".join(str(checkpoint.step) for checkpoint in found if checkpoint.step != UNKNOWN_STEP)
        raise ModelNotFound(
            f"{name} has no checkpoint of step {', '.join(map(str, absent))}. "
            + (f"It has {there}." if there else "It is a single model of unknown step: leave the steps out.")
        )
    return [checkpoint for checkpoint in found if checkpoint.step in wanted]


def step_of(name: str | None) -> int:
    """The number in `step<N>`; UNKNOWN_STEP for any other name."""
    match = re.fullmatch(r"step(\d+)", name or "")
    return int(match[1]) if match else UNKNOWN_STEP


def label(checkpoint: Checkpoint) -> str:
    """Where a checkpoint is."""
    return checkpoint.source if checkpoint.revision is None else f"{checkpoint.source}@{checkpoint.revision}"
