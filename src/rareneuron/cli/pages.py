"""Pages and figures of a run."""

from pathlib import Path

import click

from rareneuron.cli.base import cli, emit, json_option, run_argument


@cli.command()
@run_argument
@json_option
def report(run: Path, as_json: bool) -> None:
    """Write RUN/report.html, RUN/figures/*.svg and RUN/tables/*.csv again."""
    from rareneuron.pipeline.run import open_run
    from rareneuron.present.figures import write_figures
    from rareneuron.present.report import write_report
    from rareneuron.present.tables import write_tables

    opened = open_run(run)
    page, figures = str(write_report(opened)), [str(path) for path in write_figures(opened)]
    tables = [str(path) for path in write_tables(opened)]
    content = {"report": page, "figures": figures, "tables": tables}
    emit(content, as_json, lambda: "\n".join([page, *figures, *tables]))


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
