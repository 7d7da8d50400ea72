"""A figure is a noun: what it shows as tidy data (`frame`, tested) and how it is drawn (`draw`, ink).

Drawing uses matplotlib's objects and none of pyplot's state, so no display is needed and nothing leaks from one
figure into the next. Matplotlib is loaded when the first figure is drawn. The same run gives the same bytes.

A figure is drawn once for light and dark paper alike: in a page, each colour of the light theme is a CSS variable with
that colour as its fallback, and the page's style sheet defines the variables for dark screens (`style.dark_rules`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from rareneuron.errors import InvalidConfig
from rareneuron.links import expanded
from rareneuron.present.ink import NO_EFFECT, draw_minor_ticks, words_only
from rareneuron.present.style import LIGHT, Theme, with_variables
from rareneuron.runs.files import replacing
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.figure

SIZE = (5.4, 4.0)  # inches: narrow, so that its text can still be read when a telephone shrinks it
DOTS_PER_INCH = 200
SVG_DOTS_PER_INCH = 72  # of matplotlib's renderer: points
PATH = re.compile(r' d="[^"]*"')
HUNDREDTHS = re.compile(r"(\.\d\d)\d+")  # of a point are all that a screen can show
UNDATED: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a figure shows and where it comes from."""

    name: str
    source: str  # of the paper, such as "Fig. 1b"
    title: str
    description: str  # how to read it, in plain words: the caption
    frame: Callable[..., pd.DataFrame]  # of a run; of one or more where it shows several
    draw: Callable[[pd.DataFrame, "matplotlib.figure.Figure", Theme], None]
    needs: str | None = None  # a column without which there is nothing to draw; the column `reason` then says why
    empty: str = NO_EFFECT  # what is said of a frame without rows
    several: bool = False
    optional: bool = False  # not written to files where there is nothing to draw

    def drawn(self, frame: pd.DataFrame, theme: Theme = LIGHT) -> "matplotlib.figure.Figure":
        """Draw a frame, or write on the sheet why there is nothing to draw."""
        import matplotlib
        import matplotlib.figure

        with matplotlib.rc_context(theme.settings):
            sheet = matplotlib.figure.Figure(figsize=SIZE, layout="constrained")
            reason = self.reason(frame)
            if reason is None:
                self.draw(frame, sheet, theme)
            else:
                words_only(sheet.add_subplot(), self.title, reason)
        return sheet

    def reason(self, frame: pd.DataFrame) -> str | None:
        """Return why this frame can't be drawn; None if it can."""
        if frame.empty:
            return self.empty
        if self.needs is None or (self.needs in frame and frame[self.needs].notna().any()):
            return None
        return str(frame["reason"].iloc[-1])


class Sheets:
    """The figures of one run, each drawn when it is first asked for and kept: a page and a file show the same ink."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._sheets: dict[str, matplotlib.figure.Figure] = {}
        self._frames: dict[str, pd.DataFrame] = {}

    def of(self, figure: Figure) -> "matplotlib.figure.Figure":
        """Return a figure of the run, ready to be written as SVG."""
        if figure.name not in self._sheets:
            self._sheets[figure.name] = ready_sheet(figure, self.frame_of(figure))
        return self._sheets[figure.name]

    def frame_of(self, figure: Figure) -> pd.DataFrame:
        """Return the data that a figure of the run shows."""
        if figure.name not in self._frames:
            self._frames[figure.name] = figure.frame(self.run)
        return self._frames[figure.name]


def ready_sheet(figure: Figure, frame: pd.DataFrame) -> "matplotlib.figure.Figure":
    """Return a drawn figure that takes the least time to write as SVG, once or more: its layout and ticks are final."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sheet = figure.drawn(frame)
    draw_minor_ticks(sheet, LIGHT)
    FigureCanvasSVG(sheet)
    sheet.set_dpi(SVG_DOTS_PER_INCH)
    layout = sheet.get_layout_engine()
    assert layout is not None, "every sheet is made with one"
    layout.execute(sheet)
    sheet.set_layout_engine("none")
    return sheet


def save_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> Path:
    """Write a figure as SVG, PDF or PNG, whichever the name asks for, and return the path."""
    path = expanded(path)
    suffix = path.suffix.lower()
    if suffix not in UNDATED:
        raise InvalidConfig(
            f"{path.name!r} ends in {suffix or 'no suffix'!r}, which says nothing about how to write a figure. Use one "
            f"of: {', '.join(UNDATED)}."
        )
    with replacing(path) as temporary:
        if suffix == ".svg":
            temporary.write_text(as_svg(figure, path.stem, "path"), encoding="utf-8")
        else:
            figure.savefig(temporary, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=UNDATED[suffix])
    return path


def inline_svg(figure: "matplotlib.figure.Figure", salt: str) -> str:
    """Return the figure as an `<svg>` element for a page; `salt` keeps its ids apart from other figures'."""
    svg = as_svg(figure, salt, "none")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # numbered from 1 in every figure, and nothing refers to them
    svg = PATH.sub(lambda path: HUNDREDTHS.sub(r"\1", path[0]), svg)
    return with_variables(svg)


def as_svg(figure: "matplotlib.figure.Figure", salt: str, text: Literal["path", "none"]) -> str:
    """Return the figure as SVG, its text drawn as paths or kept as text.

    `Figure.savefig` would draw everything twice.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": text}):
        FigureCanvasSVG(figure).print_svg(out, metadata=UNDATED[".svg"])
    return out.getvalue()
