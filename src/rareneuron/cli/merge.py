"""The command that ends a study computed in shards."""

from pathlib import Path

import click

from rareneuron.cli.base import cli, emit, json_option, runs_argument


@cli.command(short_help="End a study computed in shards.")
@runs_argument
@json_option
def merge(runs: tuple[Path, ...], as_json: bool) -> None:
    """End a study that was computed in shards (`study --shard I/N`): trajectory, claims, report.

    The first RUN is the study's folder. Others are run folders of shards that were computed elsewhere; their
    checkpoints are copied into the first, which may be new.

    \b
    rareneuron merge runs/pythia-70m
    rareneuron merge runs/whole runs/part1 runs/part2
    """
    from rareneuron.present.publish import publish
    from rareneuron.present.summary import study_summary
    from rareneuron.study.merge import merge_runs, missing_steps

    run = merge_runs(runs[0], runs[1:])
    missing = missing_steps(run)
    if missing:
        click.echo(
            f"rareneuron: {len(missing)} checkpoints that were asked for are missing, so the study ends without "
            f"them: {', '.join(missing)}. To add them, run their shards again and merge once more.",
            err=True,
        )
    report = publish(run).report
    summary = study_summary(run) | {"report": str(report), "missing": missing}
    emit(summary, as_json, lambda: "\n".join([*summary["lines"], f"Report: {report}"]))
