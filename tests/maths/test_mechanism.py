"""Effects without their mechanisms against the definitions, in float64, where norm and frequency both matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rareneuron.errors import UnusableCounts
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.clustered import clustered_ratio
from rareneuron.maths.frequency import log_frequency
from rareneuron.maths.mechanism import EffectParts, exact_parts
from tests import oracles
from tests.maths.conftest import behind_norm_case, random_case

SIZES = (1e-3, 1e-2, 0.1)
KINDS = {
    "layer": lambda size: random_case("layer", size),
    "rms": lambda size: random_case("rms", size),
    "no bias": lambda size: without_bias(random_case("layer", size)),
    "norm": lambda size: behind_norm_case(True, None, size=size),
    "norm, no bias": lambda size: without_bias(behind_norm_case(True, None, size=size)),
    "cap 30": lambda size: behind_norm_case(False, 30.0, size=size),
    "norm, cap 3": lambda size: behind_norm_case(True, 3.0, size=size),
}


def without_bias(case):
    return replace(case, readout=replace(case.readout, bias=None, b_U=None))


def frequency(vocab=50, seed=5):
    f = 3 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return f - f.mean()


def parts_by_engine(case, precision="reference", f=None):
    engine = ablation_engine(
        case.readout, case.W_out, precision=precision, log_frequency=frequency() if f is None else f
    )
    return engine.effects(case.resid, case.shift, case.target, mlp_out=case.mlp_out)


def by_definition(case, f=None):
    f = frequency() if f is None else f
    return oracles.effect_parts(case.readout, case.resid, case.shift, case.target, case.W_out, f, case.mlp_out)


@pytest.mark.parametrize("size", [1e-3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_parts_agree_with_the_definitions(kind, size):
    case = KINDS[kind](size)
    found = exact_parts(
        case.readout, case.resid, case.shift, case.target, case.W_out, frequency(), mlp_out=case.mlp_out
    )
    truth = by_definition(case)
    assert (truth.abs().amax((1, 2)) > size / 20).all(), "the case is too tame to tell right from wrong"
    torch.testing.assert_close(torch.stack(found), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_is_off_by_third_order_only(kind):
    """Ten times the shift, a thousand times the error: nothing of first or second order is wrong or missing."""
    errors = []
    for size in SIZES:
        case = KINDS[kind](size)
        found = torch.stack(parts_by_engine(case).parts)[:3]
        errors.append((found - by_definition(case)[:3]).abs().amax((1, 2)))
    small, middle, large = errors
    # A cap bends the direction taken out, and its neglected second order multiplies it: ten, and a hundred.
    order = 30 if "cap" in kind else 300
    assert (middle > order * small).all(), (small, middle)
    assert (large > order / 3 * middle).all(), (middle, large)
    assert (small < 2e-5 * SIZES[0] * 50).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_is_right_to_first_order(kind):
    errors, sizes = [], []
    for size in SIZES[:2]:
        case = KINDS[kind](size)
        truth = by_definition(case)[3]
        errors.append((parts_by_engine(case).parts.entropy_change - truth).abs().max())
        sizes.append(truth.abs().max())
    assert errors[0] < 0.02 * sizes[0]
    assert errors[1] > 30 * errors[0]


@pytest.mark.parametrize("kind", ["layer", "norm", "norm, cap 3"])
def test_float32_agrees_with_float64(kind):
    case = KINDS[kind](1e-2)
    fast, truth = (torch.stack(parts_by_engine(case, precision).parts).double() for precision in ("fast", "reference"))
    torch.testing.assert_close(fast, truth, rtol=0, atol=1e-5)


def test_with_a_bias_the_normed_residual_alone_gives_another_entropy():
    """Negative control: log p is G only without a bias."""
    case = random_case("layer", 1e-3)
    biased, plain = (parts_by_engine(c).parts.entropy_change for c in (case, without_bias(case)))
    assert (biased - plain).abs().max() > 0.1 * biased.abs().max()


def test_what_moves_along_frequency_alone_has_nothing_left():
    f = frequency()
    case = random_case("rms", 1e-2)
    W_U = torch.cat([f[:, None], case.readout.W_U[:, 1:]], 1)
    W_out = torch.zeros_like(case.W_out)
    W_out[:, 0] = 1.0
    readout = replace(case.readout, W_U=W_U, weight=None, b_U=None)
    case = replace(case, readout=readout, W_out=W_out)
    exact = exact_parts(case.readout, case.resid, case.shift, case.target, case.W_out, f)
    assert exact.words.abs().max() < 1e-12  # the norm frozen, all of δ is along f
    assert exact.beyond_frequency.abs().max() > 1e-3  # the norm's scale moves the other logits
    found = parts_by_engine(case)
    assert found.parts.words.abs().max() < 1e-3 * found.direct_delta_loss.abs().max()


def test_what_moves_across_frequency_keeps_its_effect():
    f = frequency()
    case = random_case("rms", 1e-2)
    readout = replace(case.readout, W_U=case.readout.W_U - torch.outer(f, f @ case.readout.W_U) / (f @ f))
    found = parts_by_engine(replace(case, readout=readout))
    torch.testing.assert_close(found.parts.beyond_frequency, found.delta_loss, rtol=0, atol=1e-12)
    assert (found.parts.beyond_tilt - found.delta_loss).abs().max() > 1e-4  # under p they are not orthogonal


def test_without_a_shift_nothing_changes():
    case = replace(random_case(), shift=torch.zeros(5, 12, dtype=torch.float64))
    assert (torch.stack(parts_by_engine(case, "fast").parts) == 0).all()


def test_effects_are_the_same_bits_whether_or_not_they_are_taken_apart():
    case = random_case(size=0.1)
    plain = ablation_engine(case.readout, case.W_out).effects(case.resid, case.shift, case.target)
    apart = parts_by_engine(case, "fast")
    assert plain.parts is None
    for name in ("delta_loss", "direct_delta_loss", "kl", "loss"):
        assert torch.equal(getattr(plain, name), getattr(apart, name)), name


def test_parts_are_named_in_the_order_of_the_oracle():
    assert EffectParts._fields == ("beyond_frequency", "beyond_tilt", "words", "entropy_change")


def test_a_constant_on_all_logits_moves_along_no_frequency():
    case = random_case(size=0.1)
    lifted = replace(case, readout=replace(case.readout, W_U=case.readout.W_U + 7.0))
    torch.testing.assert_close(
        torch.stack(parts_by_engine(lifted).parts)[:3], torch.stack(parts_by_engine(case).parts)[:3], rtol=0, atol=1e-9
    )


def test_log_frequency_is_centred_over_types_seen():
    p = np.array([0.5, 0.25, 0.25, 0.0])
    seen = np.array([True, True, False, True])
    f = log_frequency(p, seen)
    slow = [np.log(0.5) - np.log(0.5 * 0.25) / 2, np.log(0.25) - np.log(0.5 * 0.25) / 2, 0.0, 0.0]
    np.testing.assert_allclose(f, slow, atol=1e-15)
    with pytest.raises(UnusableCounts, match="equally frequent"):
        log_frequency(np.full(4, 0.25))


def test_the_ratio_of_sums_has_the_error_of_a_jackknife():
    rng = np.random.default_rng(0)
    whole = rng.gamma(2.0, size=(200, 3))
    part = whole * rng.uniform(0.2, 0.6, size=whole.shape) + 0.05
    ratio, error = clustered_ratio(part, whole)
    left_out = np.stack([np.delete(part, c, 0).sum(0) / np.delete(whole, c, 0).sum(0) for c in range(200)])
    jackknife = np.sqrt(199 / 200 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(ratio, part.sum(0) / whole.sum(0))
    np.testing.assert_allclose(error, jackknife, rtol=0.02)
    assert np.isnan(clustered_ratio(part[:1], whole[:1])[1]).all()
    assert np.isnan(clustered_ratio(0 * part, 0 * whole)[0]).all()
