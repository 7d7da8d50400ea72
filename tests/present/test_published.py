"""The numbers that the paper prints: all there, and as its text describes them."""

from collections.abc import Callable

import numpy as np
import pytest

from rareneuron.present.published import GROUPS, MODELS, Number, paper_row
from rareneuron.present.tables.layouts import NUMBERS
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_paper_has_five_models_in_every_table(number: Number) -> None:
    for name in dict.fromkeys(MODELS.values()):
        values = paper_row(number, name)
        assert tuple(values) == GROUPS[number]
        assert all(np.isfinite(float(value)) for value in values.values())


def test_published_values_are_found_by_model_and_group() -> None:
    assert paper_row(1, "GPT2-XL")["suppressing-random"] == "-0.0004"
    assert paper_row(2, "Pythia-410M") == {"boosting": "33", "suppressing": "32.2", "random": "37.3"}
    assert paper_row(3, "GPT2-Small")["boosting-random"] == "-0.100"
    assert paper_row(4, "GPT2-Large")["suppressing"] == "1.84"
    with pytest.raises(KeyError):
        paper_row(1, "Pythia-1B")


def test_what_the_paper_says_of_its_tables_is_so() -> None:
    """Its text: α_Hill and dimension below random throughout; one number out of order would show here."""
    for name in dict.fromkeys(MODELS.values()):
        for number in (2, 4):
            row = {group: float(value) for group, value in paper_row(number, name).items()}
            assert max(row["boosting"], row["suppressing"]) < row["random"], (number, name)
        cosine = {group: float(value) for group, value in paper_row(3, name).items()}
        assert max(cosine["boosting-random"], cosine["suppressing-random"]) < 0 < cosine["boosting-suppressing"]
