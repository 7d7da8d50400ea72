"""The commands that print a run's results, as text or JSON."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rareneuron.cli.base import (
    Place,
    cli,
    emit,
    json_option,
    run_argument,
    runs_argument,
    step_option,
    table_records,
    table_text,
)
from rareneuron.runs.config import CHOICES

if TYPE_CHECKING:
    from rareneuron.maths import Definitions
    from rareneuron.runs.rankings import Ranking


@cli.command(short_help="List neurons that boost and suppress rare tokens.")
@run_argument
@step_option
@json_option
def groups(run: Path, step: int | None, as_json: bool) -> None:
    """List the boosting and suppressing neurons of a run, largest mean |Δ| first.

    \b
    rareneuron groups runs/embedded
    rareneuron groups runs/embedded --step 512 --json
    """
    from rareneuron.present.terminal import groups_table
    from rareneuron.runs.run import open_run

    table = groups_table(open_run(run), step)
    emit(table_records(table), as_json, lambda: table_text(table))


@cli.command(short_help="List the largest units of all layers.")
@run_argument
@step_option
@click.option("--profile", is_flag=True, help="One row per layer: shares of all effects, rare over common.")
@click.option("--routing", is_flag=True, help="What attention heads of earlier layers write to the studied neurons.")
@click.option("--units", type=click.Choice(CHOICES["units"]), default="both", help="Which units.  [default: both]")
@click.option("--top", type=click.IntRange(1), default=20, help="How many units.  [default: 20]")
@json_option
def layers(run: Path, step: int | None, profile: bool, routing: bool, units: str, top: int, as_json: bool) -> None:
    """List the units with the largest mean |Δ| of all layers, and how sure each number is.

    exact: computed everywhere; verified: estimated, with the half-width of its interval; screen: not verified.

    \b
    rareneuron layers runs/embedded
    rareneuron layers runs/embedded --profile --units neurons
    rareneuron layers runs/embedded --routing
    """
    from rareneuron.conclude.layers import writing_heads
    from rareneuron.present.terminal import largest_units, layer_profiles
    from rareneuron.runs.run import open_run

    if profile and routing:
        raise click.UsageError("--profile and --routing are two tables. Ask for one at a time.")
    opened = open_run(run)
    if routing:
        table = writing_heads(opened, step, top)
    else:
        table = layer_profiles(opened, step, units) if profile else largest_units(opened, step, units, top)
    emit(table_records(table), as_json, lambda: table_text(table))


@cli.command(short_help="Show how each neuron acts: norm, frequency, words.")
@run_argument
@step_option
@click.option("--top", type=click.IntRange(1), default=20, help="How many neurons, the largest first.  [default: 20]")
@click.option("--neurons", default="", metavar="LIST", help="These instead, such as 5.17,5.204.")
@click.option(
    "--published",
    type=click.Choice(["gpt2-small", "pythia-410m"]),
    help="Compare with the neurons that Stolfo et al. (2024) list for this model.",
)
@json_option
def mechanism(run: Path, step: int | None, top: int, neurons: str, published: str | None, as_json: bool) -> None:
    """Show how neurons act: shares of mean |Δ| through the norm, along token frequency, as words, and their kind.

    A share is what mean |Δ| loses without the mechanism; words_share is what is left without norm and frequency. --json
    has the intervals. Kinds are entropy, token-frequency, prediction, suppression and partition neurons.

    \b
    rareneuron mechanism runs/embedded
    rareneuron mechanism runs/embedded --neurons 2.702,2.798
    """
    from rareneuron.conclude.mechanism import beside_published
    from rareneuron.present.terminal import mechanism_table, mechanism_text, published_text
    from rareneuron.runs.run import open_run

    opened = open_run(run)
    if published is not None:
        found = beside_published(opened, published, step)
        emit(table_records(found), as_json, lambda: published_text(found, published))
        return
    table = mechanism_table(opened, step, top, tuple(name.strip() for name in neurons.split(",") if name.strip()))
    emit(table_records(table), as_json, lambda: mechanism_text(table))


@cli.command(short_help="Show how the groups act together.")
@run_argument
@step_option
@json_option
def geometry(run: Path, step: int | None, as_json: bool) -> None:
    """Show how neurons of a group act together (Tables 1-3), against uniform and matched random groups.

    One row per statistic and group: its value, the mean of the random groups and p, two-sided, against either kind.

    \b
    rareneuron geometry runs/embedded --step 512
    """
    from rareneuron.present.terminal import beside_nulls
    from rareneuron.runs.run import open_run

    rows = open_run(run).geometry(step)
    emit(table_records(rows), as_json, lambda: table_text(beside_nulls(rows, ["statistic", "group"])))


@cli.command(short_help="Show how heavy-tailed the groups' weights are.")
@run_argument
@step_option
@json_option
def spectrum(run: Path, step: int | None, as_json: bool) -> None:
    """Show how heavy the tails of the groups' weight spectra are (Table 4), against random groups and random matrices.

    One row per matrix, statistic and group; p, two-sided, against uniform and matched groups and Marchenko-Pastur.

    \b
    rareneuron spectrum runs/embedded
    """
    from rareneuron.present.terminal import beside_nulls
    from rareneuron.runs.run import open_run

    rows = open_run(run).spectrum(step)
    emit(table_records(rows), as_json, lambda: table_text(beside_nulls(rows, ["matrix", "statistic", "group"])))


@cli.command(short_help="Show plateau, power law and decay, or why not.")
@run_argument
@step_option
@click.option(
    "--ranking",
    type=click.Choice(["all", "boosting", "suppressing", "common"]),
    help="all: mean |Δ| at rare targets; boosting, suppressing: neurons of one sign; common: at common targets.  "
    "[default: all; with released definitions boosting]",
)
@click.option(
    "--definitions",
    type=click.Choice(CHOICES["definitions"]),
    help="Whose definitions; others than the run's are computed from its effects.  [default: the run's]",
)
@json_option
def phases(
    run: Path, step: int | None, ranking: "Ranking | None", definitions: "Definitions | None", as_json: bool
) -> None:
    """Show plateau, power law and decay of a rank curve, each against its nulls, or which of them is missing.

    \b
    rareneuron phases runs/embedded
    rareneuron phases runs/embedded --step 512 --ranking boosting --definitions released
    """
    from rareneuron.maths.phases import Phases
    from rareneuron.present.summary import step_zero
    from rareneuron.present.terminal import phases_text, released_text
    from rareneuron.runs.rankings import as_record
    from rareneuron.runs.run import open_run

    opened = open_run(run)
    definitions = definitions or opened.definitions
    ranking = ranking or ("all" if definitions == "paper" else "boosting")
    found = opened.phases(step, ranking, definitions)
    where = {"step": opened.steps[-1] if step is None else step, "ranking": ranking, "definitions": definitions}
    name = "unknown" if where["step"] is None else where["step"]
    title = f"Step {name}, ranking {ranking}, definitions {definitions}"
    if isinstance(found, Phases):
        record = as_record(found) | {"plateau_share": found.plateau_share, "decay_share": found.decay_share}
        text = phases_text(found, title)
    else:
        record, text = as_record(found), released_text(found, title)
    null = None if as_json else step_zero(opened, step, ranking, definitions)
    emit(where | record, as_json, lambda: "\n".join([text, *([] if null is None else [null])]))


COLOURS = {"supported": "green", "not supported": None, "inconclusive": "yellow"}


def colour_verdicts(text: str) -> str:
    """Return a text with the verdicts at the ends of lines in colour, which only terminals show."""

    def paint(match: re.Match[str]) -> str:
        colour = COLOURS[match[2]]
        return match[1] + (click.style(match[2], fg=colour, bold=True) if colour else match[2]) + "."

    return re.sub(r"^(.*: )(supported|not supported|inconclusive)\.$", paint, text, flags=re.M)


@cli.command(short_help="Show the findings as hypotheses, with verdicts.")
@run_argument
@click.option("--tests", "of_tests", is_flag=True, help="Show every test that the claims rest on: each group and null.")
@json_option
def claims(run: Path, of_tests: bool, as_json: bool) -> None:
    """Show the paper's findings, and more, as hypotheses: effect, p, p after Holm, verdict, and a sentence each.

    A claim that rests on several tests is judged by its weakest; --tests shows them all, --json holds them.

    \b
    rareneuron claims runs/embedded
    rareneuron claims runs/embedded --tests
    """
    from rareneuron.present.terminal import claim_tests, claims_record, claims_text
    from rareneuron.runs.run import open_run

    found = open_run(run).claims()
    if of_tests:
        table = claim_tests(found)
        emit(table_records(table), as_json, lambda: table_text(table.drop(columns="statistic")))
        return
    emit(claims_record(found), as_json, lambda: colour_verdicts(claims_text(found)))


@cli.command(short_help="Print the paper's Tables 1-4, beside nulls.")
@runs_argument
@step_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "csv", "latex"]),
    default="md",
    show_default=True,
    help="md, latex: the paper's layout; csv: one row per value and null.",
)
@click.option("-o", "--output", type=Place(), help="Folder for one file per table.  [default: print them]")
@json_option
def tables(runs: tuple[Path, ...], step: int | None, form: str, output: Path | None, as_json: bool) -> None:
    """Print the paper's Tables 1-4 for one or more runs: each value beside its nulls and, if known, the paper's.

    \b
    rareneuron tables runs/embedded
    rareneuron tables runs/pythia-70m runs/pythia-410m --format latex -o tables
    """
    from rareneuron.present.tables import all_tables, save_tables, tables_text
    from rareneuron.runs.run import open_run

    opened = [open_run(run) for run in runs]
    if output is None:
        content = table_records(all_tables(opened, step)) if as_json else None
        emit(content, as_json, lambda: tables_text(opened, form, step).rstrip("\n"))
        return
    written = [str(path) for path in save_tables(opened, output, form, step)]
    emit({"tables": written}, as_json, lambda: "\n".join(written))


TRAJECTORY_COLUMNS = [
    *("step", "loss_rare", "loss_common", "abs_delta_loss_q50", "abs_delta_loss_max", "n_eff", "definitions"),
    *("kappa", "outcome", "plateau_share", "kappa_boosting", "kappa_suppressing"),
    *("top_overlap_last", "rank_correlation_last"),
]


@cli.command(short_help="Show how results move over training.")
@run_argument
@click.option(
    "--trends", "of_trends", is_flag=True, help="Show Kendall's τ of every column against the order of steps."
)
@click.option(
    "--onsets", "of_onsets", is_flag=True, help="Show since which step groups differ from random ones, at 5 %."
)
@json_option
def trajectory(run: Path, of_trends: bool, of_onsets: bool, as_json: bool) -> None:
    """Show losses, effects and phases over the checkpoints of a run: the main columns, with --json all of them.

    \b
    rareneuron trajectory runs/embedded
    rareneuron trajectory runs/embedded --onsets
    """
    from rareneuron.conclude.trajectory import onsets, trends
    from rareneuron.present.summary import nulls_of_step_zero
    from rareneuron.runs.run import open_run

    if of_trends and of_onsets:
        raise click.UsageError("--trends and --onsets are two tables: ask for one of them.")
    opened = open_run(run)
    table = opened.trajectory()
    if of_trends or of_onsets:
        found = (trends if of_trends else onsets)(table)
        emit(table_records(found), as_json, lambda: table_text(found))
        return
    shown = table[[name for name in TRAJECTORY_COLUMNS if name in table]]
    emit(table_records(table), as_json, lambda: "\n".join([table_text(shown), *nulls_of_step_zero(opened)]))
