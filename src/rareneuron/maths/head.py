"""Goes from the normed hidden state to logits, to changes of the loss, and to cotangents that backward passes start at.

logits(h) = cap · tanh((W_U h + b_U)/cap), without tanh where there is no cap. Differences are computed as differences:
with Δlogit centred at its mean under the clean p, KL(clean || changed) = log(1 + Σ p (exp(Δlogit) − 1)) and
Δloss = KL − Δlogit[target], which keeps what a subtraction of two losses would round away.
Oracle: log-softmax and autograd in float64, tests/maths/test_head.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

FAR = 30.0  # nats by which a logit may grow before exponentials are formed in logarithms
BLOCK = 2**22  # logits formed at a time


class LossChanges(NamedTuple):
    """What a change of the hidden state does to the loss and to the distribution, in nats."""

    delta_loss: Float[Tensor, "change token"]  # positive: the change hurts
    kl: Float[Tensor, "change token"]  # KL(clean || changed)


@dataclass(frozen=True)
class Head:
    """The unembedding as data, and the soft cap of the logits where a model has one."""

    W_U: Float[Tensor, "vocab d_hidden"]
    b_U: Float[Tensor, " vocab"] | None = None
    cap: float | None = None

    def __call__(self, hidden: Float[Tensor, "token d_hidden"]) -> Float[Tensor, "token vocab"]:
        """Return the logits of every token."""
        logits = hidden @ self.W_U.T
        if self.b_U is not None:
            logits = logits + self.b_U
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def slope(self, logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"] | float:
        """Return by how much a logit moves with W_U h: 1 without a cap, 1 − (logit/cap)² with one."""
        return 1.0 if self.cap is None else 1 - (logits / self.cap).square()

    def loss_changes(
        self,
        clean: Float[Tensor, "token d_hidden"],
        changed: Float[Tensor, "change token d_hidden"],
        target: Int[Tensor, " token"],
    ) -> LossChanges:
        """Return what each change of the tokens' hidden states does to their losses, in float64."""
        logits = self(clean)
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        parts = []
        for some in changed.split(max(1, BLOCK // log_p.numel())):
            if self.cap is None:
                dlogit = (some - clean) @ self.W_U.T
            else:
                dlogit = self(some.flatten(0, 1)).unflatten(0, some.shape[:2]) - logits
            dlogit = dlogit - torch.einsum("tv,ctv->ct", p, dlogit)[..., None]
            kl = torch.einsum("tv,ctv->ct", p, torch.expm1(dlogit.clamp(max=FAR))).double().log1p()
            far = dlogit.amax(-1) > FAR
            if far.any():
                kl[far] = (log_p.double() + dlogit.double()).logsumexp(-1)[far]
            at_target = dlogit.gather(-1, target.expand(len(some), -1)[..., None])[..., 0]
            parts.append(torch.stack([kl - at_target, kl]))
        return LossChanges(*torch.cat(parts, 1))

    def cotangents(
        self,
        hidden: Float[Tensor, "token d_hidden"],
        target: Int[Tensor, " token"],
        signs: Float[Tensor, "draw token vocab"],
    ) -> Float[Tensor, "pass token d_hidden"]:
        r"""Return ∂/∂h of the loss, then of $\sum_v \sqrt{p_v} ζ_v (\text{logit}_v − E_p \text{logit})$ for each draw.

        The first is $\sum_v p_v W_U[v] − W_U[y]$. Averaged over signs ζ = ±1 the square of the second's contraction
        with a direction is the variance under p of the logits' derivative along it, twice the leading term of the KL.
        """
        logits = self(hidden)
        p = logits.softmax(-1)
        slope = self.slope(logits)
        loss = p.clone()
        loss[torch.arange(len(target), device=p.device), target] -= 1
        passes = [(loss * slope) @ self.W_U]
        for draw in signs:
            weights = p.sqrt() * draw
            passes.append(((weights - weights.sum(-1, keepdim=True) * p) * slope) @ self.W_U)
        return torch.stack(passes)
