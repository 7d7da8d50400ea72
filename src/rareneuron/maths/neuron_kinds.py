r"""Which neurons are known kinds: entropy, token-frequency, prediction, suppression and partition neurons.

A kind is decided by what a neuron writes, against a null, and where it claims an effect also by the share of mean |Δ|
that really goes that way (`mechanism`). With ŵ what the neuron writes as the final norm centres it, Ā the gain-folded
unembedding less its mean over types, and V_k the right singular directions of Ā with the k = ⌈0.01 d⌉ smallest values:

    entropy           ρ² = ‖V_kᵀ ŵ‖²/‖ŵ‖² beyond Beta(k/2, (d′ − k)/2), that of a random direction, and norm share ≥ 0.5
    token-frequency   |cos(Ā ŵ, f)| beyond the layer's own spread, and frequency share ≥ 0.25
    prediction        kurtosis of cos(A_v, ŵ) over types v of 10 or more, skewed to above
    suppression       the same, skewed to below
    partition         variance of cos(A_v, ŵ) beyond the layer's own spread, kurtosis below 10

p-values are Benjamini–Hochberg's over the layer's neurons, at 5 %; of the shares the lower end of the 95 % interval
counts. Below a LayerNorm d′ = d − 1: its centring takes one direction away, along which ŵ and V_k have no part (with d,
the direction (1, …, 1) would be the smallest singular direction of all, and mean nothing). The layer's own spread is
median and median absolute deviation, which a few neurons of a kind don't move. Where a gate leaves signs open, ŵ is
taken times the sign of the mean activation. The first kind that fits is taken, in the order above.
Oracle: tests/maths/test_neuron_kinds.py, singular value decompositions, loops over types, and planted neurons.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import beta, false_discovery_control, norm
from torch import Tensor

from rareneuron.maths.known_kinds import KINDS, LEAST_FREQUENCY_SHARE, LEAST_NORM_SHARE, PEAKED
from rareneuron.maths.readout import Readout
from rareneuron.maths.significance import LEVEL

SMALLEST = 0.01  # of all directions: those that the unembedding hears least
OF_GAUSSIAN = 1.4826  # standard deviations to a median absolute deviation
ENTRIES_AT_ONCE = 2**24  # neuron · type
TYPES_AT_ONCE = 2**13  # rows of the unembedding in float64


@dataclass(frozen=True, kw_only=True)
class Written:
    """What each neuron of a layer writes to the logits, beside its nulls; `q` are p-values after correction."""

    null_space_share: Float[np.ndarray, " neuron"]  # ρ²
    null_space_q: Float[np.ndarray, " neuron"]
    frequency_cosine: Float[np.ndarray, " neuron"]  # above 0: the neuron promotes frequent types
    frequency_q: Float[np.ndarray, " neuron"]
    unembedding_variance: Float[np.ndarray, " neuron"]
    unembedding_variance_q: Float[np.ndarray, " neuron"]
    unembedding_skew: Float[np.ndarray, " neuron"]
    unembedding_kurtosis: Float[np.ndarray, " neuron"]


def written(
    readout: Readout,
    W_out: Float[Tensor, "neuron d_model"],
    f: Float[Tensor, " vocab"] | None,
    sign: Float[Tensor, " neuron"],
    n_types: int,
) -> Written:
    """Return what each neuron writes, times its sign; `n_types` leaves out rows of the unembedding without a token.

    Without `f` nothing is known of frequency: NaN.
    """
    gain = 1.0 if readout.output_norm is None else readout.output_norm.weight.double()
    w = readout.centre(W_out.double() * gain) * sign.double()[:, None]
    A = readout.logits_per_direction(torch.promote_types(readout.W_U.dtype, torch.float32))[:n_types]
    gram, along_f = centred_products(A, None if f is None else f[:n_types])
    share, p = null_space(gram, w, layer_norm=readout.norm == "layer")
    cosine = frequency_cosine(gram, w, along_f)
    moments = cosine_moments(A, w)
    return Written(
        null_space_share=share,
        null_space_q=discovery(p),
        frequency_cosine=cosine,
        frequency_q=discovery(beyond_the_layer(cosine)),
        unembedding_variance=moments[0],
        unembedding_variance_q=discovery(beyond_the_layer(moments[0], upper=True)),
        unembedding_skew=moments[1],
        unembedding_kurtosis=moments[2],
    )


def kinds_of(
    found: Written,
    norm_share_low: Float[np.ndarray, " neuron"],
    frequency_share_low: Float[np.ndarray, " neuron"] | None,
) -> np.ndarray:
    """Return the kind of each neuron, or "" where it is of none; shares are lower ends of their intervals."""
    low = np.full_like(norm_share_low, np.nan) if frequency_share_low is None else frequency_share_low
    peaked = found.unembedding_kurtosis >= PEAKED
    fits = {
        "entropy": (found.null_space_q <= LEVEL) & (norm_share_low >= LEAST_NORM_SHARE),
        "token-frequency": (found.frequency_q <= LEVEL) & (low >= LEAST_FREQUENCY_SHARE),
        "prediction": peaked & (found.unembedding_skew > 0),
        "suppression": peaked & (found.unembedding_skew < 0),
        "partition": ~peaked & (found.unembedding_variance_q <= LEVEL),
    }
    return np.select([fits[kind] for kind in KINDS], KINDS, default="").astype(object)


def centred_products(
    A: Float[Tensor, "type d_model"], f: Float[Tensor, " type"] | None
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"] | None]:
    """Return ĀᵀĀ and Āᵀf/‖f‖, f less its mean, in float64: some types at a time, so that only A itself is held."""
    mean = A.mean(0, dtype=torch.float64)
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=A.device)
    along = torch.zeros_like(mean)
    unit = None if f is None else (f.double() - f.double().mean())
    for start in range(0, len(A), TYPES_AT_ONCE):
        some = slice(start, start + TYPES_AT_ONCE)
        centred = A[some].double() - mean
        gram += centred.T @ centred
        if unit is not None:
            along += centred.T @ unit[some]
    return gram, None if unit is None else along / unit.norm()


def null_space(
    gram: Float[Tensor, "d_model d_model"], w: Float[Tensor, "neuron d_model"], *, layer_norm: bool
) -> tuple[Float[np.ndarray, " neuron"], Float[np.ndarray, " neuron"]]:
    """Return ρ², the part of each ŵ along the directions that the unembedding hears least, and its p-value."""
    d_model = len(gram)
    k = math.ceil(SMALLEST * d_model)
    basis = torch.eye(d_model, dtype=gram.dtype, device=gram.device)
    if layer_norm:  # an orthonormal basis of what is centred
        basis = torch.linalg.qr(torch.cat([torch.ones_like(basis[:, :1]), basis[:, 1:]], 1)).Q[:, 1:]
    _, directions = torch.linalg.eigh(basis.T @ gram @ basis)
    quiet = basis @ directions[:, :k]
    length = w.square().sum(1)
    share = (w @ quiet).square().sum(1) / length
    rho = share.where(length > 0, torch.nan).clamp(0, 1).cpu().numpy()
    return rho, np.asarray(beta.sf(rho, k / 2, (basis.shape[1] - k) / 2))


def frequency_cosine(
    gram: Float[Tensor, "d_model d_model"],
    w: Float[Tensor, "neuron d_model"],
    along_f: Float[Tensor, " d_model"] | None,
) -> Float[np.ndarray, " neuron"]:
    """Return cos(Ā ŵ, f) of each neuron, or NaN where frequency is unknown or the neuron writes nothing."""
    if along_f is None:
        return np.full(len(w), np.nan)
    length = ((w @ gram) * w).sum(1).clamp_min(0).sqrt()
    return ((w @ along_f) / length).where(length > 0, torch.nan).cpu().numpy()


def cosine_moments(
    A: Float[Tensor, "type d_model"], w: Float[Tensor, "neuron d_model"]
) -> Float[np.ndarray, "3 neuron"]:
    """Return variance, skew and kurtosis of cos(A_v, ŵ) over types v, for each neuron; `A` is overwritten."""
    lengths = A.norm(dim=1)
    A /= lengths[:, None]
    unit = (A if (lengths > 0).all() else A[lengths > 0]).float()
    of_w = (w / w.norm(dim=1, keepdim=True)).float()  # a neuron that writes nothing has no cosine: NaN
    out = []
    for some in of_w.split(max(1, ENTRIES_AT_ONCE // len(unit))):
        x = some @ unit.T
        x -= x.mean(1, keepdim=True)
        square = x.square()
        variance = square.mean(1, dtype=torch.float64)
        third, fourth = (square * x).mean(1, dtype=torch.float64), square.square().mean(1, dtype=torch.float64)
        out.append(torch.stack([variance, third / variance**1.5, fourth / variance.square()]))
    return torch.cat(out, 1).cpu().numpy()


def beyond_the_layer(values: Float[np.ndarray, " neuron"], *, upper: bool = False) -> Float[np.ndarray, " neuron"]:
    """Return the p-value of each value beside a normal with the layer's median and median absolute deviation.

    Two-sided, or of a value at least as large for `upper`.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return np.full(len(values), np.nan)
    spread = OF_GAUSSIAN * np.median(np.abs(known - np.median(known)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (values - np.median(known)) / spread
    return np.asarray(norm.sf(z) if upper else 2 * norm.sf(np.abs(z)))


def discovery(p: Float[np.ndarray, " neuron"]) -> Float[np.ndarray, " neuron"]:
    """Return p-values after Benjamini and Hochberg; those that are not numbers count as 1."""
    known: Bool[np.ndarray, " neuron"] = np.isfinite(p)
    return np.asarray(false_discovery_control(np.where(known, p, 1.0)))
