"""Shows how far long work has come: as a bar on a terminal, as a line now and then in a log file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60.0  # between two lines of a log; work that ends sooner leaves none
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s after {elapsed}, about {remaining} left"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}s after {elapsed}"
UP = "\x1b[A"


class Lines:
    """A stream for tqdm that writes what would overwrite a terminal's line as a line of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a line, unless the text only moves a terminal's cursor or clears a line."""
        shown = text.replace(UP, "").strip()
        if shown:
            self._stream.write(f"{shown}\n")

    def flush(self) -> None:
        """Flush the stream, so that whoever follows the log sees the line at once."""
        self._stream.flush()


@contextmanager
def progress_bar(label: str, total: int, unit: str, *, show: bool = True) -> Iterator[Any]:
    """Yield tqdm's bar on stderr; call its `update` with how many units were done since. 0 is no known total."""
    settings: dict[str, Any] = {"total": total, "desc": label, "unit": unit, "leave": False}
    if sys.stderr.isatty():
        settings["unit_scale"] = True
    else:
        settings |= {
            "file": Lines(sys.stderr),
            "mininterval": LINE_SECONDS,
            "delay": LINE_SECONDS,
            "miniters": 1,
            "bar_format": LINE if total else LINE_WITHOUT_TOTAL,
        }
    with tqdm(disable=not show, **settings) as bar:
        yield bar
