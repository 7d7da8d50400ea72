"""Joint ablation against two losses in float64."""

import pytest
import torch

from rareneuron.maths import joint as joint_module
from rareneuron.maths.ablation import delta_loss
from rareneuron.maths.joint import LARGE, JointAblation, growth
from tests.maths.conftest import random_case


def two_losses(case, move):
    readout = case.readout.to(torch.float64)

    def loss(resid):
        return -readout(resid).log_softmax(-1).gather(1, case.target[:, None])[:, 0]

    return loss(case.resid.double() + move) - loss(case.resid.double())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("size", [1e-3, 0.3, 30.0])
def test_joint_ablation_is_the_difference_of_two_losses(norm, size):
    case = random_case(norm, size, seed=3)
    move = case.shift.double() @ case.W_out.double()  # all neurons at once
    slow = two_losses(case, move)
    assert slow.abs().max() > min(size / 10, 1.0), "the case is too tame to tell right from wrong"
    exact = JointAblation(case.readout, case.resid, case.target, dtype=torch.float64).delta_loss(move)
    torch.testing.assert_close(exact, slow, rtol=1e-9, atol=1e-11)
    # float32 rounds δ relative to its size, and the largest moves change logits by tens
    fast = JointAblation(case.readout, case.resid, case.target).delta_loss(move)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5 * (1 + slow.abs().max().item()))


def test_a_group_of_one_is_a_single_ablation():
    case = random_case("layer", 0.1, seed=4)
    single = delta_loss(case.readout, case.resid, case.shift, case.target, case.W_out, precision="reference")
    joint = JointAblation(case.readout, case.resid, case.target, dtype=torch.float64)
    for i in range(3):
        together = joint.delta_loss(case.shift[:, [i]].double() @ case.W_out[[i]].double())
        torch.testing.assert_close(together, single[:, i], rtol=1e-9, atol=1e-12)


def test_a_pair_is_more_than_its_sum_where_effects_are_large():
    case = random_case("layer", 1.0, seed=5)
    joint = JointAblation(case.readout, case.resid, case.target, dtype=torch.float64)
    single = delta_loss(case.readout, case.resid, case.shift, case.target, case.W_out, precision="reference")
    together = joint.delta_loss(case.shift[:, :2].double() @ case.W_out[:2].double())
    assert (together - single[:, :2].sum(1)).abs().max() > 1e-3  # the sum wouldn't pass for it


def test_no_move_changes_nothing():
    case = random_case("rms", 1.0, seed=6)
    joint = JointAblation(case.readout, case.resid, case.target)
    assert (joint.delta_loss(torch.zeros_like(case.resid)) == 0).all()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_groups_at_once_are_groups_one_by_one(norm, monkeypatch):
    case = random_case(norm, 0.3, seed=7)
    joint = JointAblation(case.readout, case.resid, case.target, dtype=torch.float64)
    moves = torch.stack([case.shift[:, [i]] @ case.W_out[[i]] * size for i, size in ((0, 1), (1, 1), (2, 1e3))])
    one_by_one = torch.stack([joint.delta_loss(move) for move in moves])
    assert one_by_one.abs().max() > 1  # the large move takes the other branch
    for elements in (1, 2 * len(case.resid) * len(joint.A), 2**23):  # one, two, all at once
        monkeypatch.setattr(joint_module, "ELEMENTS_AT_ONCE", elements)
        torch.testing.assert_close(joint.delta_loss(moves), one_by_one, rtol=1e-12, atol=1e-14)
    assert joint.delta_loss(moves[:, None]).shape == (3, 1, len(case.resid))


def test_exp_grows_as_expm1_does_and_serves_no_small_change():
    noise = torch.randn(4, 3, 5000, generator=torch.Generator().manual_seed(8))
    for size in (1e-6, 0.5 * LARGE, 2 * LARGE, 1.0):
        delta = size * noise
        exact = delta.double().expm1()
        atol = 0 if size < LARGE else 1.2e-7  # the rounding of exp near 1, where its changes are large enough
        torch.testing.assert_close(growth(delta.clone()).double(), exact, rtol=2.4e-7, atol=atol)
    small = 1e-6 * noise
    assert (small.exp() - 1 - small.expm1()).abs().mean() > 1e-2 * small.abs().mean()  # what exp would cost there
