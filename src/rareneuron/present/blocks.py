"""What a section of the report is made of. Blocks hold plain text and finished numbers; the template makes them HTML.

All text goes through the template's escaping, so no block may hold markup; an `Illustration`'s SVG, which this
package draws itself, is the one exception.
"""

from dataclasses import dataclass
from typing import ClassVar


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
class Tiles:
    """A few numbers in large type."""

    kind: ClassVar[str] = "tiles"
    items: tuple[tuple[str, str], ...]  # number, what it counts


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
class Illustration:
    """A figure as SVG, whose colours the page's style sheet changes on dark screens."""

    kind: ClassVar[str] = "illustration"
    title: str
    source: str
    caption: str
    svg: str


Block = Paragraph | Notice | Tiles | Definitions | Settings | Words | Table | Illustration


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    name: str  # its anchor
    title: str
    blocks: tuple[Block, ...]
