"""The certificate: no pair's KL is farther from the truth than its own bound, whatever the order and the dtype."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rareneuron.maths import ablation
from rareneuron.maths.ablation import FOR_FOURTH, FOR_THIRD, AblationEngine
from rareneuron.maths.expansion import higher_order, second_order
from rareneuron.maths.readout import Readout
from tests.maths.conftest import Case, random_case

DTYPES = [torch.bfloat16, torch.float32]


def expansions(case, dtype):
    """For each kind of change and order: (KL in float64, KL found, its bound) of every pair."""
    engine = AblationEngine(case.readout, case.W_out)
    engine.product_dtype = engine.squares = dtype  # before any table is made
    tables = engine._tables(slice(0, len(case.W_out)))
    clean = engine._clean(case.resid.float(), case.target)
    truth = AblationEngine(case.readout, case.W_out, precision="reference")
    exact_tables = truth._tables(slice(0, len(case.W_out)))
    exact = truth._clean(case.resid.double(), case.target)
    neurons = torch.arange(len(case.W_out))
    for change, kind in zip(
        engine._changes(tables, case.resid.double(), case.shift.double()), ("total", "direct"), strict=True
    ):
        # The change as float32 has it, so that only the expansion is judged.
        a = torch.zeros_like(change.b) if change.a is None else change.a
        x = a.double()[..., None] * exact.G[:, None] + change.b.double()[..., None] * exact_tables.B
        x -= (x * exact.p[:, None]).sum(-1, keepdim=True)
        kl = torch.log1p((exact.p[:, None] * torch.expm1(x)).sum(-1))
        moments = engine._second_moments(clean, tables)
        yield kind, 2, kl, second_order(clean, moments, change)
        for order, wanted in ((3, FOR_THIRD), (4, FOR_FOURTH)):
            moments = moments.joined(engine._moments(clean, tables, moments.reach, neurons, wanted), neurons)
            yield kind, order, kl, higher_order(clean, moments, change, order)


def float32_slack(kl):
    """What no bound speaks of: float32 rounding of sums over the width and of κ themselves."""
    return 1e-12 + 2e-4 * kl


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-4, 1e-2, 0.05, 0.2, 1.0]),
    norm=st.sampled_from(["layer", "rms"]),
    sharpness=st.sampled_from([0.02, 0.3, 1.0, 4.0]),  # from a uniform distribution to one with a certain token
)
@settings(max_examples=8, deadline=None)
def test_no_pair_errs_by_more_than_its_own_bound(dtype, seed, size, norm, sharpness):
    case = random_case(norm, size, seed, vocab=20_000, neurons=6, tokens=4)
    case = replace(case, readout=replace(case.readout, scale=sharpness))
    for kind, order, kl, found in expansions(case, dtype):
        error = (found.kl.double() - kl).abs()
        within = error <= found.bound + float32_slack(kl)
        assert within.all(), (kind, order, error[~within], found.bound[~within], kl[~within])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bounds_are_a_fraction_of_small_effects(dtype):
    """A certificate that flagged everything would pass the test above."""
    case = random_case(size=0.01, vocab=20_000, tokens=4)
    for kind, order, kl, found in expansions(case, dtype):
        assert (found.bound < kl).all(), (kind, order)
        assert (found.bound / kl).median() < 0.15, (kind, order)


def test_each_order_is_closer_than_the_one_before():
    case = random_case(size=0.01, vocab=2_000, tokens=8)
    errors = {}
    for kind, order, kl, found in expansions(case, torch.float32):
        errors[kind, order] = (found.kl.double() - kl).square().mean().sqrt()
    for kind in ("total", "direct"):
        assert errors[kind, 3] < errors[kind, 2] / 3
        assert errors[kind, 4] < errors[kind, 3] / 3


def equal_tokens(n=8_000, vocab=50_000, neurons=64):
    """Thousands of equally likely types: their terms are the same number, and float32 rounds all to the same side."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high):
        return low + (high - low) * torch.rand(neurons, generator=generator)

    W_U, b_U = torch.zeros(vocab, 16), torch.full((vocab,), -30.0)
    W_U[:n, 0], W_U[n:, 0], b_U[:n] = 1, -n / (vocab - n), 0
    W_U[: n // 2, 1], W_U[n // 2 : n, 1] = 1, -1
    W_out, resid = torch.zeros(neurons, 16), torch.zeros(2, 16)
    W_out[:, 0], W_out[:, 1], W_out[:, 2] = uniform(0.3, 5), 10 ** uniform(-3, -0.4), -(10 ** uniform(-0.7, 0.4))
    resid[:, 1], resid[:, 2] = 2, 12**0.5
    readout = Readout(norm="rms", weight=None, bias=None, eps=1e-9, W_U=W_U, b_U=b_U)
    shift, target = torch.full((2, neurons), 0.1), torch.zeros(2, dtype=torch.long)
    return Case(readout=readout, resid=resid, shift=shift, target=target, W_out=W_out)


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_equal_terms_do_not_add_up_to_an_error(dtype, precision, monkeypatch):
    monkeypatch.setattr(ablation, "fast_product_dtype", lambda device: dtype)
    case = equal_tokens()
    found = AblationEngine(case.readout, case.W_out, precision=precision)
    truth = AblationEngine(case.readout, case.W_out, precision="reference")
    found, truth = (e.effects(case.resid, case.shift, case.target) for e in (found, truth))
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        error = (getattr(found, name).double() - getattr(truth, name)).abs()
        assert error.max() < ablation.TOLERANCE, name


def test_without_its_rounding_term_the_bound_would_be_wrong():
    """Negative control: bfloat16 does err by more than the remainder of the series."""
    case = random_case(size=0.05, vocab=20_000, tokens=4)
    case = replace(case, readout=replace(case.readout, scale=0.002))
    (_, _, kl, found), *_ = expansions(case, torch.bfloat16)
    engine = AblationEngine(case.readout, case.W_out)
    engine.product_dtype = engine.squares = torch.bfloat16
    tables = engine._tables(slice(0, len(case.W_out)))
    clean = engine._clean(case.resid.float(), case.target)
    moments = replace(engine._second_moments(clean, tables), rounding={2: 0.0})
    change, _ = engine._changes(tables, case.resid.double(), case.shift.double())
    bare = second_order(clean, moments, change)
    error = (found.kl.double() - kl).abs()
    assert (error > bare.bound + float32_slack(kl)).any()
    assert (error <= found.bound + float32_slack(kl)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_agrees_with_itself_in_either_dtype(dtype, monkeypatch):
    """Machines without fast bfloat16 take float32 products; both must be right."""
    monkeypatch.setattr(ablation, "fast_product_dtype", lambda device: dtype)
    case = random_case(size=0.05, vocab=5_000, tokens=40, neurons=20)
    found = AblationEngine(case.readout, case.W_out).effects(case.resid, case.shift, case.target)
    truth = AblationEngine(case.readout, case.W_out, precision="reference").effects(case.resid, case.shift, case.target)
    assert 0 < found.full_share < 1, "both ways should be taken"
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        # the tolerance, and float32 rounding of effects up to a few nats
        torch.testing.assert_close(getattr(found, name).double(), getattr(truth, name), rtol=1e-5, atol=4e-6)
