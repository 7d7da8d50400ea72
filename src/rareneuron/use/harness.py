"""Tasks of lm-evaluation-harness with and without a run's groups.

The harness gets the model as it is in memory and knows nothing of groups: hooks replace them while it runs. Each
condition has an adapter of its own and no cache, so nothing of one can be read in another. Scores are those that it
logs for each item. Domain: lm_eval from 0.4.9 on. Oracle: tests/use/test_harness.py.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig
from rareneuron.links import expanded
from rareneuron.models.adapter import Adapter
from rareneuron.runs.evaluations import Evaluation, write_evaluation
from rareneuron.runs.records import EvaluationRecord
from rareneuron.runs.run import Run
from rareneuron.use.ablated import ablated
from rareneuron.use.evaluate import RANDOM_RUNS, ROLES, compared_groups, of_run, refuse_unknown, shared_members
from rareneuron.use.model import run_model
from rareneuron.use.scores import Measure, Scores, draws_table, items_table, summary
from rareneuron.use.units import Place, Units, opened_run

LIKELIHOOD = "log-likelihood"  # of the right answer; where there are others, less that of the best of them
BATCH_SIZE = 8

Logged = Mapping[str, Sequence[Mapping[str, Any]]]  # what the harness keeps of each item, by task


@dataclass(frozen=True, kw_only=True)
class Harness:
    """The parts of lm_eval that are used."""

    evaluate: Any
    model: Any
    tasks: Any
    version: str


def harness() -> Harness:
    """Import lm_eval, or say how to install it."""
    try:
        return Harness(
            evaluate=import_module("lm_eval").simple_evaluate,
            model=import_module("lm_eval.models.huggingface").HFLM,
            tasks=import_module("lm_eval.tasks").TaskManager,
            version=version("lm_eval"),
        )
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"--tasks are those of lm-evaluation-harness, of which the package {error.name} isn't installed. Install "
            "it with `pip install 'rareneuron[eval]'`; the rare-word swap (--swap) needs nothing."
        ) from error


def evaluate_tasks(
    run: Run | str | Path,
    tasks: Sequence[str],
    *,
    task_folder: str | Path | None = None,
    groups: Sequence[str] = ROLES,
    n_random: int | None = None,
    to: str = "mean",
    n_shots: int | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    step: int | None = None,
    adapter: Adapter | None = None,
) -> Evaluation:
    """Score tasks of lm-evaluation-harness with and without a run's groups, and keep the result in the run folder.

    Args:
        run: A run, or its folder.
        tasks: Names of tasks or of groups of them, such as `lambada_openai` or `blimp`.
        task_folder: A folder with further task files; what they name as functions is run.
        groups: Which groups of the run to switch off: boosting, suppressing.
        n_random: Random groups of each kind, 20 by default; each is another run over all items.
        to: What replaces the group: its mean over rare targets, or zero.
        n_shots: Examples before each item; by default what the task says.
        limit: How many items of each task are scored.
        batch_size: Of the harness's model.
        step: The run's checkpoint; the last one by default.
        adapter: The run's model, if it is loaded already.

    Returns:
        A summary with paired differences, every item, and every random group.

    Raises:
        InvalidConfig: lm_eval isn't installed, or it knows no such task.
        NotMeasured: The run has no groups.

    Source:
        The paper's limitations, which ask for tasks.

    Example:
        >>> import rareneuron as rn
        >>> config = rn.StudyConfig(
        ...     steps=(4096,), n_tokens=200, max_corpus_tokens=200_000, group_size=20, n_random=200, out="runs/small"
        ... )
        >>> run = rn.run_study(config, progress=False)
        >>> try:
        ...     rn.evaluate_tasks(run, ["no_such_task"], groups=["boosting"])
        ... except rn.RareNeuronError as error:  # no such task, or the harness isn't installed
        ...     print(str(error)[-1])
        .
    """
    opened = opened_run(run)
    assert opened is not None, "a run is given"
    refuse_unknown(groups, to)
    program = harness()
    manager = task_manager(program, tasks, task_folder)
    n = RANDOM_RUNS if n_random is None else n_random
    named, random = compared_groups(opened, groups, n, step)
    adapter = run_model(opened, step) if adapter is None else adapter
    began = perf_counter()

    def logged(members: Int[np.ndarray, " size"] | None) -> Logged:
        place: Place = (opened.manifest.layer, "neurons")
        index = {} if members is None else {place: members}
        with ablated(adapter.model, opened if index else None, units=Units(index), to=to, step=step):
            return run_harness(program, adapter, tasks, manager, n_shots=n_shots, limit=limit, batch_size=batch_size)

    clean = logged(None)
    without = {name: logged(of[0]) for name, of in named.items()}
    drawn = {name: [logged(members) for members in of] for name, of in random.items()}
    scores = [scores_of(task, clean[task], without, drawn) for task in clean]
    record = EvaluationRecord(
        name="+".join(tasks).replace("/", "-"),
        tasks=tuple(tasks),
        **of_run(opened, step),
        groups=tuple(groups),
        replaced_by=to,
        n_random=max(map(len, random.values()), default=0),
        seed=0,
        scored="by running the harness for each group",
        program=f"lm_eval {program.version}",
        limit=limit,
        seconds={"scores": perf_counter() - began},
        warnings=shared_members(named, random),
    )
    found = Evaluation(
        record=record,
        table=pd.concat([summary(of) for of in scores], ignore_index=True),
        items=pd.concat([items_table(of) for of in scores], ignore_index=True),
        draws=pd.concat([draws_table(of) for of in scores], ignore_index=True),
    )
    write_evaluation(opened.path, found)
    return found


def task_manager(program: Harness, tasks: Sequence[str], folder: str | Path | None) -> Any:
    """Return what knows the tasks; refuse names that it doesn't know."""
    place = None if folder is None else expanded(folder)
    if place is not None and not place.is_dir():
        raise InvalidConfig(f"There is no folder {place} with task files. Give one that exists (--task-folder).")
    own = program.tasks(include_path=None if place is None else str(place), include_defaults=False)
    if tasks and not set(tasks) - set(own.all_tasks):
        return own  # at once: the harness's own files are thousands
    manager = program.tasks(include_path=None if place is None else str(place))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown or not tasks:
        raise InvalidConfig(
            f"lm_eval {program.version} knows no task {', '.join(unknown) or 'without a name'}. `lm_eval ls tasks` "
            "lists those it has; further ones are files of a folder (--task-folder)."
        )
    return manager


def run_harness(
    program: Harness,
    adapter: Adapter,
    tasks: Sequence[str],
    manager: Any,
    *,
    n_shots: int | None,
    limit: int | None,
    batch_size: int,
) -> Logged:
    """Run the harness on the model as it is now, with an adapter of its own, and return what it logs of each item."""
    with quiet("lm_eval"):
        # The batch size of an adapter is the one that is read; that of `simple_evaluate` is for models by name.
        model = program.model(pretrained=adapter.model, tokenizer=adapter.tokenizer, batch_size=batch_size)
        found = program.evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=n_shots,
            task_manager=manager,
            limit=limit,
            use_cache=None,
            cache_requests=False,
            bootstrap_iters=0,
            log_samples=True,
        )
    return {task: found["samples"][task] for task in sorted(found["samples"])}


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a library say errors alone, and show its progress to a terminal alone."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(before)


def scores_of(
    task: str, clean: Sequence[Mapping[str, Any]], without: Mapping[str, Logged], drawn: Mapping[str, Sequence[Logged]]
) -> Scores:
    """Return the scores of one task's items under all conditions; refuse conditions with other items."""
    rows = by_item(clean)
    measures = {}
    for name, values in numbers(rows).items():

        def of(logged: Logged, name: str = name) -> Float[np.ndarray, " item"]:
            other = by_item(logged[task])
            if [row["doc_hash"] for row in other] != [row["doc_hash"] for row in rows]:
                raise InvalidConfig(
                    f"The task {task} gave other items to two conditions, so their scores can't be compared. Take a "
                    "task whose items don't depend on chance."
                )
            return numbers(other)[name]

        measures[name] = Measure(
            clean=values,
            without={group: of(logged) for group, logged in without.items()},
            random={null: np.stack([of(logged) for logged in of_null]) for null, of_null in drawn.items()},
        )
    if not measures:
        raise InvalidConfig(
            f"The task {task} logs no number for its items that could be compared. Take a task that scores each item."
        )
    every = np.zeros(len(rows), np.int64)
    return Scores(task=task, document=np.arange(len(rows)), kinds=("",), kind=every, measures=measures)


def by_item(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what is logged of each item by the first filter, in the order of the items."""
    first = samples[0]["filter"]
    return sorted((row for row in samples if row["filter"] == first), key=lambda row: int(row["doc_id"]))


def numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Float[np.ndarray, " item"]]:
    """Return every metric that is one number for each item, and the log-likelihood of the right answer."""
    found = {
        name: np.array([float(row[name]) for row in rows])
        for name in rows[0]["metrics"]
        if all(np.isscalar(row.get(name)) and not isinstance(row.get(name), str) for row in rows)
    }
    likelihoods = [likelihood(row) for row in rows]
    if all(value is not None for value in likelihoods):
        found[LIKELIHOOD] = np.array(likelihoods, np.float64)
    return found


def likelihood(row: Mapping[str, Any]) -> float | None:
    """Return the log-likelihood of an item's right answer, less that of the best wrong one; None where it has none."""
    answers = row["filtered_resps"]
    pairs = [answer for answer in answers if isinstance(answer, list | tuple) and len(answer) == 2]
    if len(pairs) != len(answers) or not pairs:
        return None
    values = [float(value) for value, _ in pairs]
    if len(values) == 1:
        return values[0]
    target = row["target"]
    if not isinstance(target, int) or not 0 <= target < len(values):
        return None
    return values[target] - max(value for k, value in enumerate(values) if k != target)
