"""The section on claims: every verdict and what it rests on."""

from collections.abc import Callable

import numpy as np
import pytest

from rareneuron.present.blocks import Paragraph, Verdicts
from rareneuron.present.findings import findings
from rareneuron.present.sections.claims import along_axis, claims_section
from rareneuron.runs.run import Run
from tests.present.claimed import CLAIMS

MakeRun = Callable[..., Run]


@pytest.mark.usefixtures("without_ink")
def test_the_section_tells_every_verdict_and_what_it_rests_on(claimed: Callable[..., Run]) -> None:
    blocks = claims_section(findings(claimed())).blocks
    told = next(block for block in blocks if isinstance(block, Verdicts))
    assert [row.verdict for row in told.rows] == ["supported", "not supported", "not supported", "inconclusive"]
    assert "correction for 4 claims" in next(block.text for block in blocks if isinstance(block, Paragraph))
    rows = {row.name: row for row in told.rows}
    assert set(rows) == {claim.name for claim in CLAIMS}
    together = dict(rows["together"].facts)
    assert (together["p"], together["p after Holm"], rows["together"].p) == ("0.0010", "0.021", "0.021")
    assert together["effect"] == "+0.0200 (+0.0100 … +0.0400)"
    assert dict(rows["apart"].facts)["in deviations of the null"] == "−2.0"
    assert {"p", "value", "effect", "against"}.isdisjoint(dict(rows["unknown"].facts))


@pytest.mark.usefixtures("without_ink")
def test_effects_lie_along_one_axis(claimed: Callable[..., Run]) -> None:
    told = next(b for b in claims_section(findings(claimed())).blocks if isinstance(b, Verdicts))
    rows = {row.name: row for row in told.rows}
    low, high = told.usual
    assert low < told.zero < high
    assert rows["none"].point == told.zero
    assert rows["apart"].point == low  # two deviations below its null
    assert rows["together"].point > high
    assert rows["unknown"].point is None
    for row in told.rows:
        ends = row.interval or ()
        assert all(0 <= x <= 100 for x in ends)
        assert row.interval is None or ends[0] <= row.point <= ends[1]


def test_the_axis_is_linear_within_two_deviations_and_logarithmic_beyond() -> None:
    np.testing.assert_allclose(along_axis(np.array([-1.0, 0.0, 2.0, 20.0, -200.0])), [-0.5, 0, 1, 2, -3])
