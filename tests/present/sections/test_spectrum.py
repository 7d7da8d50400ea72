"""The section on weights: both matrices, other rules, figures."""

from collections.abc import Callable

import pytest

from rareneuron.present.blocks import Illustration, Table
from rareneuron.present.findings import findings
from rareneuron.present.sections.spectrum import spectrum_section
from rareneuron.runs.run import Run
from tests.present.reading import texts

MakeRun = Callable[..., Run]


@pytest.mark.usefixtures("without_ink")
def test_the_spectrum_section_holds_both_matrices_and_other_rules(make_run: MakeRun) -> None:
    run = make_run()
    section = spectrum_section(findings(run))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0] for row in tables[0].rows if "this run" in row[0]] == ["W_in: this run", "W_out: this run"]
    words = texts(section)
    assert words.index("α_Hill, W_in: Boosting") < words.index("α_Hill, W_out: Boosting")
    rows = run.spectrum().set_index(["matrix", "statistic", "group", "null"])
    half = next(row for row in tables[1].rows if row[0] == "W_out: α_Hill, k a half")
    found = [rows.loc[("W_out", "alpha_hill_half", "boosting", null), "p"] for null in ("uniform", "matched")]
    assert float(half[1]) == pytest.approx(
        rows.loc[("W_out", "alpha_hill_half", "boosting", "uniform"), "value"], rel=1e-2
    )
    assert float(half[4]) == pytest.approx(max(found), rel=0.05)
    assert len(tables[1].rows) == 2 * 6


def test_figures_stand_in_the_spectrum_section(make_run: MakeRun) -> None:
    blocks = spectrum_section(findings(make_run())).blocks
    assert [block.source for block in blocks if isinstance(block, Illustration)] == ["Fig. 2b", "App. 5.3.3"]
