"""The commands that use the neurons of a run."""

from pathlib import Path
from typing import Any

import click

from rareneuron.cli.base import Place, cli, emit, json_option, quiet_libraries, run_argument, step_option, table_records

GROUPS = ("boosting", "suppressing", "random", "matched-boosting", "matched-suppressing")  # of `use.units`


@cli.command(name="try", short_help="Run a text with and without a group of neurons.")
@run_argument
@click.argument("text")
@click.option("--group", type=click.Choice(GROUPS), help="Neurons to switch off.  [default: boosting]")
@click.option("--units", metavar="29.511,3.h2", help="Neurons and heads by name, in place of a group.")
@click.option("--to", type=click.Choice(["mean", "zero", "resample"]), default="mean", help="What replaces them.")
@click.option("--seed", type=int, default=0, help="Which of the random groups.")
@click.option(
    "--new", "n_new", type=click.IntRange(0), default=20, help="Tokens of either continuation.  [default: 20]"
)
@step_option
@json_option
def attempt(
    run: Path,
    text: str,
    group: str | None,
    units: str | None,
    to: str,
    seed: int,
    n_new: int,
    step: int | None,
    as_json: bool,
) -> None:
    """Run TEXT through the model of RUN with and without some of its neurons, token by token.

    One row per token: its loss with and without them, the change, and the neurons of the run's layer whose ablation,
    one at a time, would change its loss most. Then how the model goes on, with and without.

    \b
    rareneuron try runs/embedded "Return the number of rows."
    rareneuron try runs/embedded "Return the number of rows." --group suppressing --to zero
    """
    from rareneuron.use.attempt import attempt_record, attempt_text, try_text

    quiet_libraries()
    found = try_text(run, text, group=group, units=units, to=to, seed=seed, step=step, n_new=n_new)
    emit(attempt_record(found), as_json, lambda: attempt_text(found))


@cli.command(short_help="Write the model without a group of neurons.")
@run_argument
@click.option("-o", "--output", type=Place(), required=True, help="A folder that doesn't exist yet.")
@click.option("--group", type=click.Choice(GROUPS), help="Neurons to switch off.")
@click.option("--units", metavar="29.511,3.h2", help="Neurons and heads by name, in place of a group.")
@click.option(
    "--to",
    type=click.Choice(["mean", "zero"]),
    default="mean",
    help="What replaces them; the mean needs projections with a bias.  [default: mean]",
)
@click.option("--seed", type=int, default=0, help="Which of the random groups.")
@step_option
@json_option
def export(
    run: Path,
    output: Path,
    group: str | None,
    units: str | None,
    to: str,
    seed: int,
    step: int | None,
    as_json: bool,
) -> None:
    """Write the model of RUN with some of its neurons switched off for good: a folder for plain transformers.

    \b
    rareneuron export runs/embedded --group suppressing -o without-suppressing
    """
    from rareneuron.use.export import export_model

    quiet_libraries()
    folder = export_model(run, output, group=group, units=units, to=to, seed=seed, step=step)
    emit({"folder": str(folder)}, as_json, lambda: f"The edited model is in {folder}.")


@cli.command(short_help="Score a task with and without the groups.")
@run_argument
@click.option("--swap", is_flag=True, help="The rare-word swap.  [default, unless --tasks are given]")
@click.option("--tasks", metavar="A,B", help="Tasks of lm-evaluation-harness (extra `eval`).")
@click.option("--task-folder", type=Place(), help="A folder with further task files, whose functions are run.")
@click.option("--shots", "n_shots", type=click.IntRange(0), help="Examples before each item of --tasks.")
@click.option("--limit", type=click.IntRange(1), help="Items of each of --tasks.")
@click.option("--batch-size", type=click.IntRange(1), default=8, help="Of the harness.  [default: 8]")
@click.option("--groups", default="boosting,suppressing", show_default=True, help="Groups of the run to switch off.")
@click.option(
    "--random", "n_random", type=click.IntRange(0), help="Random groups of each kind.  [default: 1000, of --tasks 20]"
)
@click.option("--to", type=click.Choice(["mean", "zero"]), default="mean", help="What replaces them.")
@click.option(
    "--items", "n_items", type=click.IntRange(1), default=500, help="With rare words, at most.  [default: 500]"
)
@click.option(
    "--following", "n_following", type=click.IntRange(0), default=0, help="Tokens behind the word, scored too."
)
@click.option("--data", metavar="TEXT", help="Text to make items of.  [default: what the study left of its own]")
@click.option("--text-field", help="Where its records have the text.")
@click.option("--max-tokens", type=click.IntRange(1), default=2_000_000, help="Read so much of it.  [default: 2000000]")
@click.option("--seed", type=int, default=0, help="Which items are drawn.")
@step_option
@json_option
def evaluate(
    run: Path,
    swap: bool,
    tasks: str | None,
    task_folder: Path | None,
    n_shots: int | None,
    limit: int | None,
    batch_size: int,
    groups: str,
    n_random: int | None,
    to: str,
    n_items: int,
    n_following: int,
    data: str | None,
    text_field: str | None,
    max_tokens: int,
    seed: int,
    step: int | None,
    as_json: bool,
) -> None:
    """Score tasks with and without the groups of RUN, beside random groups, and keep the result in the run.

    The rare-word swap is made of the run's own text, of documents that its study analysed nothing of: does the model
    prefer the word that was written to another as frequent? `rareneuron claims` and `rareneuron report` show it then.

    \b
    rareneuron evaluate runs/embedded
    rareneuron evaluate runs/embedded --following 4 --random 100
    rareneuron evaluate runs/embedded --tasks lambada_openai,blimp --limit 200
    """
    from rareneuron.present.tasks import evaluation_text
    from rareneuron.use.evaluate import evaluate_swap
    from rareneuron.use.harness import evaluate_tasks

    quiet_libraries()
    common: dict[str, Any] = {"groups": groups.split(","), "n_random": n_random, "to": to, "step": step}
    of_harness: dict[str, Any] = {
        "task_folder": task_folder,
        "n_shots": n_shots,
        "limit": limit,
        "batch_size": batch_size,
    }
    made_of: dict[str, Any] = {"data": data, "text_field": text_field, "max_tokens": max_tokens, "seed": seed}
    found = []
    if tasks is not None:
        found.append(evaluate_tasks(run, tasks.split(","), **of_harness, **common))
    if swap or tasks is None:
        found.append(evaluate_swap(run, n_items=n_items, n_following=n_following, **made_of, **common))
    records = [row for of in found for row in table_records(of.table)]
    emit(records, as_json, lambda: "\n\n".join(map(evaluation_text, found)))
