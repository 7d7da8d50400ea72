"""The section on co-activation: tables, clusters, and on which side of the nulls a value lies."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from rareneuron.present.blocks import Section, Table
from rareneuron.present.findings import findings
from rareneuron.present.sections.geometry import geometry_section, sides
from rareneuron.present.sections.spectrum import spectrum_section
from rareneuron.present.tables import paper_table
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run
from tests.present.reading import texts

MakeRun = Callable[..., Run]


def rows_like(value: float, mean: float, p: float, null: str) -> dict[str, Any]:
    return {"group": "boosting", "value": value, "null": null, "null_mean": mean, "p": p}


@pytest.mark.parametrize(
    ("p", "value", "words"),
    [
        (0.05, 0.2, "Boosting 0.200: above random groups, above matched groups."),
        (0.05, -0.2, "Boosting −0.200: below random groups, below matched groups."),
        (0.051, 0.2, "Boosting 0.200: not told from random groups, not told from matched groups."),
    ],
)
def test_a_side_is_told_at_five_percent_alone(p: float, value: float, words: str) -> None:
    rows = pd.DataFrame([rows_like(value, 0.1, p, null) for null in ("uniform", "matched")])
    assert sides(rows, 3) == words


def test_the_geometry_section_holds_three_tables_and_clusters(make_run: MakeRun) -> None:
    run = make_run()
    section = geometry_section(findings(run))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    for number, block in zip((1, 2, 3), tables, strict=False):
        table = paper_table(number, [run])
        assert [row[1:] for row in block.rows] == [row[table.n_words :] for row in table.rows]
        assert block.caption.startswith(f"{table.title}, at step 512. Definitions “paper”, layer 3, the last")
    assert [row[0] for row in tables[3].rows if "this run" in row[0]] == ["Ward: this run", "average: this run"]
    assert "unlike neurons that are like it in mean |activation|" in texts(section)
    assert "never vary" not in texts(section)
    released = geometry_section(findings(make_run(definitions="released")))
    assert "cut at 5, of Euclidean distances between rows of D" in released.blocks[-1].caption
    assert "effective dimensions, z-scored: Boosting" in texts(released)


def test_neurons_that_never_vary_are_counted(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "steps" / "512" / "geometry.json"
    record = read_json(path)
    write_json(path, record | {"n_constant": {"boosting": 2.0, "suppressing": 0.0, "random": 0.25}})
    assert "clusters: 2.00 of boosting, 0 of suppressing, 0.250 of random." in texts(geometry_section(findings(run)))


@pytest.mark.parametrize("build", [geometry_section, spectrum_section])
def test_a_section_without_groups_gives_the_reason(make_run: MakeRun, build: Callable[..., Section]) -> None:
    section = build(findings(make_run(unavailable="There are 3 boosting neurons.")))
    assert re.fullmatch(r"There is no (geometry|spectrum)\. There are 3 boosting neurons\.", texts(section))
