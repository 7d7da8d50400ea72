"""How results look in a notebook: a small table in HTML, the docstring's first line above it.

Needs nothing but the standard library, so that every floor may use it. Text is escaped; of an array only shape
and range are shown.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from html import escape
from itertools import islice
from typing import Any

MOST_SHOWN = 6  # entries of a sequence or mapping


class Shown:
    """Gives a dataclass an `_repr_html_`, from its fields; `shown_table` may choose another table."""

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return heads and rows, in the order in which a reader wants them."""
        return ["", ""], [(field.name, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]

    def shown_title(self) -> str:
        """Return the line above the table: the class, and the first line of its docstring."""
        about = (type(self).__doc__ or "").strip().split("\n")[0]
        return f"{type(self).__name__}: {about}"

    def _repr_html_(self) -> str:
        return html_table(self.shown_title(), *self.shown_table())


def html_table(title: str, heads: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    """Return a table in HTML: a caption, heads, and each value as one line of text."""
    body = "".join(f"<tr>{''.join(cell(value_text(value)) for value in row)}</tr>" for row in rows)
    head = f"<thead><tr>{''.join(f'<th>{escape(h)}</th>' for h in heads)}</tr></thead>" if any(heads) else ""
    caption = f'<caption style="text-align:left;caption-side:top">{escape(title)}</caption>'
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def cell(text: str) -> str:
    """Return a table cell in HTML, left-aligned, since most cells are words."""
    return f'<td style="text-align:left">{escape(text)}</td>'


def value_text(value: Any) -> str:
    """Return a value as one line: numbers to four digits, arrays by shape, dtype and range."""
    if value is None:
        return "–"
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy's or torch's
        return value_text(value.item())
    if isinstance(value, float):
        return f"{value:z.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return array_text(value)
    if is_dataclass(value):
        return type(value).__name__
    if isinstance(value, dict):
        parts = [f"{key}: {value_text(item)}" for key, item in islice(value.items(), MOST_SHOWN)]
    elif isinstance(value, tuple | list):
        parts = [value_text(item) for item in value[:MOST_SHOWN]]
    else:
        return str(value)
    more = [f"… {len(value):,} in all"] if len(value) > MOST_SHOWN else []
    return ", ".join([*parts, *more]) or "none"


def array_text(value: Any) -> str:
    """Return an array's shape and dtype as text, with the range where all numbers are finite."""
    shape = " × ".join(f"{size:,}" for size in value.shape)
    words = f"{shape}, {str(value.dtype).removeprefix('torch.')}"
    if 0 in value.shape or not str(value.dtype).removeprefix("torch.").startswith(("float", "int", "uint", "bool")):
        return words
    low, high = float(value.min()), float(value.max())
    return f"{words}, {low:.4g} … {high:.4g}" if math.isfinite(low) and math.isfinite(high) else words
