"""The command line: parse, call the library, print. Data goes to stdout, progress and errors to stderr.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from errno import EPIPE
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rareneuron.errors import RareNeuronError
from rareneuron.pipeline.config import CHOICES, StudyConfig

if TYPE_CHECKING:
    from rareneuron.maths.phases import Phases
    from rareneuron.maths.released import ReleasedPhases
    from rareneuron.pipeline.rankings import Definitions, Ranking

EXIT_ERROR = 2
DEFAULT = {f.name: f.default for f in fields(StudyConfig)}


class Commands(click.Group):
    """Turns a `RareNeuronError`, and what the system refuses, into one paragraph and exit code 2.

    Ctrl-C becomes a word about resuming.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; `--debug` lets the traceback through."""
        try:
            return super().invoke(ctx)
        except RareNeuronError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"rareneuron: {error}", err=True)
            ctx.exit(EXIT_ERROR)
        except OSError as error:
            if ctx.params.get("debug") or error.errno == EPIPE:  # a reader such as `head` has gone: click knows
                raise
            click.echo(
                f"rareneuron: The operating system refuses: {error}. Check that the path exists, may be read or "
                "written, and that its disk has space; --debug shows where it happened.",
                err=True,
            )
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. Finished checkpoints are kept: run the same command again to continue.", err=True
            )
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="rareneuron")
@click.option("--debug", is_flag=True, help="Show a traceback instead of a one-paragraph error.")
def cli(debug: bool) -> None:
    """Find the neurons of a language model that decide how well it predicts rare tokens.

    \b
    rareneuron study                        the embedded series on the embedded corpus, two minutes, offline
    rareneuron study MODEL --data TEXTS     your model, your text
    rareneuron report runs/embedded         the result as a page
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
run_argument = click.argument("run", type=click.Path(path_type=Path))
step_option = click.option("--step", type=int, help="Which checkpoint.  [default: the last]")


def emit(content: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print a result, as JSON or as text."""
    click.echo(json.dumps(content, indent=1, allow_nan=False) if as_json else text())


def steps_value(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | tuple[int, ...] | None:
    """`all`, or numbers separated by commas."""
    if value is None or value == "all":
        return value
    try:
        return tuple(int(step) for step in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither `all` nor numbers such as 0,512,143000") from error


def setting(*names: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A study setting: its default is shown, and None means that it wasn't given, so that a file's value holds."""
    field = names[-1].removeprefix("--").replace("-", "_")
    default = DEFAULT.get(field)
    if default is not None and "show_default" not in options:
        options["help"] += f"  [default: {default}]"
    return click.option(*names, default=None, **options)


@cli.command()
@click.argument("model", required=False)
@setting("--revision", help="Branch, tag or commit on the Hub; `MODEL@REVISION` says the same.")
@setting("--steps", callback=steps_value, metavar="all|0,512,…", help="Checkpoints of a series.")
@setting(
    "--data",
    metavar="PATH|HUB-ID",
    help="Texts: .txt, .jsonl, .jsonl.gz, .parquet, a folder of them, or a Hub data set. "
    "[default: the embedded corpus; with a MODEL, C4's validation split]",
)
@setting("--text-field", help="Key or column that holds the text.")
@setting("--max-corpus-tokens", type=int, help="Read no more of the corpus than this.")
@setting(
    "--counts",
    metavar="FILE",
    help="Unigram counts of the training set: .npy, .npz or .parquet.  [default: counted over the corpus]",
)
@setting("--rarity", type=click.Choice(CHOICES["rarity"]), help="What makes a type rare.")
@setting("--percentile", type=float, help="Types below this percentile are rare.")
@setting(
    "--words",
    type=click.Choice(["on", "off"]),
    help="Analyse only targets that are whole English words.  [default: on]",
)
@setting("--n-tokens", type=int, help="Rare tokens to analyse.  [default: 25,088; of the embedded corpus 2,000]")
@setting("--context-length", type=int, help="Tokens per context, BOS included.")
@setting("--layer", type=int, help="Layer whose neurons are ablated; negative counts from the end.")
@setting("--reference", type=click.Choice(CHOICES["reference"]), help="What the mean activation is taken over.")
@setting(
    "--engine",
    type=click.Choice(CHOICES["engine"]),
    help="closed-form: last layer, fast; patching: any layer and architecture, slow.",
)
@setting(
    "--definitions",
    type=click.Choice(CHOICES["definitions"]),
    help="Of phases: the paper's text, or what its authors' released scripts compute.",
)
@setting("--group-size", type=int, help="Neurons per group.")
@setting("--n-random", type=int, help="Random groups, and as many matched ones.")
@setting("--seed", type=int, help="Decides which contexts, which random groups, which audited pairs.")
@setting("--device", help="cpu, cuda, cuda:1, or auto.")
@setting("--dtype", type=click.Choice(CHOICES["dtype"]), help="Precision of the forward pass.")
@setting("--memory", type=float, help="GiB that activations and tables may take.")
@setting("--out", metavar="DIR", help="Run folder.  [default: runs/MODEL]")
@click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file with these settings; options given here win."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@json_option
def study(config: Path | None, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Measure the effect of every neuron at every checkpoint. The same command continues an interrupted study.

    MODEL is a Hub id, id@revision, a local model folder, or a folder of step<N>/ folders; without it, the series that
    comes with the package.

    \b
    rareneuron study
    rareneuron study EleutherAI/pythia-70m --steps 0,512,143000 --counts pythia.npy
    rareneuron study ./my-model --data texts.jsonl.gz --n-tokens 5000 --out runs/mine
    """
    settings = {name: value for name, value in given.items() if value is not None}
    if "words" in settings:
        settings["words"] = settings["words"] == "on"
    chosen = StudyConfig.from_toml(config, **settings) if config else StudyConfig(**settings)
    if not sys.stderr.isatty():
        quiet_libraries()
    if dry_run:
        from rareneuron.pipeline.plan import plan_as_dict, plan_as_text, plan_study

        plan = plan_study(chosen)
        emit(plan_as_dict(plan) if as_json else None, as_json, lambda: plan_as_text(plan))
        return
    from rareneuron.pipeline.study import run_study
    from rareneuron.present.figures import write_figures
    from rareneuron.present.report import write_report
    from rareneuron.present.summary import study_summary

    run = run_study(chosen)
    report = write_report(run)
    write_figures(run)
    summary = study_summary(run) | {"report": str(report)}
    emit(summary, as_json, lambda: "\n".join([*summary["lines"], f"Report: {report}"]))


@cli.command()
@run_argument
@step_option
@json_option
def groups(run: Path, step: int | None, as_json: bool) -> None:
    """The boosting and suppressing neurons of a run."""
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.summary import groups_table

    table = groups_table(open_run(run), step)
    emit(json.loads(table.to_json(orient="records")), as_json, lambda: table.to_string(index=False, na_rep="–"))


@cli.command()
@run_argument
@step_option
@click.option(
    "--ranking",
    type=click.Choice(["all", "boosting", "suppressing", "common"]),
    help="all: mean |Δ| at rare targets; boosting, suppressing: neurons of one sign; common: at common targets.  "
    "[default: all; of released definitions boosting]",
)
@click.option(
    "--definitions",
    type=click.Choice(CHOICES["definitions"]),
    help="Whose; other ones than the run's are computed from its effects.  [default: the run's own]",
)
@json_option
def phases(
    run: Path, step: int | None, ranking: "Ranking | None", definitions: "Definitions | None", as_json: bool
) -> None:
    """Plateau, power law and decay of a rank curve, each against its nulls; or which of them is missing."""
    from rareneuron.maths.phases import Phases
    from rareneuron.pipeline.rankings import as_record
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.summary import step_zero

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


def phases_text(found: "Phases", title: str) -> str:
    """The verdict first, then what it rests on."""

    def interval(name: str, form: str) -> str:
        if name not in found.intervals:
            return ""
        low, high = found.intervals[name]
        return f" (95 % {low:{form}} … {high:{form}})"

    null = {name: f"p = {p:.2g}" for name, p in found.null_p.items()}
    plateau = decay = "none"
    if found.plateau_end is not None and found.plateau_share is not None:
        plateau = f"ranks 1 … {found.plateau_end}{interval('plateau_end', '.0f')}, {found.plateau_share:.1%} of them"
    if found.decay_start is not None and found.decay_share is not None:
        decay = f"from rank {found.decay_start}{interval('decay_start', '.0f')}, {found.decay_share:.1%} of them"
    families = ", ".join(f"{name} {null[name]}" for name in ("half-normal", "exponential", "lognormal"))
    return "\n".join(
        [
            f"{title}: {found.outcome}",
            f"Line       κ = {found.kappa:.3f}{interval('kappa', '.3f')}",
            f"           β = {found.beta:.3f}{interval('beta', '.3f')}",
            f"           ranks {found.fit_first} … {found.fit_last}, R² = {found.r_squared:.4f}",
            f"Power law  against {families}",
            f"Plateau    {plateau}; against a straight curve {null['no plateau']}",
            f"Decay      {decay}; against a power law {null['no decay']}",
            f"Breaks     of κ at ranks {', '.join(map(str, found.breaks)) or 'none'}",
            f"Neurons    {found.n_neurons:,}, {found.n_zero:,} of them without effect",
        ]
    )


def released_text(found: "ReleasedPhases", title: str) -> str:
    """Numbers without a verdict, and why there is none."""
    from rareneuron.maths.released import FIT, LATE_FIT

    fits = [f"over log rank {first} … {last}" for first, last in (FIT, LATE_FIT)]
    return "\n".join(
        [
            f"{title}: no outcome, these boundaries are constants and nothing is tested",
            f"Line       κ = {found.kappa:.3f}, β = {found.beta:.3f} {fits[0]}",
            f"           κ = {found.kappa_late:.3f}, β = {found.beta_late:.3f} {fits[1]}",
            f"Plateau    ranks 1 … {found.plateau_end}, whatever the curve",
            f"Decay      from rank {found.decay_start}, whatever the curve",
            f"Slope      truncated from rank {found.truncated_from}: kinks at log(n/6) whatever the curve",
            f"Neurons    {found.n_neurons:,}",
        ]
    )


TRAJECTORY_COLUMNS = [
    *("step", "loss_rare", "loss_common", "abs_delta_loss_q50", "abs_delta_loss_max", "n_eff", "definitions"),
    *("kappa", "outcome", "plateau_share", "kappa_boosting", "kappa_suppressing"),
    *("top_overlap_last", "rank_correlation_last"),
]


@cli.command()
@run_argument
@click.option("--trends", "of_trends", is_flag=True, help="Kendall's τ of every column against the order of steps.")
@json_option
def trajectory(run: Path, of_trends: bool, as_json: bool) -> None:
    """Losses, effects and phases over the checkpoints of a run: the main columns, with --json all of them."""
    from rareneuron.pipeline.dynamics import trends
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.summary import nulls_of_step_zero

    opened = open_run(run)
    table = opened.trajectory()
    shown = trends(table) if of_trends else table[[name for name in TRAJECTORY_COLUMNS if name in table]]
    text = [shown.to_string(index=False, na_rep="–", float_format="{:.4g}".format)]
    if not (of_trends or as_json):
        text += nulls_of_step_zero(opened)
    emit(
        json.loads((shown if of_trends else table).to_json(orient="records", double_precision=15)),
        as_json,
        lambda: "\n".join(text),
    )


@cli.command()
@run_argument
@json_option
def report(run: Path, as_json: bool) -> None:
    """Write RUN/report.html and RUN/figures/*.svg again."""
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.figures import write_figures
    from rareneuron.present.report import write_report

    opened = open_run(run)
    page, figures = str(write_report(opened)), [str(path) for path in write_figures(opened)]
    emit({"report": page, "figures": figures}, as_json, lambda: "\n".join([page, *figures]))


@cli.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="FILE.svg, .pdf or .png")
@json_option
def figure(runs: tuple[Path, ...], name: str, output: Path, as_json: bool) -> None:
    """Draw one figure of a run, such as rank-curve; slope-distributions of several."""
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.figures import figure as draw
    from rareneuron.present.figures import save_figure

    first, *others = (open_run(run) for run in runs)
    path = str(save_figure(draw(first, name, beside=others), output))
    emit({"figure": path}, as_json, lambda: path)


@cli.command()
@click.argument("tokenizer")
@click.argument("data")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="FILE.npy, .npz or .parquet")
@click.option("--text-field", default="text", show_default=True, help="Key or column that holds the text.")
@click.option("--max-tokens", default=50_000_000, show_default=True, help="Count no more than this.")
@click.option(
    "--context-length", default=256, show_default=True, help="Window length, which decides only the remainder."
)
@json_option
def unigrams(
    tokenizer: str, data: str, output: Path, text_field: str, max_tokens: int, context_length: int, as_json: bool
) -> None:
    """Count how often each token of TOKENIZER (a model folder or Hub id) stands in DATA."""
    from rareneuron.pipeline.unigrams import count_corpus

    total, seen, size = count_corpus(tokenizer, data, output, text_field, max_tokens, context_length)
    emit(
        {"counts": str(output), "tokens": total, "types_seen": seen, "types": size},
        as_json,
        lambda: f"{output}: {total:,} tokens, {seen:,} of {size:,} types seen",
    )


@cli.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@json_option
def checkpoints(model: str, revision: str | None, as_json: bool) -> None:
    """List the checkpoints of MODEL."""
    from rareneuron.models.checkpoints import UNKNOWN_STEP, label, list_checkpoints

    found = list_checkpoints(model, revision, None if revision else "all")
    rows = [{"step": None if c.step == UNKNOWN_STEP else c.step, "checkpoint": label(c)} for c in found]
    emit(
        rows,
        as_json,
        lambda: "\n".join(f"{'?' if r['step'] is None else r['step']:>8}  {r['checkpoint']}" for r in rows),
    )


@cli.command()
@json_option
def families(as_json: bool) -> None:
    """The architectures that can be studied, and how."""
    from rareneuron.models.families import FAMILIES

    rows = [
        {
            "model_type": f.model_type,
            "norm": f.norm,
            "gated": f.mlp_gate is not None,
            "engines": ["patching"] if f.patching_only else ["closed-form", "patching"],
            "reason": f.patching_only,
        }
        for f in FAMILIES.values()
    ]
    lines = [
        f"{f.model_type:<14}{f.norm:<7}"
        + (f"patching only: {f.patching_only}" if f.patching_only else "closed-form, patching")
        for f in FAMILIES.values()
    ]
    emit(rows, as_json, lambda: "\n".join(lines))


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("series"), show_default=True, help="Series folder."
)
@click.option("--steps", type=int, help="Train no further than this step; for trying the recipe.")
@json_option
def train(out: Path, steps: int | None, as_json: bool) -> None:
    """Train the embedded series again: hours on a CPU. The same command continues an interrupted training."""
    from rareneuron.embedded.recipe import Recipe, first_steps, train_series

    recipe = Recipe() if steps is None else first_steps(Recipe(), steps)
    folder = str(train_series(recipe, out))
    emit({"series": folder, "steps": list(recipe.checkpoints)}, as_json, lambda: folder)


def quiet_libraries() -> None:
    """No progress bars of other libraries' into a log file; ours notice by themselves."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def main() -> None:
    """Entry point."""
    sys.exit(cli())
