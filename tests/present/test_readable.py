"""What a run holds, or why not, in words."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from rareneuron.present.readable import verdict
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcome", "null_p", "said"),
    [
        ("three phases", {}, "three phases"),
        ("no power law", {"exponential": 0.2, "lognormal": 0.6}, "lognormal samples look as straight, p = 0.60"),
        ("no power law", {}, "the middle bends"),
        ("no plateau", {"no plateau": 0.051}, "curves without one look the same, p = 0.051"),
        ("no plateau", {}, "within its noise"),
        ("no decay", {"no decay": 1.0}, "power laws look the same, p = 1.0"),
    ],
)
def test_the_verdict_names_what_stood_against_it(
    layer: tuple[pd.DataFrame, dict[str, Any]], outcome: Any, null_p: dict[str, float], said: str
) -> None:
    found = layer[1]["all"]
    assert max(found.null_p.values()) <= 0.05
    assert said in verdict(replace(found, outcome=outcome, null_p=found.null_p | null_p))
