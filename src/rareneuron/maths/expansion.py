r"""KL(clean‖ablated) = log E_p[e^x], x = δ − E_p δ, from a few moments of x, with a bound on what they leave out.

x = a G + b B̃_i, with G and B̃_i centred under the clean distribution p. With κ_n = E_p[xⁿ] and |x| ≤ M, what remains
of the series of e^x after some terms is at most, since all its coefficients are positive,

    second order:  |E e^x − 1 − κ₂/2|                      ≤ κ₂/6 · M / (1 − M/4)       M < 4
    third order:   |E e^x − 1 − κ₂/2 − κ₃/6|               ≤ κ₄/24 · 1 / (1 − M/5)      M < 5
    fourth order:  |E e^x − 1 − κ₂/2 − κ₃/6 − κ₄/24|       ≤ κ₄/120 · M / (1 − M/6)     M < 6

log enlarges no error, since its argument is at least 1 (Jensen). κ alone is blind to a token of tiny p and large x; M
is not. Rounding in products of the layer's width adds to the bound; float32 rounding elsewhere (of E_p[A], E_p[G A] and
what is formed of them) does not, and is kept small by summing in short pieces. docs/engine.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, factorial

import torch
from jaxtyping import Float
from torch import Tensor

VOCAB_AT_ONCE = 2**10  # summed in one go, so that the rounding of a sum has a bound whatever the vocabulary
ROUGHLY_AT_ONCE = 2**12  # the same in bfloat16, whose own rounding is far larger than that of the additions
PAIRS_AT_ONCE = 2**16  # token · neuron
FINE = 2**8  # the same for sums that no bound speaks of: many equal terms round to the same side
ADDITIONS = VOCAB_AT_ONCE + 2**8  # of a sum: within a piece, and of up to 256 pieces
# Relative error, at most, of a sum of products of two rounded factors that don't change sign: each factor's and the
# result's rounding, and one float32 addition for each term.
ROUNDING = {
    torch.bfloat16: 3.1 * 2**-8 + (ROUGHLY_AT_ONCE + 2**8) * 2**-24,
    torch.float32: ADDITIONS * 2**-24,
}


@dataclass(frozen=True, kw_only=True)
class CleanTokens:
    """A block of tokens as the clean model sees them."""

    p: Float[Tensor, "token vocab"]
    logp: Float[Tensor, "token vocab"]
    G: Float[Tensor, "token vocab"]  # A x̂ − E_p[A x̂]
    G_powers: Float[Tensor, "5 token"]  # E_p[G^j] for j = 0 (one) to 4
    GA: Float[Tensor, "token d_model"]  # E_p[G A]: times ŵ_i, the covariance of G and B_i
    mean_A: Float[Tensor, "token d_model"]  # E_p[A]: times ŵ_i, the mean of B_i
    from_target: Float[Tensor, "token d_model"]  # E_p[A] − A_target
    G_target: Float[Tensor, " token"]
    farthest_G: Float[Tensor, " token"]  # max |G|
    loss: Float[Tensor, " token"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """δ = a G + b B_i of a block of pairs; a is None where the norm's scale is frozen."""

    a: Float[Tensor, "token neuron"] | None
    b: Float[Tensor, "token neuron"]

    def of(self, neurons: Tensor) -> "Change":
        """The same of some neurons."""
        return Change(a=None if self.a is None else self.a[:, neurons], b=self.b[:, neurons])


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """KL of a block of pairs and a bound on its error; infinite where none is known."""

    kl: Float[Tensor, "token neuron"]
    bound: Float[Tensor, "token neuron"]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """E_p[G^j B_i^k] by (j, k), [token, neuron] each, G centred and B_i not."""

    of: Mapping[tuple[int, int], Tensor]
    reach: Float[Tensor, "token neuron"]  # max |B_i − E_p B_i|
    rounding: Mapping[int, float]  # by j + k: relative error, at most, of the corresponding sum of absolute values

    def joined(self, other: "Moments", neurons: Tensor) -> "Moments":
        """Some neurons of these moments, and what another level knows of the same neurons; the latter wins."""
        of = {jk: moment[:, neurons] for jk, moment in self.of.items()}
        return Moments(of=of | dict(other.of), reach=other.reach, rounding=other.rounding)

    def central(self, clean: CleanTokens, j: int, k: int) -> Tensor:
        """E_p[G^j B̃^k]."""
        mean = self.of[0, 1]
        return sum(
            (comb(k, i) * (-mean) ** (k - i) * self.of[j, i] for i in range(1, k + 1)),
            start=(-mean) ** k * clean.G_powers[j, :, None],
        )

    def kappa(self, clean: CleanTokens, change: Change, n: int) -> Tensor:
        """κ_n = E_p[(a G + b B̃)ⁿ]."""
        out = change.b**n * self.central(clean, 0, n)
        if change.a is not None:
            for j in range(1, n):
                out += comb(n, j) * change.a**j * change.b ** (n - j) * self.central(clean, j, n - j)
            out += change.a**n * clean.G_powers[n, :, None]
        return out

    def farthest(self, clean: CleanTokens, change: Change) -> Tensor:
        """M: x is nowhere larger."""
        M = change.b.abs() * self.reach
        return M if change.a is None else M.addcmul_(change.a.abs(), clean.farthest_G[:, None])


def pieces(vocab: int, size: int = VOCAB_AT_ONCE) -> list[slice]:
    """The vocabulary in pieces that are summed in one go."""
    return [slice(start, min(start + size, vocab)) for start in range(0, vocab, size)]


def summed(weights: Float[Tensor, "token vocab"], table: Float[Tensor, "vocab d_model"]) -> Tensor:
    """Σ_v weights_tv table_v, in fine pieces.

    Not by addmm: that goes on from the running total term by term, and pieces would mean nothing.
    """
    out = torch.zeros(len(weights), table.shape[1], dtype=table.dtype, device=table.device)
    for piece in pieces(len(table), FINE):
        out += weights[:, piece] @ table[piece]
    return out


def second_order(clean: CleanTokens, m: Moments, change: Change) -> Expansion:
    """log(1 + κ₂/2). Every pair comes through here: written out, a few tokens at a time, so as to stay in the cache."""
    kl, bound = torch.empty_like(change.b), torch.empty_like(change.b)
    for rows in pieces(len(kl), max(1, PAIRS_AT_ONCE // kl.shape[1])):
        b, mean, B_squared = change.b[rows], m.of[0, 1][rows], m.of[0, 2][rows]
        b_squared = b.square()
        k2 = torch.addcmul(B_squared, mean, mean, value=-1).mul_(b_squared)
        M = b.abs().mul_(m.reach[rows])
        if change.a is not None:
            a = change.a[rows]
            k2 += a * (a * clean.G_powers[2, rows, None] + 2 * b * m.of[1, 1][rows])
            M.addcmul_(a.abs(), clean.farthest_G[rows, None])
        k2.clamp_min_(0)
        remainder = k2 * M / (6 - 1.5 * M)
        bound[rows] = remainder.addcmul_(b_squared, B_squared, value=m.rounding[2] / 2).masked_fill_(
            ~(M < 4), torch.inf
        )
        torch.log1p(k2.div_(2), out=kl[rows])
    return Expansion(kl=kl, bound=bound)


def higher_order(clean: CleanTokens, m: Moments, change: Change, order: int) -> Expansion:
    """log(1 + κ₂/2 + κ₃/6), and + κ₄/24 where the order is four."""
    M = m.farthest(clean, change)
    b, size = change.b.abs(), fourth_root(m.of[0, 4]) + m.of[0, 1].abs()
    central = m.central(clean, 0, 4).clamp_min(0) + m.rounding[4] * size**4  # at most
    size, spread = b * size, b * fourth_root(central)
    if change.a is not None:
        of_G = change.a.abs() * fourth_root(clean.G_powers[4])[:, None]
        size, spread = size + of_G, spread + of_G
    # By Minkowski and Lyapunov no sum of absolute terms of order n exceeds sizeⁿ, so rounding is relative to that.
    in_kappa = {n: m.rounding[n] * size**n for n in (3, 4)} | {2: m.rounding[2] * b.square() * m.of[0, 2]}
    kappa = {n: m.kappa(clean, change, n) for n in range(2, order + 1)}
    if order == 4:
        remainder = (kappa[4].clamp_min(0) + in_kappa[4]) * M / (120 - 20 * M)
    else:
        remainder = spread**4 / (24 - 4.8 * M)  # κ₄ ≤ spread⁴, by Minkowski again
    kappa[2].clamp_min_(0)
    series = torch.stack([kappa[n] / factorial(n) for n in kappa]).sum(0)
    rounding = torch.stack([in_kappa[n] / factorial(n) for n in kappa]).sum(0)
    bound = (remainder + rounding).masked_fill_(M.ge(order + 2), torch.inf)
    return Expansion(kl=series.clamp_min_(0).log1p_(), bound=bound)


def fourth_root(x: Tensor) -> Tensor:
    """Of what is never negative but for rounding."""
    return x.clamp_min(0).sqrt().sqrt()
