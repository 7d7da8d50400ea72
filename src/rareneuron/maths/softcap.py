r"""Soft-capped logits, κ tanh(z/κ) in place of z, and how they change when z does (Gemma-2).

With T = tanh(z/κ), D = 1 − T² and z moved by r, the capped logit changes by κ D t/(1 + T t), t = tanh(r/κ): no
difference of two logits, so a small change keeps its digits. To second order that is D r − (D T/κ) r², with a
remainder of at most |r|³ max|f‴|/6, f‴ = (D/κ²)(6T² − 2) taken on the way; D grows by at most e^(2|r|/κ) there, since
d log D/dz = −2T/κ. Oracle: tests/maths/test_softcap.py, two capped logits in float64.
"""

import torch
from torch import Tensor

STEEPEST = 0.385  # max |T (1 − T²)|, 2/(3√3) rounded up
FAR = 0.5  # |r|/κ from which a difference of two capped logits is the more accurate form


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Return κ tanh(z/κ)."""
    return torch.tanh(logits / cap) * cap


def capped_change(raw: Tensor, scaled: Tensor, cap: float) -> Tensor:
    """Return the change of κ tanh(z/κ) when z = κ · `scaled` changes by `raw`."""
    T = scaled.tanh()
    return change_from_tanh(raw, scaled, T, 1 - T.square(), cap)


def change_from_tanh(raw: Tensor, scaled: Tensor, T: Tensor, D: Tensor, cap: float) -> Tensor:
    """Return the same where T and D are known; `raw` is overwritten."""
    step = raw.div_(cap)
    far = step.abs() > FAR
    if far.any():
        jump = torch.tanh(scaled + step).sub_(T)
        step = step.tanh()
        near = step * D / torch.addcmul(torch.ones_like(step), T.expand_as(step), step)
        return torch.where(far, jump, near).mul_(cap)
    step.tanh_()
    below = torch.mul(step, T).add_(1)
    return step.mul_(D).div_(below).mul_(cap)
