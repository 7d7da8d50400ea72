"""Eigenvalues on several threads are those of one, bit for bit."""

import numpy as np
import pytest

from rareneuron.maths import eigen
from rareneuron.maths.eigen import eigenvalues_of


@pytest.mark.parametrize("shape", [(300, 12, 12), (2, 130, 5, 5), (3, 4, 4), (6, 6)])
def test_threads_change_no_bit(shape, monkeypatch):
    rows = np.random.default_rng(0).standard_normal(shape)
    matrices = rows @ rows.swapaxes(-1, -2)
    monkeypatch.setattr(eigen, "n_processors", lambda: 3)
    assert np.array_equal(eigenvalues_of(matrices), np.linalg.eigvalsh(matrices))


def test_the_number_of_threads_is_that_of_other_libraries(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert eigen.n_processors() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert eigen.n_processors() >= 1
