"""The command line: parse, call the library, print. Data goes to stdout, progress and errors to stderr.

One module per kind of command; importing it registers them.
"""

import sys

from rareneuron.cli import cluster, completion, models, pages, results, study
from rareneuron.cli.base import cli

__all__ = ["cli", "cluster", "completion", "main", "models", "pages", "results", "study"]


def main() -> None:
    """Entry point."""
    sys.exit(cli())
