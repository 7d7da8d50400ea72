"""What heads write to neurons, for every architecture: against whole passes, of small shifts too."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rareneuron.models.families import FAMILIES
from rareneuron.models.gradient import site_means
from rareneuron.models.head_influence import estimated_influence, exact_influence
from rareneuron.models.sites import site_of
from tests.models.test_gradient import CONTEXT, POSITION, STEP, shifted

from .conftest import D_MLP

pytestmark = pytest.mark.slow  # every architecture, and whole passes beside each


def acts(case):
    """The last layer's activations at the tokens, by a whole pass."""
    return case.adapter.capture(case.windows, 1).act[CONTEXT, POSITION].double()


def change(case, site, head, mean, step=1.0):
    """How far a head that goes a fraction of the way to its mean moves the activations."""
    clean = acts(case)
    with shifted(site, head, step, mean):
        return acts(case) - clean


@pytest.mark.parametrize("name", FAMILIES)
def test_replacing_a_head_moves_neurons_as_a_whole_pass_does(name, tiny):
    case = tiny(name)
    anatomy, site, target = case.adapter.anatomy, *(site_of(case.adapter.anatomy, *of) for of in ((0, "heads"), (1,)))
    mean = 0.3 + site_means(anatomy, [site], case.windows)[0].mean
    heads = [(site, head) for head in range(site.n_units)]
    clean, found = exact_influence(anatomy, heads, target, case.windows, (CONTEXT, POSITION), [mean] * len(heads))
    assert_close(clean.double(), acts(case))
    for (_, head), influence in zip(heads, found, strict=True):
        truth = change(case, site, head, mean)
        assert truth.abs().max() > 1e-3, "the case is too tame to tell right from wrong"
        assert_close(influence.double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimate_of_one_neuron_is_what_small_shifts_tend_to(name, tiny, in_float64):
    case = tiny(name)
    in_float64(case.adapter.model)
    anatomy = case.adapter.anatomy
    site, target = site_of(anatomy, 0, "heads"), site_of(anatomy, 1)
    mean = 0.3 + site_means(anatomy, [site], case.windows)[0].mean
    neurons = range(0, D_MLP, 7)
    weights = np.zeros((len(neurons), D_MLP), np.float32)
    weights[np.arange(len(neurons)), list(neurons)] = 2.0
    found = np.zeros((len(neurons), len(CONTEXT), site.n_units))
    for part in estimated_influence(
        anatomy, [site], target, case.windows, (CONTEXT, POSITION), [mean], weights, row_positions=7
    ):
        found[:, part.index] = part.squared
    for head in range(site.n_units):
        at = {step: change(case, site, head, mean, step * STEP)[:, list(neurons)] for step in (-2, -1, 1, 2)}
        derivative = ((8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)).T.numpy()
        scale = np.abs(derivative).max()
        assert scale > 1e-3, "the case is too tame to tell right from wrong"
        np.testing.assert_allclose(np.sqrt(found[:, :, head]), 2 * np.abs(derivative), rtol=1e-3, atol=5e-4 * scale)


def test_random_signs_add_the_squares_of_neurons(tiny):
    """S² of many keys averages to Σ (w I)², which one neuron at a time gives exactly."""
    case = tiny("llama")
    anatomy = case.adapter.anatomy
    site, target = site_of(anatomy, 0, "heads"), site_of(anatomy, 1)
    means = [0.3 + site_means(anatomy, [site], case.windows)[0].mean]
    tokens = (CONTEXT, POSITION)

    def squared(weights, key):
        parts = estimated_influence(anatomy, [site], target, case.windows, tokens, means, weights, key=key)
        return np.concatenate([part.squared for part in parts], 1)

    each = squared(np.eye(D_MLP, dtype=np.float32), 0).sum(0)
    together = np.mean([squared(np.ones((1, D_MLP), np.float32), key)[0] for key in range(400)], 0)
    np.testing.assert_allclose(together, each, rtol=0.35)  # a few times √(2/400)
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in case.adapter.model.parameters())
