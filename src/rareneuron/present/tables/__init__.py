"""The paper's Tables 1–4 for any number of runs, each value beside its nulls, the paper's own where it has them.

`layouts` says what each table shows, `long_form` and `paper_form` build it, and this module writes it as text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from rareneuron.present.published import Number
from rareneuron.present.tables.layouts import NUMBERS
from rareneuron.present.tables.long_form import all_tables, long_table
from rareneuron.present.tables.paper_form import paper_table
from rareneuron.present.typeset import PaperTable, as_latex, as_markdown
from rareneuron.runs.files import replacing
from rareneuron.runs.run import Run

__all__ = ["all_tables", "long_table", "paper_table", "save_tables", "table_text", "tables_text", "write_tables"]


def as_csv(table: pd.DataFrame) -> str:
    """Return a table in long form as CSV text."""
    return str(table.to_csv(index=False, lineterminator="\n"))


TEXT: dict[str, Callable[[PaperTable], str]] = {"md": as_markdown, "latex": as_latex}
SUFFIX = {"md": "md", "csv": "csv", "latex": "tex"}


def table_text(number: Number, runs: Sequence[Run], form: str, step: int | None = None) -> str:
    """Return one table as text: `md` and `latex` in the paper's layout, `csv` in long form."""
    if form == "csv":
        return as_csv(long_table(number, runs, step))
    return TEXT[form](paper_table(number, runs, step))


def tables_text(runs: Sequence[Run], form: str, step: int | None = None) -> str:
    """Return all four tables as text; as CSV they are one long table."""
    if form == "csv":
        return as_csv(all_tables(runs, step))
    return "\n".join(table_text(number, runs, form, step) for number in NUMBERS)


def save_tables(runs: Sequence[Run], folder: Path, form: str = "csv", step: int | None = None) -> list[Path]:
    """Write each table to a file of its own, such as FOLDER/table-1.csv, and return the paths."""
    paths = []
    for number in NUMBERS:
        path = folder / f"table-{number}.{SUFFIX[form]}"
        text = table_text(number, runs, form, step)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def write_tables(run: Run) -> list[Path]:
    """Write the last checkpoint's tables in long form to RUN/tables/table-N.csv, and return the paths."""
    return save_tables([run], run.path / "tables")
