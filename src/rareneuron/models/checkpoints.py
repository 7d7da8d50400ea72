"""A training run as a list of checkpoints, each with the place that its weights come from.

A series is a folder of `step<N>/` folders, or a model on the Hub with branches named `step<N>`; other forms of such
names (`checkpoint-<N>`, …) are in `steps`. A single model is a series of one; its step is read from its folder's or
revision's name, and is None where that doesn't say one.
Branches move, so a checkpoint of a series carries the commit that its branch stood for when the series was listed,
and `checkpoint_folder` holds to it: whatever asks later, in whatever process, gets the same weights.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.links import expanded
from rareneuron.models.hub import ModelFolder, branch_commits, is_local, model_folder, split_revision
from rareneuron.models.loading import refuse_adapter, weight_files
from rareneuron.models.snapshots import snapshots_of
from rareneuron.models.steps import FORMS, stage_of, step_of


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One set of weights of a model: a folder of this machine, or a revision on the Hub."""

    step: int | None  # optimiser steps; None where the name doesn't say
    source: str  # the folder's path, or the Hub id
    revision: str | None = None
    commit: str | None = None  # of the Hub; None for a folder, and for a revision that wasn't asked about yet


def step_order(step: int | None) -> tuple[bool, int]:
    """The key that sorts steps: by number, and an unknown one last, as the final model of a training run."""
    return step is None, step or 0


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
        found = [
            Checkpoint(step=step_of(branch), source=name, revision=branch, commit=commit)
            for branch, commit in branch_commits(name).items()
            if step_of(branch) is not None
        ]
    refuse_stages(name, found)
    found = sorted(found, key=lambda checkpoint: step_order(checkpoint.step))
    for first, second in pairwise(found):
        if first.step == second.step:
            raise BrokenCheckpoint(
                f"{name} has two checkpoints of step {first.step}: {label(first)} and {label(second)}. Rename or "
                "remove one."
            )
    return found if steps is None else select_steps(name, found, steps)


def all_checkpoints(model: str | os.PathLike[str], revision: str | None = None) -> list[Checkpoint]:
    """Every step of a series, or the one checkpoint that is named."""
    name, revision = split_revision(model, revision)
    return list_checkpoints(name, revision, None if revision is not None else "all")


def local_checkpoints(name: str, *, series: bool) -> list[Checkpoint]:
    """The step folders of a folder; or the folder itself, where it holds a model and no series is asked for."""
    revisions = snapshots_of(expanded(name))
    if series and (found := {r: place for r, place in revisions.items() if step_of(r) is not None}):
        return [Checkpoint(step=step_of(revision), source=str(place)) for revision, place in found.items()]
    folder = model_folder(name).folder
    refuse_adapter(folder)
    holds_model = (folder / "config.json").is_file()
    inside = [child for child in folder.iterdir() if child.is_dir() and step_of(child.name) is not None]
    if holds_model:  # beside its weights a trainer keeps its own state in such folders, which are no models
        inside = [child for child in inside if (child / "config.json").is_file()]
    if inside and (series or not holds_model):
        return [Checkpoint(step=step_of(child.name), source=str(child)) for child in inside]
    if not holds_model:
        raise ModelNotFound(
            f"{name} holds neither config.json nor folders named step<N>, so it is neither a model nor a series; it "
            f"holds {contents(folder)}. Give a folder that `save_pretrained` wrote, a GGUF file, or a folder of "
            f"checkpoints whose names say their step: {', '.join(FORMS)}."
        )
    return [Checkpoint(step=step_of(Path(folder).resolve().name), source=name)]


def contents(folder: Path) -> str:
    """What lies in a folder, for an error: a few names, and how many more."""
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "nothing"


def refuse_stages(name: str, found: Sequence[Checkpoint]) -> None:
    """Refuse a series of several stages: each counts its steps anew, so they aren't one curve."""
    stages = sorted({stage for c in found if (stage := stage_of(name_of(c))) is not None})
    if len(stages) > 1:
        shown = ", ".join(stages[:4]) + (", …" if len(stages) > 4 else "")
        raise BrokenCheckpoint(
            f"{name} has checkpoints of {len(stages)} stages ({shown}), and each counts its steps anew, so they aren't "
            "one series. Put the folders of one stage into a folder of their own, or name a single checkpoint with "
            "`--revision`."
        )


def name_of(checkpoint: Checkpoint) -> str:
    """The name that a checkpoint's step is read from: its revision, or its folder's."""
    return checkpoint.revision or Path(checkpoint.source).name


def select_steps(name: str, series: Sequence[Checkpoint], steps: str | Iterable[int]) -> list[Checkpoint]:
    """The checkpoints of a series that have the steps asked for; a step that isn't there is refused."""
    if not series:
        raise ModelNotFound(
            f"{name} has no branches named step<N> (or {', '.join(list(FORMS)[1:])}), so its training can't be "
            "followed. Leave the steps out to study its default branch, or name a branch with `--revision`."
        )
    if isinstance(steps, str):
        if steps != "all":
            raise ModelNotFound(f"Steps are `all` or a list of numbers, not {steps!r}.")
        return list(series)
    wanted = set(steps)
    absent = sorted(wanted - {checkpoint.step for checkpoint in series})
    if absent:
        there = ", ".join(str(checkpoint.step) for checkpoint in series if checkpoint.step is not None)
        raise ModelNotFound(
            f"{name} has no checkpoint of step {', '.join(map(str, absent))}. "
            + (f"It has {there}." if there else "It is a single model of unknown step: leave the steps out.")
        )
    return [checkpoint for checkpoint in series if checkpoint.step in wanted]


def checkpoint_folder(checkpoint: Checkpoint, *, weights: bool = True) -> ModelFolder:
    """The files of a checkpoint on this machine, fetched from the Hub where need be.

    Args:
        checkpoint: As `list_checkpoints` gives it. Where it has a commit, files are those of that commit.
        weights: Whether weights are wanted, too, or only config and tokenizer.

    Returns:
        The folder, and the commit for a model of the Hub. Ask once and hand the record on: every call asks the Hub.
    """
    return model_folder(checkpoint.source, checkpoint.revision, commit=checkpoint.commit, weights=weights)


def pin(checkpoint: Checkpoint, files: ModelFolder) -> Checkpoint:
    """The checkpoint with the commit that its files are of, so that later requests get the same weights."""
    return replace(checkpoint, commit=files.commit)


def why_no_weights(checkpoint: Checkpoint) -> str | None:
    """The reason why a folder of this machine has no readable weights; None where it has, and for the Hub's models."""
    if is_local(checkpoint.source):
        try:
            weight_files(checkpoint_folder(checkpoint).folder)
        except BrokenCheckpoint as error:
            return str(error)
    return None


def label(checkpoint: Checkpoint) -> str:
    """Where a checkpoint comes from, for people: its folder, its Hub id, or `id@revision`."""
    return checkpoint.source if checkpoint.revision is None else f"{checkpoint.source}@{checkpoint.revision}"
