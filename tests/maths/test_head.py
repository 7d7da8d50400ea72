"""Losses and cotangents at the normed hidden state against log-softmax and autograd, in float64."""

import pytest
import torch
from torch.testing import assert_close

from rareneuron.maths.head import Head

VOCAB, WIDTH = 40, 8


def head_and_hidden(cap=None, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    head = Head(W_U=draw(VOCAB, WIDTH), b_U=draw(VOCAB) if bias else None, cap=cap)
    return head, draw(5, WIDTH), torch.tensor([3, 0, 39, 7, 7])


def by_definition(head, clean, changed, target):
    """Subtract two losses, and sum the KL, word by word."""
    log_p, log_q = head(clean).log_softmax(-1), head(changed).log_softmax(-1)
    rows = torch.arange(len(target))
    return log_p[rows, target] - log_q[rows, target], (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("size", [1e-3, 0.3, 40.0])  # the last goes beyond what exponentials hold
def test_changes_are_those_of_the_losses(cap, size):
    head, clean, target = head_and_hidden(cap)
    changed = clean + size * torch.randn(7, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = head.loss_changes(clean, changed, target)
    for row, of_change in enumerate(changed):
        delta, kl = by_definition(head, clean, of_change, target)
        assert_close(found.delta_loss[row], delta, rtol=1e-9, atol=1e-12)
        assert_close(found.kl[row], kl, rtol=1e-9, atol=1e-12)
    assert found.kl.max() > size**2 / 10 or cap


def test_small_changes_survive_float32():
    """Two float32 losses near 3 nats subtract to nothing below 1e-7; these changes are near 1e-9."""
    head, clean, target = head_and_hidden(dtype=torch.float32)
    move = 1e-9 * torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    double = Head(W_U=head.W_U.double(), b_U=head.b_U.double())
    # Differences of hidden states are exact here, as clean is zero.
    found = head.loss_changes(0 * clean, move.float(), target).delta_loss
    truth = double.loss_changes(0 * clean.double(), move, target).delta_loss
    assert_close(found, truth, rtol=1e-4, atol=1e-14)


def test_no_change_is_exactly_none():
    head, clean, target = head_and_hidden(dtype=torch.float32)
    found = head.loss_changes(clean, clean[None].expand(3, -1, -1), target)
    assert not found.delta_loss.any()
    assert not found.kl.any()


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_first_cotangent_is_the_gradient_of_the_loss(cap):
    head, hidden, target = head_and_hidden(cap)
    hidden.requires_grad_()
    torch.nn.functional.cross_entropy(head(hidden), target, reduction="sum").backward()
    found = head.cotangents(hidden.detach(), target, torch.ones(0, 5, VOCAB, dtype=torch.float64))
    assert_close(found, hidden.grad[None])


@pytest.mark.parametrize("cap", [None, 2.0])
def test_squares_of_the_others_average_to_the_variance_of_the_logits(cap):
    """E S² over signs is Var_p(J logits), which autograd gives exactly; twice the KL of a small move."""
    head, hidden, target = head_and_hidden(cap)
    generator = torch.Generator().manual_seed(2)
    signs = 2.0 * torch.randint(0, 2, (20_000, 5, VOCAB), generator=generator).double() - 1
    direction = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)
    _, change = torch.autograd.functional.jvp(head, hidden, direction)
    p = head(hidden).softmax(-1)
    variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
    found = (head.cotangents(hidden, target, signs)[1:] * direction).sum(-1).square().mean(0)
    assert_close(found, variance, rtol=0.05, atol=0)  # 20,000 draws: standard error 1 %
    small = 1e-4
    kl = head.loss_changes(hidden, (hidden + small * direction)[None], target).kl[0]
    assert_close(kl, small**2 * variance / 2, rtol=1e-3, atol=0)
