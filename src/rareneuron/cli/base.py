"""Defines what all commands share: the group, errors as one paragraph, `--json`, arguments for runs and steps.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EPIPE
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from rareneuron.errors import RareNeuronError
from rareneuron.links import expanded
from rareneuron.runs.options import with_option

EXIT_ERROR = 2
RUNS = "runs"
PREFIX = click.style("rareneuron:", fg="red", bold=True)  # colours go to terminals alone, and not with NO_COLOR


class Commands(click.Group):
    """Turns a `RareNeuronError`, or an error of the system, into one paragraph and exit code 2.

    Ctrl-C prints how to continue.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; with `--debug`, errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except RareNeuronError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"{PREFIX} {with_option(error)}", err=True)
            ctx.exit(EXIT_ERROR)
        except OSError as error:
            if ctx.params.get("debug") or error.errno == EPIPE:  # a reader such as `head` has ended; click handles it
                raise
            click.echo(
                f"{PREFIX} The operating system refuses: {error}. Check that the path exists, may be read or "
                "written, and that its disk has space; --debug shows where it happened.",
                err=True,
            )
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. Finished checkpoints are kept: run the same command again to continue.", err=True
            )
            ctx.exit(130)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="rareneuron")
@click.option("--debug", is_flag=True, help="Show a traceback instead of a one-paragraph error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find the neurons of a language model that decide how well it predicts rare tokens.

    \b
    rareneuron study                        the embedded series on the embedded corpus, about three minutes, offline
    rareneuron study MODEL --data TEXTS     your model, your text
    rareneuron claims runs/embedded         the verdicts; the page is runs/embedded/report.html
    rareneuron compare runs/a runs/b        several runs side by side

    \b
    rareneuron COMMAND --help               options and examples
    rareneuron                              what to do next, given the runs that are here
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(next_steps())


def next_steps() -> str:
    """Return suggestions for a user who typed no command, given the runs below `runs/`."""
    runs = runs_here()
    if not runs:
        return "\n".join(
            [
                "No runs here yet (they would be below runs/). To begin:",
                "",
                "  rareneuron study                      the embedded series, about three minutes, offline",
                "  rareneuron study MODEL --data TEXTS   your model, your text; --dry-run says what it takes",
                "  rareneuron --help                     all commands",
            ]
        )
    lines = ["Runs here, the last used first:", ""]
    lines += [
        f"  {run}{'' if is_finished(run) else '   not finished: the same `rareneuron study` continues it'}"
        for run in runs
    ]
    first = runs[0]
    commands = [
        (f"claims {first}", "verdicts, a sentence each"),
        (f"groups {first}", "the neurons that boost and suppress rare tokens"),
        (f"report {first}", f"writes the page again: {first / 'report.html'}"),
        (f"card {first}", "a summary in Markdown"),
        *([(f"compare {first} {runs[1]}", "side by side")] if len(runs) > 1 else []),
        ("--help", "all commands"),
    ]
    width = max(len(command) for command, _ in commands)
    return "\n".join([*lines, "", *(f"  rareneuron {command:<{width}}   {what}" for command, what in commands)])


def is_finished(run: Path) -> bool:
    """Return whether a study has ended: every planned checkpoint is there, and the verdicts, which are written last."""
    from rareneuron.runs.layout import CLAIMS, MANIFEST, STEPS

    try:
        planned = json.loads((run / MANIFEST).read_text(encoding="utf-8")).get("planned", [])
    except (OSError, ValueError, AttributeError, RecursionError):  # damaged: opening the run reports it
        return False
    there = isinstance(planned, list) and all((run / STEPS / str(name)).is_dir() for name in planned)
    return there and (run / CLAIMS).is_file()


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


class Place(click.Path):
    """The type of an argument that names a file or a folder: `~` is a home, wherever it stands."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(expanded(value), param, ctx)


class RunFolder(Place):
    """The type of an argument that names a run folder; a shell completes those below `runs/`."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the run folders that fit, or let the shell offer any folder if there are none."""
        found = [CompletionItem(run) for run in map(str, runs_here()) if run.startswith(incomplete)]
        if ctx.command.name == "figure":  # every word may be a run, or the name that comes last
            from rareneuron.present.figures import FIGURES

            found += [CompletionItem(name) for name in FIGURES if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="dir")]


def runs_here() -> list[Path]:
    """Return the run folders below `runs/`, where studies write by default; the last used comes first."""
    from rareneuron.runs.layout import MANIFEST

    found = Path(RUNS).glob(f"*/{MANIFEST}")
    return [manifest.parent for manifest in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


run_argument = click.argument("run", type=RunFolder())
runs_argument = click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=RunFolder())
step_option = click.option("--step", type=int, help="Which checkpoint.  [default: the last]")


def emit(content: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print a result, as JSON or as text."""
    click.echo(json.dumps(content, indent=1, allow_nan=False) if as_json else text())


def table_text(table: Any) -> str:
    """Return a DataFrame as text for a terminal."""
    return str(table.to_string(index=False, na_rep="–", float_format="{:.4g}".format))


def table_records(table: Any) -> Any:
    """Return a DataFrame as records for JSON; missing values are null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


@contextmanager
def imports() -> Iterator[None]:
    """Import libraries without searching what they define for garbage, now or later: a fifth of the time it takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def quiet_libraries() -> None:
    """Switch off other libraries' progress bars, which would fill log files."""
    from rareneuron.models.loading import hide_progress_bars

    hide_progress_bars()
