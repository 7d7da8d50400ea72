"""Tables as files: all digits, written whole, the same every time."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from rareneuron.present.tables import (
    long_table,
    save_tables,
    table_text,
    tables_text,
    write_tables,
)
from rareneuron.present.tables.layouts import NUMBERS
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def test_csv_holds_all_digits(make_run: MakeRun) -> None:
    run = make_run()
    rows = list(csv.DictReader(io.StringIO(table_text(3, [run], "csv"))))
    assert [float(row["value"]) for row in rows] == long_table(3, [run])["value"].tolist()
    everything = list(csv.DictReader(io.StringIO(tables_text([run, run], "csv"))))
    assert len(everything) == 2 * sum(len(long_table(number, [run])) for number in NUMBERS)


def test_files_are_written_whole_beside_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    paths = write_tables(run)
    assert paths == [run.path / "tables" / f"table-{number}.csv" for number in NUMBERS]
    assert [path.read_text() for path in paths] == [table_text(number, [run], "csv") for number in NUMBERS]
    for form, suffix in (("md", "md"), ("latex", "tex")):
        found = save_tables([run], tmp_path / form, form)
        assert [path.suffix for path in found] == [f".{suffix}"] * 4
        assert "\n".join(path.read_text() for path in found) == tables_text([run], form)
    assert not list(run.path.rglob("*partial"))


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_the_same_runs_give_the_same_text(make_run: MakeRun, form: str) -> None:
    run = make_run()
    assert tables_text([run], form) == tables_text([Run(run.path)], form)
