"""A figure is a noun: what it shows as tidy data (`frame`, tested) and how it is drawn (`draw`, ink).

Drawing uses matplotlib's objects and none of pyplot's state, so no display is needed and nothing leaks from one
figure into the next. Matplotlib is loaded when the first figure is drawn. The same run gives the same bytes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rareneuron.errors import InvalidConfig
from rareneuron.present.style import LIGHT, Theme
from rareneuron.runs.files import replacing

if TYPE_CHECKING:
    import matplotlib.figure

SIZE = (5.4, 4.0)  # inches: narrow, so that its text can still be read when a telephone shrinks it
DOTS_PER_INCH = 200
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
    several: bool = False

    def drawn(self, frame: pd.DataFrame, theme: Theme = LIGHT) -> "matplotlib.figure.Figure":
        """The frame as ink on paper."""
        import matplotlib
        import matplotlib.figure

        with matplotlib.rc_context(theme.settings):
            sheet = matplotlib.figure.Figure(figsize=SIZE, layout="constrained")
            self.draw(frame, sheet, theme)
        return sheet


def save_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> Path:
    """Write a drawn figure as SVG, PDF or PNG, whichever the name asks for."""
    import matplotlib

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in UNDATED:
        raise InvalidConfig(
            f"{path.name!r} ends in {suffix or 'no suffix'!r}, which says nothing about how to write a figure. Use one "
            f"of: {', '.join(UNDATED)}."
        )
    with replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(temporary, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=UNDATED[suffix])
    return path


def inline_svg(figure: "matplotlib.figure.Figure", salt: str) -> str:
    """The figure as an `<svg>` element for a page; `salt` keeps its ids apart from other figures'."""
    import matplotlib

    out = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata=UNDATED[".svg"])
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'<g id="[^"]*"', "<g", svg)  # numbered from 1 in every figure, and nothing refers to them
