"""The command that runs a study: what to measure, from which model and text."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from rareneuron.cli.base import Place, cli, emit, imports, json_option, quiet_libraries
from rareneuron.runs.config import AUTO, CHOICES, StudyConfig

DEFAULT = {f.name: f.default for f in fields(StudyConfig)}


def steps_value(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | tuple[int, ...] | None:
    """Return the value of --steps: `all`, or numbers that were separated by commas."""
    if value is None or value == "all":
        return value
    try:
        return tuple(int(step) for step in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither `all` nor numbers such as 0,512,143000") from error


def layers_value(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | tuple[int, ...] | None:
    """Return the value of --layers: `all`, or numbers that were separated by commas."""
    if value is None or value == "all":
        return value
    try:
        return tuple(int(layer) for layer in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither `all` nor layers such as 0,5,-1") from error


def setting(*names: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option of a setting. Its default is shown, but its value is None unless given: a file's then holds."""
    field = names[-1].removeprefix("--").replace("-", "_")
    default = DEFAULT.get(field)
    if default is not None and "show_default" not in options:
        options["help"] += f"  [default: {default}]"
    return click.option(*names, default=None, **options)


@cli.command(short_help="Measure every neuron at every checkpoint.")
@click.argument("model", required=False)
@setting("--revision", help="Branch, tag or commit on the Hub; `MODEL@REVISION` says the same.")
@setting("--steps", callback=steps_value, metavar="all|0,512,…", help="Checkpoints of a series.")
@setting(
    "--data",
    metavar="PATH|HUB-ID",
    help="Texts: .txt, .jsonl, .json, .csv, .tsv, also .gz, .zst, .bz2; .parquet, .arrow; a folder; a Hub data set. "
    "[default: the embedded corpus; with a MODEL that isn't packaged, C4's validation split]",
)
@setting("--text-field", help="Key or column that holds the text.")
@setting("--max-corpus-tokens", type=int, help="Read at most this many tokens of the corpus.")
@setting(
    "--counts",
    metavar="FILE",
    help="Unigram counts of the training set (.npy, .npz, .parquet), or what `unigrams --from model` wrote.",
)
@setting(
    "--counts-from",
    type=click.Choice(CHOICES["counts_from"]),
    show_default=False,
    help="Without a file, what says how frequent a token is: the model's mean prediction over the text, the text, or "
    "the tokenizer's merges.  [default: the model; of the embedded series, its training counts]",
)
@setting("--rarity", type=click.Choice(CHOICES["rarity"]), help="What makes a type rare.")
@setting("--percentile", type=float, help="Types below this percentile are rare.")
@setting(
    "--words",
    type=click.Choice(["on", "off"]),
    show_default=False,
    help="Analyse only targets that are whole English words.  [default: on]",
)
@setting("--n-tokens", type=int, help="Rare tokens to analyse.  [default: 25,088; for the embedded corpus 2,000]")
@setting(
    "--per-context",
    type=int,
    help="Rare tokens that a context gives at most.  [default: 16; fewer where 80 contexts give enough, more where the "
    "text has too few contexts]",
)
@setting("--context-length", type=int, help="Tokens per context, BOS included.")
@setting("--layer", type=int, help="Layer whose neurons are ablated; negative counts from the end.")
@setting(
    "--layers",
    callback=layers_value,
    metavar="all|0,5,-1",
    help="Estimate the units of these layers besides, and verify the largest.",
)
@setting("--units", type=click.Choice(CHOICES["units"]), help="Which units of --layers: neurons, attention heads.")
@setting(
    "--verify",
    type=float,
    help="Share of the cells, one unit in one context, that may be patched to verify estimates, but 512 cells at "
    "least; 0: a screen.",
)
@setting(
    "--reference",
    type=click.Choice([AUTO, *CHOICES["reference"]]),
    help="Positions over which the mean activation is taken: the analysed ones (auto behind the last layer) or all "
    "(auto elsewhere).",
)
@setting(
    "--engine",
    type=click.Choice([AUTO, *CHOICES["engine"]]),
    help="auto: the first that serves of closed-form (last layer, exact and fast), gradient (any layer and "
    "architecture, estimates with intervals from exact patching of some) and patching (any, exact, slow).",
)
@setting(
    "--definitions",
    type=click.Choice(CHOICES["definitions"]),
    help="Definitions of phases, geometry and spectrum: the paper's, or those of its authors' released scripts.",
)
@setting("--group-size", type=int, help="Neurons per group.")
@setting("--n-random", type=int, help="Random groups, and as many matched ones.")
@setting("--seed", type=int, help="Decides which contexts, which random groups, which audited pairs.")
@setting("--device", help="cpu, cuda, cuda:1, or auto.")
@setting("--dtype", type=click.Choice(CHOICES["dtype"]), help="Precision of the forward pass.")
@setting("--memory", type=float, help="GiB that activations and tables may take.")
@setting("--out", metavar="DIR", help="Run folder.  [default: runs/MODEL]")
@setting(
    "--executor",
    type=click.Choice(CHOICES["executor"]),
    help="What computes checkpoints: this machine or a Ray cluster (docs/cluster.md).",
)
@setting("--workers", type=int, help="Checkpoints computed at a time; here they share cores and --memory.")
@setting(
    "--address", help="Address of a Ray cluster, such as 10.0.0.1:6379.  [default: one is started on this machine]"
)
@setting("--shard", metavar="I/N", help="Compute only the I-th of N shards; `rareneuron merge` ends the study.")
@click.option("--config", type=Place(), help="TOML file with these settings; options given here win.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, without doing it.")
@json_option
def study(config: Path | None, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Measure the effect of every neuron at every checkpoint. The same command continues an interrupted study.

    MODEL is a Hub id, id@revision, a local model folder or GGUF file, a folder of step<N>/ folders, or a packaged model
    that was fetched (smollm2); without it, the series that comes with the package.

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
        with imports():
            quiet_libraries()
    if dry_run:
        with imports():
            from rareneuron.study.estimate import plan_as_dict, plan_as_text
            from rareneuron.study.plan import plan_study

        plan = plan_study(chosen)
        emit(plan_as_dict(plan) if as_json else None, as_json, lambda: plan_as_text(plan))
        return
    with imports():
        from rareneuron.present.publish import publish
        from rareneuron.present.summary import study_summary
        from rareneuron.study.study import run_study

    run = run_study(chosen)
    if chosen.shard is not None:
        from rareneuron.runs.layout import step_folder

        finished = [step_folder(step) for step in run.steps]
        ends = f"When all shards are done, `rareneuron merge {run.path}` ends the study."
        emit(
            {"run": str(run.path), "shard": chosen.shard, "finished": finished},
            as_json,
            lambda: f"Shard {chosen.shard} is done. Finished so far in {run.path}: {', '.join(finished)}. {ends}",
        )
        return
    report = publish(run).report
    summary = study_summary(run) | {"report": str(report)}
    emit(summary, as_json, lambda: "\n".join([*summary["lines"], f"Report: {report}"]))
