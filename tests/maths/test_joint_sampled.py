"""Joint ablation by some of the types, against all of them in float64."""

import pytest
import torch

from rareneuron.maths import joint_sampled
from rareneuron.maths.joint import JointAblation
from rareneuron.maths.joint_sampled import SampledJointAblation, likeliest_and_spread, types_summed
from rareneuron.maths.output_norm import OutputNorm
from rareneuron.maths.readout import Readout

VOCAB, WIDTH, TOKENS, GROUPS = 20_000, 32, 5, 40


def case(softcap=None, output_norm=False, size=0.3):
    """A peaked readout of a large vocabulary, tokens, and movements of groups: logits change by about `size`."""
    rng = torch.Generator().manual_seed(0)
    W_U = torch.randn(VOCAB, WIDTH, generator=rng) * 3 / WIDTH**0.5
    norm = OutputNorm(weight=torch.ones(WIDTH), eps=1e-6) if output_norm else None
    readout = Readout("rms", None, None, 1e-6, W_U, softcap=softcap, output_norm=norm)
    resid = torch.randn(TOKENS, WIDTH, generator=rng)
    mlp_out = torch.randn(TOKENS, WIDTH, generator=rng) if output_norm else None
    move = size / 3 * torch.randn(GROUPS, TOKENS, WIDTH, generator=rng)
    return readout, resid, torch.randint(VOCAB, (TOKENS,), generator=rng), mlp_out, move


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("output_norm", [False, True])
def test_sums_over_some_types_are_those_over_all(softcap, output_norm):
    readout, resid, target, mlp_out, move = case(softcap, output_norm)
    exact = JointAblation(readout, resid, target, mlp_out=mlp_out, dtype=torch.float64).delta_loss(move.double())
    joint = JointAblation(readout, resid, target, mlp_out=mlp_out)
    found = SampledJointAblation(joint, n_likeliest=1024, n_spread=1024).delta_loss(move)
    assert exact.abs().mean() > 0.05, "the case is too tame"
    error = (found.double() - exact).abs()
    assert error.mean() < 3e-3 * exact.abs().mean()
    assert error.max() < 0.02 * exact.abs().mean()


def test_without_the_first_order_of_all_types_it_would_be_far_off():
    readout, resid, target, _, move = case(size=0.03)
    joint = JointAblation(readout, resid, target, dtype=torch.float64)
    exact, found = joint.delta_loss(move.double()), SampledJointAblation(joint, n_likeliest=1024, n_spread=1024)
    change = joint.change(move.double())
    delta = torch.einsum("gtd,tkd->gtk", change, joint.A[found.ids])
    plain = (delta + found.weight.log()).logsumexp(-1) - joint.delta_at(change, target)
    assert (plain - exact).abs().mean() > 5 * (found.delta_loss(move.double()) - exact).abs().mean()


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_small_effects_keep_their_digits(size):
    """Their first order comes from all types: the KL alone is what some types stand for."""
    readout, resid, target, _, move = case(size=size)
    joint = JointAblation(readout, resid, target, dtype=torch.float64)
    exact = joint.delta_loss(move.double())
    found = SampledJointAblation(JointAblation(readout, resid, target), n_likeliest=256, n_spread=256).delta_loss(move)
    first = exact - kl(joint, move.double())
    assert (exact - first).abs().mean() > 1e-8
    error = (found.double() - exact).abs()
    assert error.mean() < 0.02 * (exact - first).abs().mean() + 1e-6 * exact.abs().mean()


def kl(joint, move):
    """KL(clean‖moved) of each group at each token."""
    delta = joint.change(move) @ joint.A.T
    return (joint.logp + delta - (joint.p * delta).sum(-1, keepdim=True)).logsumexp(-1)


def test_groups_that_change_much_are_summed_over_all_types():
    readout, resid, target, _, move = case(size=0.3)
    move[7] *= 30
    exact = JointAblation(readout, resid, target, dtype=torch.float64).delta_loss(move.double())
    found = SampledJointAblation(JointAblation(readout, resid, target), n_likeliest=64, n_spread=64).delta_loss(move)
    assert exact[7].abs().mean() > 1
    torch.testing.assert_close(found[7].double(), exact[7], rtol=1e-4, atol=1e-4)


def one_type_that_gains():
    """A move that raises the logit of one improbable type by ten, and hardly any other's."""
    readout, resid, target, _, _ = case()
    chosen = int(JointAblation(readout, resid, target).p.sum(0).argsort()[VOCAB // 4])
    readout.W_U[:, -1] = 0.0
    readout.W_U[chosen] = 0.0
    readout.W_U[chosen, -1] = 5.0
    resid[:, -1] = -1.0
    move = torch.zeros(1, TOKENS, WIDTH)
    move[..., -1] = torch.linspace(2, 6, TOKENS)
    return readout, resid, torch.full_like(target, chosen), target, move


def test_the_target_is_among_the_types_however_improbable_it_is():
    readout, resid, gaining, others, move = one_type_that_gains()

    def errors(target):
        exact = JointAblation(readout, resid, target, dtype=torch.float64).delta_loss(move.double())
        assert exact.abs().max() > 3
        found = SampledJointAblation(JointAblation(readout, resid, target), n_likeliest=64, n_spread=64)
        return (found.delta_loss(move).double() - exact).abs()

    assert errors(gaining).max() < 1e-3
    assert errors(others).max() > 1, "another type's gain is what the docstring says can't be seen"


def test_no_move_changes_nothing():
    readout, resid, target, _, move = case()
    found = SampledJointAblation(JointAblation(readout, resid, target)).delta_loss(torch.zeros_like(move))
    assert (found == 0).all()


def test_weights_are_those_of_the_likeliest_and_shares_of_the_rest():
    p = torch.randn(3, 500, generator=torch.Generator().manual_seed(1)).mul_(2).softmax(1)
    target = torch.tensor([499, int(p[1].argmax()), int(p[2].argmin())])
    ids, weight = likeliest_and_spread(p, target, 20, 100)
    assert (ids[:, 0] == target).all()
    assert (torch.stack([(row == y).sum() for row, y in zip(ids, target, strict=True)]) == 1).all()
    torch.testing.assert_close(weight.sum(1), torch.ones(3, dtype=torch.float64))
    likeliest, others = ids[:, :20], ids[:, 20:]
    assert all(set(a.tolist()).isdisjoint(b.tolist()) for a, b in zip(likeliest, others, strict=True))
    torch.testing.assert_close(weight[:, :20], p.gather(1, likeliest).double())
    value = torch.linspace(-1, 1, 500).square()
    truth = (p * value).sum(1).double()
    assert ((weight * value[ids]).sum(1) - truth).abs().max() < 2e-3
    alone = (p.gather(1, likeliest) * value[likeliest]).sum(1)
    assert (alone - truth).abs().min() > 0.05, "the likeliest alone would do"


def test_a_small_vocabulary_is_summed_whole():
    assert types_summed(joint_sampled.SMALLEST) == joint_sampled.SMALLEST
    assert types_summed(262_144) == joint_sampled.LIKELIEST + joint_sampled.SPREAD
