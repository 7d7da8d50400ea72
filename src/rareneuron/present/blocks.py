"""What a section of the report is made of. Blocks hold plain text and finished numbers; the template makes them HTML.

All text goes through the template's escaping, so no block may hold markup; an `Illustration`'s SVG, which this
package draws itself, is the one exception.
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Plain words."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something a reader must not miss."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Names and what they stand for."""

    kind: ClassVar[str] = "definitions"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names and values, as recorded."""

    kind: ClassVar[str] = "settings"
    caption: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Words:
    """Tokens, each with a number."""

    kind: ClassVar[str] = "words"
    caption: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A table's column; numbers stand to the right, so that digits line up."""

    head: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """Finished cells; the first column names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    wrapped: bool = False  # words in several lines, where cells hold more of them than numbers


@dataclass(frozen=True, kw_only=True)
class LargestNeuron:
    """One neuron of the list that stands first."""

    name: str
    size: str
    part: float  # of the largest size, in per cent: the length of its bar
    delta: str
    boosts: bool
    promotes: tuple[str, ...]
    targets: tuple[str, ...]  # at which its effect is largest
    mechanism: str


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The neurons with the largest effects, each with its words."""

    kind: ClassVar[str] = "largest"
    caption: str
    unit: str
    rows: tuple[LargestNeuron, ...]

    @property
    def shown(self) -> frozenset[str]:
        """Return the names of the columns of words that any row fills."""
        return frozenset(
            name for name in ("promotes", "targets", "mechanism") if any(getattr(r, name) for r in self.rows)
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim: a line, and behind it what the verdict rests on."""

    name: str
    title: str
    verdict: str
    p: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    point: float | None  # of the effect along the axis, in per cent
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """All claims as a compact table, each of whose rows opens."""

    kind: ClassVar[str] = "verdicts"
    caption: str
    rows: tuple[Verdict, ...]
    zero: float  # of the axis that all rows share, in per cent
    usual: tuple[float, float]  # where two of three draws of the null lie


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """A figure as SVG, whose colours the page's style sheet changes on dark screens."""

    kind: ClassVar[str] = "illustration"
    title: str
    source: str
    caption: str
    svg: str
    folded: bool = False  # whether the caption opens by a click
    frame: pd.DataFrame | None = None  # what it shows


Block = Paragraph | Notice | Definitions | Settings | Words | Table | Largest | Verdicts | Illustration


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    name: str  # its anchor
    title: str
    blocks: tuple[Block, ...]
