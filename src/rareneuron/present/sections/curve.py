"""Puts figures on a page."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rareneuron.present.blocks import Illustration
from rareneuron.present.figure import Figure, inline_svg
from rareneuron.present.findings import Findings

if TYPE_CHECKING:
    import matplotlib.figure


def illustration(figure: Figure, found: Findings) -> Illustration:
    """Return a figure of this run, for a page."""
    return replace(on_page(figure, found.sheets.of(figure)), frame=found.sheets.frame_of(figure))


def on_page(figure: Figure, sheet: "matplotlib.figure.Figure") -> Illustration:
    """Return a drawn figure, for a page."""
    svg = inline_svg(sheet, figure.name)
    return Illustration(title=figure.title, source=figure.source, caption=figure.description, svg=svg)
