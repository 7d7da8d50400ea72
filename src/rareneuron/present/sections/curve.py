"""The rank curve of every checkpoint, as a figure."""

import pandas as pd

from rareneuron.present.blocks import Illustration, Section
from rareneuron.present.figure import Figure, inline_svg
from rareneuron.present.figures import FIGURES
from rareneuron.present.findings import Findings
from rareneuron.present.style import DARK, LIGHT


def curve_section(found: Findings) -> Section:
    """Fig. 1b of this run."""
    return Section(name="rank-curve", title="Rank curve", blocks=(illustration(FIGURES["rank-curve"], found),))


def illustration(figure: Figure, found: Findings) -> Illustration:
    """A figure for both kinds of paper."""
    return drawn_twice(figure, figure.frame(found.run))


def drawn_twice(figure: Figure, frame: pd.DataFrame) -> Illustration:
    """The same of a frame at hand."""
    light, dark = (inline_svg(figure.drawn(frame, theme), f"{figure.name}-{theme.name}") for theme in (LIGHT, DARK))
    return Illustration(title=figure.title, source=figure.source, caption=figure.description, light=light, dark=dark)
