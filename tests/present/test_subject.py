"""What a run's model and layer are called: the same on every page and in every table."""

from collections.abc import Callable

import pytest

from rareneuron.present.card import card
from rareneuron.present.findings import findings
from rareneuron.present.report import render_report
from rareneuron.present.subject import folder_name, subject
from rareneuron.present.tables import (
    paper_table,
)
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run, open_run

MakeRun = Callable[..., Run]


def test_the_same_model_twice_is_told_apart(make_run: MakeRun) -> None:
    runs = [make_run(), make_run()]
    labels = list(dict.fromkeys(row[0] for row in paper_table(1, runs).rows))
    assert labels == [f"embedded series, step 512 ({run.path.name})" for run in runs]


@pytest.mark.parametrize(
    ("asked", "n_layers", "is_last"), [(-1, 4, True), (3, 4, True), (3, 48, False), (-45, 48, False)]
)
def test_report_tables_and_card_agree_on_the_last_layer(
    make_run: MakeRun, asked: int, n_layers: int, is_last: bool, without_ink: None
) -> None:
    """The setting may name the last layer by -1 or by its index."""
    run = make_run()  # of layer 3
    manifest = read_json(run.path / "run.json")
    manifest["config"]["layer"] = asked
    write_json(run.path / "run.json", manifest | {"n_layers": n_layers})
    run = open_run(run.path)
    words = "layer 3, the last" if is_last else "layer 3"
    assert findings(run).subject.layer_name == words
    assert f'<p class="subtitle">Neurons and rare tokens: {words}, 60 neurons ·' in render_report(run)
    assert f", {words}, 1,000 parameters" in paper_table(1, [run]).notes[0]
    assert f", {words}, 1,000 parameters" in card(run)


def test_report_tables_and_card_call_a_model_the_same(make_run: MakeRun, without_ink: None) -> None:
    run = make_run(model="somewhere/models/tiny")
    assert findings(run).subject.model == subject(run, None).model == "tiny"
    assert paper_table(1, [run]).rows[0][0] == "tiny, step 512"
    assert "<h1>tiny</h1>" in render_report(run)
    assert "Rare-token neurons of tiny" in card(run)


@pytest.mark.parametrize(
    ("path", "resolved", "name"),
    [
        ("models/tiny", "/somewhere/models/tiny", "tiny"),
        ("models/tiny/", None, "tiny"),
        (".", "/somewhere/models/tiny", "tiny"),
        ("/cache/models--org--a-b/snapshots/0a1b2c", "/cache/models--org--a-b/snapshots/0a1b2c", "org/a-b"),
        ("snapshot", "/cache/models--org--m/snapshots/0a1b2c", "org/m"),
    ],
)  # fmt: skip
def test_a_folder_is_called_by_its_name_or_id(path: str, resolved: str | None, name: str) -> None:
    assert folder_name(path, resolved) == name
