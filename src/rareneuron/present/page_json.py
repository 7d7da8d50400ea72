"""Puts data into a page as JSON: rounded numbers, text that can't end its element, and the twin of every section.

A twin is what a section shows, for programs: tables as they stand, figures as the columns that they draw.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from rareneuron.present.blocks import (
    Block,
    Definitions,
    Illustration,
    Largest,
    Notice,
    Paragraph,
    Settings,
    Table,
    Verdicts,
    Words,
)
from rareneuron.present.ink import thin
from rareneuron.present.wording import without_hidden

DIGITS = 4
MOST_NUMBERS = 6_000  # of a figure; tables of the run folder have all


def short(value: float | None) -> float | None:
    """Return a number rounded to a few digits; None for NaN, which JSON doesn't have."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def shorts(values: np.ndarray | pd.Series) -> list[float | int | None]:
    """Return many numbers rounded; whole ones without a point, which saves a fifth of the page."""
    out: list[float | int | None] = []
    for value in np.asarray(values, np.float64).tolist():
        if math.isfinite(value):
            rounded = float(f"{value:.{DIGITS}g}")
            out.append(int(rounded) if rounded.is_integer() else rounded)
        else:
            out.append(None)
    return out


def embedded_json(data: Any) -> Markup:
    """Return JSON that no HTML parser can take for anything else: no `<`, `>` or `&`, and ASCII throughout.

    So `</script>` and `<!--` can't end or hide the element, and U+2028 and lone surrogates are escapes.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def twin(title: str, blocks: Sequence[Block]) -> Markup:
    """Return a section's content as JSON."""
    return embedded_json(shown({"title": title, "parts": [content(block) for block in blocks]}))


def content(block: Block) -> dict[str, Any]:
    """Return what a block says."""
    match block:
        case Paragraph():
            return {"text": block.text}
        case Notice():
            return {"notice": block.text}
        case Definitions():
            return {"definitions": dict(block.items)}
        case Settings():
            return {"caption": block.caption, "settings": dict(block.items)}
        case Words():
            return {"caption": block.caption, "words": [list(item) for item in block.items]}
        case Table():
            columns = [f"{column.head}, {column.unit}" if column.unit else column.head for column in block.columns]
            return {"caption": block.caption, "columns": columns, "rows": [list(row) for row in block.rows]}
        case Largest():
            return {"caption": block.caption, "unit": block.unit, "neurons": [neuron(row) for row in block.rows]}
        case Verdicts():
            return {"caption": block.caption, "claims": [claim(row) for row in block.rows]}
        case Illustration():
            return {"figure": block.title, "source": block.source} | columns_of(block.frame)


def neuron(row: Any) -> dict[str, Any]:
    """Return a line of the list of the largest neurons."""
    words = {"promotes": list(row.promotes), "largest_at": list(row.targets), "kind": row.mechanism}
    return {"neuron": row.name, "mean_abs_delta": row.size, "mean_delta": row.delta} | {
        k: v for k, v in words.items() if v
    }


def claim(row: Any) -> dict[str, Any]:
    """Return a verdict with what it rests on."""
    return {"title": row.title, "verdict": row.verdict, "sentence": row.sentence} | dict(row.facts)


def columns_of(frame: pd.DataFrame | None) -> dict[str, Any]:
    """Return what a figure draws, column by column; of many rows some, evenly in log rank, then evenly."""
    if frame is None:
        return {}
    kept = frame
    if "rank" in frame:
        by = [name for name in ("checkpoint", "matrix", "group") if name in frame]
        kept = pd.concat([thin(part) for _, part in frame.groupby(by, sort=False)]) if by else thin(frame)
    most = max(2, MOST_NUMBERS // max(1, len(frame.columns)))
    if len(kept) > most:
        kept = kept.iloc[np.linspace(0, len(kept) - 1, most).round().astype(int)]
    return {"rows": len(kept), "of": len(frame), "columns": {str(name): column(kept[name]) for name in kept}}


def column(values: pd.Series) -> Any:
    """Return a column's values, or the one that all its rows share."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        out: list[Any] = shorts(values.to_numpy(np.float64, na_value=np.nan))
    else:
        out = [None if pd.isna(value) else str(value) for value in values]
    return out[0] if len(out) > 1 and len(set(out)) == 1 else out


def shown(data: Any) -> Any:
    """Return data in whose text nothing is hidden."""
    if isinstance(data, str):
        return without_hidden(data)
    if isinstance(data, dict):
        return {shown(key): shown(value) for key, value in data.items()}
    return [shown(value) for value in data] if isinstance(data, list) else data
