"""What figures and sections say, as one line of text."""

import re
from typing import Any

from matplotlib.legend import Legend

from rareneuron.present.blocks import Definitions, Notice, Paragraph, Section
from rareneuron.present.figures import figure
from rareneuron.runs.run import Run


def words(run: Run, name: str) -> str:
    """All that a figure says, outside its axes' numbers, on one line."""
    drawn = figure(run, name)
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    legend = axes.get_legend()
    texts = [axes.get_title(loc="left"), *(t.get_text() for t in axes.texts)]
    return re.sub(r"\s+", " ", " | ".join(texts + ([t.get_text() for t in legend.get_texts()] if legend else [])))


def legends(drawn: Any) -> list[str]:
    """Labels of all legends of a figure."""
    found = [artist for axes in drawn.axes for artist in axes.get_children() if isinstance(artist, Legend)]
    return [text.get_text() for legend in found for text in legend.get_texts()]


def texts(section: Section) -> str:
    """Its words outside tables, on one line."""
    parts = [block.text for block in section.blocks if isinstance(block, Paragraph | Notice)]
    for block in section.blocks:
        if isinstance(block, Definitions):
            parts += [f"{name}: {text}" for name, text in block.items]
    return " ".join(parts)
