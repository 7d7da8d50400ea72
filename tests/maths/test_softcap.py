"""The change of a soft-capped logit against two capped logits in float64, and the bounds of its expansion."""

import pytest
import torch

from rareneuron.maths.softcap import STEEPEST, capped_change, soft_cap

CAPS = [1.0, 3.0, 30.0]


def grid(cap):
    z, r = torch.linspace(-6, 6, 101, dtype=torch.float64), torch.linspace(-4, 4, 161, dtype=torch.float64)
    return (cap * x for x in torch.meshgrid(z, r, indexing="ij"))


@pytest.mark.parametrize("cap", CAPS)
def test_it_is_the_difference_of_two_capped_logits(cap):
    z, r = grid(cap)
    expected = cap * torch.tanh((z + r) / cap) - cap * torch.tanh(z / cap)
    torch.testing.assert_close(capped_change(r.clone(), z / cap, cap), expected, rtol=0, atol=1e-13 * cap)
    single = capped_change(r.float(), (z / cap).float(), cap).double()
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-6 * cap)


def test_small_changes_keep_their_digits():
    z, r = torch.tensor([20.0]), torch.tensor([1e-6])
    exact = soft_cap((z + r).double() * 0 + 20.0 + 1e-6, 30.0) - soft_cap(torch.tensor([20.0]).double(), 30.0)
    found = capped_change(r.clone(), z / 30, 30.0).double()
    assert ((found - exact) / exact).abs() < 1e-6
    subtracted = (soft_cap(z + r, 30.0) - soft_cap(z, 30.0)).double()
    assert ((subtracted - exact) / exact).abs() > 0.1  # negative control


@pytest.mark.parametrize("cap", CAPS)
def test_the_bounds_of_the_expansion_hold(cap):
    z, r = grid(cap)
    T = torch.tanh(z / cap)
    D = 1 - T**2
    change = capped_change(r.clone(), z / cap, cap)
    grown, size = (2 * r.abs() / cap).exp(), r.abs()
    slack = 1e-12 * cap
    bend = change - D * r
    assert (bend.abs() <= STEEPEST / cap * size**2 + slack).all()
    steepness = (T.abs() + size / cap).clamp_max(1)
    assert (bend.abs() <= steepness * grown * D / cap * size**2 + slack).all()
    third = bend + D * T / cap * r**2
    assert (third.abs() <= 2 / 3 * grown * D / cap**2 * size**3 + slack).all()
    assert (third.abs() > D / cap**2 * size**3 / 10).any()  # the bound is no wild exaggeration
