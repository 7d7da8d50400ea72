"""The command line: parse, call the library, print. Data goes to stdout, progress and errors to stderr.

One module per kind of command; importing it registers them.
"""

import os
import sys

from rareneuron.cli import completion, merge, models, pages, results, study, use
from rareneuron.cli.base import cli

__all__ = ["cli", "completion", "main", "merge", "models", "pages", "results", "study", "use"]


def main() -> None:
    """Run the command line, and exit with its status."""
    # Fresh memory costs time page by page; torch asks for large ones where this is set before it first needs any.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.exit(cli())
