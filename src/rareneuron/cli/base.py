"""What every command has: the group, its errors as one paragraph, `--json`, a run and a step.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import json
from collections.abc import Callable
from errno import EPIPE
from pathlib import Path
from typing import Any

import click

from rareneuron.errors import RareNeuronError

EXIT_ERROR = 2


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


def table_text(table: Any) -> str:
    """A DataFrame for a terminal."""
    return str(table.to_string(index=False, na_rep="–", float_format="{:.4g}".format))


def table_records(table: Any) -> Any:
    """The same as plain JSON: what is missing is null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def quiet_libraries() -> None:
    """No progress bars of other libraries' into a log file; ours notice by themselves."""
    from transformers.utils import logging

    logging.disable_progress_bar()
