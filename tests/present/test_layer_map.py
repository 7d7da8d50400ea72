"""Where a neuron stands among all layers: its ranks in the page are those of the run's table, and they are drawn."""

from typing import Any

import pytest

from rareneuron.present.findings import findings
from rareneuron.present.page_data import page_data
from rareneuron.present.report import write_report
from rareneuron.runs.run import Run
from rareneuron.study.study import run_study
from tests.present.browser import Page
from tests.tiny_series import study_config


@pytest.fixture(scope="module")
def run(series: Any, text_file: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("map") / "run"
    return run_study(
        study_config(series, text_file, steps=(10,), n_tokens=60, layers="all", units="neurons", out=str(out))
    )


@pytest.mark.slow
def test_ranks_within_layers_add_up_to_the_rank_among_all(run: Run) -> None:
    data = page_data(findings(run))
    rows, shown = data["details"]["layer_map"], data["details"]["shown"]
    table = run.layers()
    assert [row["layer"] for row in rows] == sorted(table["layer"].unique(), reverse=True)
    assert len(rows) > 1
    for k, neuron in enumerate(shown):
        before = sum(row["rank"][k] - 1 for row in rows)
        assert data["neurons"]["rank_of_all"][neuron] == before + 1
    own = table[table["layer"] == data["layer"]].set_index("index")["abs_delta_loss"]
    for row in rows:
        others = table[table["layer"] == row["layer"]]["abs_delta_loss"]
        for k in (0, len(shown) // 2):
            assert row["rank"][k] == 1 + (others > own[shown[k]]).sum()


@pytest.mark.slow
def test_the_map_is_drawn(run: Run, chromium: Any, without_ink: None) -> None:
    page = Page(chromium, write_report(run))
    rows = page.run("return [...document.querySelectorAll('.map-row')].map((n) => n.textContent)")
    data = page_data(findings(run))
    assert rows[0] == f"layer {data['layer']}rank {data['details']['layer_map'][0]['rank'][0]}"
    assert all("would be" in row for row in rows[1:])
    assert "among those of all layers" in page.text("#neuron-panel")
    assert page.complaints() == []
