"""Sorting, and what is refused."""

import numpy as np
import pytest

from rareneuron.errors import InvalidConfig
from rareneuron.maths.rank_curve import rank_curve


def test_sorted_from_the_largest_with_ties_in_neuron_order():
    curve = rank_curve(np.array([0.1, 3.0, 0.0, 3.0, 0.2]))
    assert curve.value.tolist() == [3.0, 3.0, 0.2, 0.1, 0.0]
    assert curve.neuron.tolist() == [1, 3, 4, 0, 2]
    assert curve.rank.tolist() == [1, 2, 3, 4, 5]
    assert curve.n_positive == 4


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, -0.1]])
def test_what_is_no_mean_absolute_effect_is_refused(values):
    with pytest.raises(InvalidConfig, match="abs_delta_loss"):
        rank_curve(np.array(values))
