"""Reads the optimiser step from the name of a checkpoint's folder or branch, in the ways that trainers write it."""

import re

# The forms of names, as people read them, and what matches them. Stages of a training count their steps anew.
FORMS = {
    "step<N>": re.compile(r"step(\d+)"),
    "step<N>-tokens<T>": re.compile(r"step(\d+)-tokens\d+[KMBT]?"),
    "stage<S>-step<N>": re.compile(r"(?P<stage>stage\d+(?:-ingredient\d+)?)-step(\d+)"),
    "stage<S>-step<N>-tokens<T>": re.compile(r"(?P<stage>stage\d+(?:-ingredient\d+)?)-step(\d+)-tokens\d+[KMBT]?"),
    "step_<N>": re.compile(r"step[-_](\d+)"),
    "global_step<N>": re.compile(r"global[-_]?step[-_]?(\d+)"),
    "checkpoint-<N>": re.compile(r"checkpoint[-_](\d+)"),
    "ckpt_<N>": re.compile(r"ckpt[-_]?(\d+)"),
    "iter_<N>": re.compile(r"iter[-_](\d+)"),
}


def form_of_name(name: str | None) -> str | None:
    """Return the form of a name that says a step; None for any other name."""
    return next((form for form, pattern in FORMS.items() if pattern.fullmatch(name or "")), None)


def step_of(name: str | None) -> int | None:
    """Return the step that a name says; None where it says none."""
    form = form_of_name(name)
    match = FORMS[form].fullmatch(name or "") if form is not None else None
    return int(match[match.lastindex or 1]) if match else None


def stage_of(name: str | None) -> str | None:
    """Return the stage of the training that a name says; None where it says none."""
    form = form_of_name(name)
    match = FORMS[form].fullmatch(name or "") if form is not None else None
    return match.groupdict().get("stage") if match else None
