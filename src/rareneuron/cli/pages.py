"""The commands that write pages, figures and cards of runs."""

from pathlib import Path
from typing import Any

import click

from rareneuron.cli.base import (
    Place,
    RunFolder,
    cli,
    emit,
    json_option,
    run_argument,
    runs_argument,
    step_option,
    table_records,
)


@cli.command(short_help="Write a run's page, figures and tables.")
@run_argument
@json_option
def report(run: Path, as_json: bool) -> None:
    """Write RUN/report.html, RUN/figures/*.svg and RUN/tables/*.csv again.

    \b
    rareneuron report runs/embedded
    """
    from rareneuron.present.publish import publish
    from rareneuron.runs.run import open_run

    written = publish(open_run(run))
    lines = [written.report, *written.figures, *written.tables]
    emit(written.paths, as_json, lambda: "\n".join(map(str, lines)))


@cli.command(short_help="Draw one figure.")
@click.argument("runs", metavar="RUN…", nargs=-1, type=RunFolder())
@click.argument("name")
@click.option("-o", "--output", required=True, type=Place(), help="FILE.svg, .pdf or .png")
@json_option
def figure(runs: tuple[Path, ...], name: str, output: Path, as_json: bool) -> None:
    """Draw one figure of a run, such as rank-curve; of several runs rank-curves or slope-distributions.

    \b
    rareneuron figure runs/embedded rank-curve -o rank-curve.pdf
    rareneuron figure runs/a runs/b rank-curves -o curves.svg
    """
    from rareneuron.present.figures import FIGURES, save_figure
    from rareneuron.present.figures import figure as draw
    from rareneuron.runs.run import open_run

    if not runs:
        raise click.UsageError(f"Give a run and the name of a figure, one of: {', '.join(FIGURES)}.")
    first, *others = (open_run(run) for run in runs)
    path = str(save_figure(draw(first, name, beside=others), output))
    emit({"figure": path}, as_json, lambda: path)


@cli.command(short_help="Compare several runs side by side.")
@runs_argument
@step_option
@click.option("-o", "--output", type=Place(), help="Write a page with curves and tables: FILE.html")
@json_option
def compare(runs: tuple[Path, ...], step: int | None, output: Path | None, as_json: bool) -> None:
    """Compare several runs side by side: numbers, verdicts, agreement of rankings, and the settings that differ.

    \b
    rareneuron compare runs/embedded runs/other
    rareneuron compare runs/seed0 runs/seed1 -o seeds.html
    """
    from rareneuron.present.compare import compare as side_by_side
    from rareneuron.present.compare import comparison_text, write_comparison
    from rareneuron.runs.run import open_run

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(
            f"{output.name!r} is not an HTML page. Name a file such as compare.html.", param_hint="-o"
        )
    opened = [open_run(run) for run in runs]
    found = side_by_side(opened, step)
    # One row per run, not one column: runs are data, and names in JSON stay the same.
    tables = {
        "runs": found.runs,
        "settings": found.settings.melt("setting", var_name="run"),
        "verdicts": found.verdicts.melt(["name", "claim"], var_name="run", value_name="verdict"),
        "agreement": found.agreement,
    }
    content: dict[str, Any] = {name: table_records(table) for name, table in tables.items()}
    if output is not None:
        content["page"] = str(write_comparison(opened, output, step, found))
    emit(content, as_json, lambda: "\n".join([comparison_text(found), *([f"Page: {output}"] if output else [])]))


@cli.command(short_help="Print a run as Markdown, with BibTeX.")
@run_argument
@click.option("-o", "--output", type=Place(), help="Write it to a file, such as card.md.")
@json_option
def card(run: Path, output: Path | None, as_json: bool) -> None:
    """Print a run as Markdown, for a model card or an appendix: verdicts, numbers, provenance, BibTeX.

    \b
    rareneuron card runs/embedded
    rareneuron card runs/embedded -o card.md
    """
    from rareneuron.present.card import card as card_text
    from rareneuron.runs.files import replacing
    from rareneuron.runs.run import open_run

    text = card_text(open_run(run))
    if output is not None:
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    emit(
        {"card": text, "path": None if output is None else str(output)},
        as_json,
        lambda: text.rstrip("\n") if output is None else str(output),
    )
