"""The section on claims: every verdict and what it rests on."""

from collections.abc import Callable

import numpy as np
import pytest

from rareneuron.present.blocks import Definitions, Table
from rareneuron.present.findings import findings
from rareneuron.present.sections.claims import claims_section
from rareneuron.runs.run import Run
from tests.present.claimed import CLAIMS

MakeRun = Callable[..., Run]


@pytest.mark.usefixtures("without_ink")
def test_the_section_tells_every_verdict_and_what_it_rests_on(claimed: Callable[..., Run]) -> None:
    blocks = claims_section(findings(claimed())).blocks
    told = next(block for block in blocks if isinstance(block, Definitions))
    assert [text.split(".")[0] for _, text in told.items] == [
        *("Supported", "Not supported", "Not supported", "Inconclusive")
    ]
    table = next(block for block in blocks if isinstance(block, Table))
    assert "corrected for 4 claims" in table.caption
    rows = {row[0]: dict(zip([column.head for column in table.columns], row, strict=True)) for row in table.rows}
    together = rows["together"]
    assert (together["p"], together["p, Holm"], together["verdict"]) == ("0.0010", "0.021", "supported")
    assert together["effect"] == "+0.0200 (+0.0100 … +0.0400)"
    assert rows["apart"]["size"] == "−2.0"
    assert [rows["unknown"][name] for name in ("p", "value", "effect", "against")] == ["–"] * 4
    assert np.isin(list(rows), [claim.name for claim in CLAIMS]).all()
