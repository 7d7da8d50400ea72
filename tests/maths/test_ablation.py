"""Every precision against the definition, in float64, on cases that can tell right from wrong."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rareneuron.errors import InvalidConfig
from rareneuron.maths.ablation import TOLERANCE, AblationEngine, delta_loss
from rareneuron.maths.table_memory import engine_memory
from tests import oracles
from tests.maths.conftest import random_case

# Rounding of the computation's dtype on losses of up to 80 nats; `fast` adds the certified remainder.
ATOL = {"reference": 1e-12, "exact": 2e-5, "fast": 2e-5 + TOLERANCE}


def effects(case, precision="fast", **options):
    engine = AblationEngine(case.readout, case.W_out, precision=precision, **options)
    return engine.effects(case.resid, case.shift, case.target)


@pytest.mark.parametrize("frozen_norm", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("precision", ["reference", "exact", "fast"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e-2, 0.1, 2.0])
def test_agrees_with_the_definition(precision, norm, frozen_norm, size):
    case = random_case(norm, size)
    truth = oracles.delta_loss(case.readout, case.resid, case.shift, case.target, case.W_out, frozen_norm)
    assert truth.abs().max() > size, "the case is too tame to tell right from wrong"
    found = delta_loss(
        case.readout, case.resid, case.shift, case.target, case.W_out, frozen_norm=frozen_norm, precision=precision
    )
    # Relative to the largest effect: errors scale with it, down to the rounding of float64 losses in the oracle.
    atol = 1e-13 + ATOL[precision] * min(1.0, truth.abs().max().item())
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=atol)


def test_the_two_effects_differ():
    """Negative control: a frozen norm gives other numbers, so the comparison above can fail."""
    case = random_case(size=1.0)
    found = effects(case, "reference")
    assert (found.delta_loss - found.direct_delta_loss).abs().max() > 0.1


@pytest.mark.parametrize("precision", ["reference", "exact", "fast"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_kl_agrees_with_the_definition(precision, norm):
    case = random_case(norm, size=0.2)
    truth = oracles.kl(case.readout, case.resid, case.shift, case.W_out)
    assert truth.max() > 0.1
    torch.testing.assert_close(effects(case, precision).kl.double(), truth, rtol=0, atol=ATOL[precision])


def test_clean_loss():
    case = random_case()
    truth = torch.stack([oracles.loss(case.readout, x, t, x) for x, t in zip(case.resid, case.target, strict=True)])
    torch.testing.assert_close(effects(case, "reference").loss, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["reference", "exact", "fast"])
def test_zero_shift_changes_exactly_nothing(precision):
    case = replace(random_case(), shift=torch.zeros(5, 12, dtype=torch.float64))
    found = effects(case, precision)
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        assert (getattr(found, name) == 0).all(), name


@pytest.mark.parametrize("precision", ["reference", "exact", "fast"])
def test_a_dead_neuron_has_no_effect(precision):
    case = random_case()
    case.W_out[3] = 0
    found = effects(case, precision)
    assert (found.delta_loss[:, 3] == 0).all()
    assert (found.delta_loss[:, 4] != 0).all()


@given(seed=st.integers(0, 2**16), size=st.sampled_from([1e-4, 0.01, 0.3, 3.0]), norm=st.sampled_from(["layer", "rms"]))
@settings(max_examples=25, deadline=None)
def test_permuting_neurons_permutes_effects(seed, size, norm):
    case = random_case(norm, size, seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(case, shift=case.shift[:, order], W_out=case.W_out[order])
    # BLAS may sum a row in another order when its place changes: float64 rounding of effects up to 100 nats.
    torch.testing.assert_close(
        effects(shuffled, "reference").delta_loss, effects(case, "reference").delta_loss[:, order], rtol=0, atol=1e-11
    )


@given(seed=st.integers(0, 2**16), constant=st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_a_constant_on_all_logits_changes_nothing(seed, constant):
    case = random_case(size=0.5, seed=seed)
    lifted = replace(case, readout=replace(case.readout, b_U=case.readout.b_U + constant))
    # softmax of logits near 50 rounds to 1e-14 relative; effects reach tens of nats.
    torch.testing.assert_close(
        effects(lifted, "reference").delta_loss, effects(case, "reference").delta_loss, rtol=0, atol=1e-11
    )


@pytest.mark.slow
@example(seed=110, size=3.0, norm="rms", sharpness=1.0)  # κ₁ and KL are both large, and Δ is their sum
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-5, 1e-3, 0.02, 0.3, 3.0]),
    norm=st.sampled_from(["layer", "rms"]),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_fast_never_errs_by_more_than_its_certificate(seed, size, norm, sharpness):
    case = random_case(norm, size, seed, vocab=80)
    case = replace(case, readout=replace(case.readout, scale=sharpness))
    truth, found = effects(case, "reference"), effects(case)
    # What float32 does to the plain definition, whose logits and changes are as large: its worst pair, times 4.
    for statistic, frozen_norm in (("delta_loss", False), ("direct_delta_loss", True)):
        right = getattr(truth, statistic)
        rounding = (recomputed_in_float32(case, frozen_norm).double() - right).abs().max()
        assert (getattr(found, statistic) - right).abs().max() <= TOLERANCE + 4 * rounding


def recomputed_in_float32(case, frozen_norm=False):
    """What everyone else does: subtract two float32 losses."""
    single = case.readout.to(torch.float32)
    return oracles.delta_loss(
        single, case.resid.float(), case.shift.float(), case.target, case.W_out.float(), frozen_norm
    )


def test_second_order_alone_would_be_wrong_here():
    """Negative control: with the certificate switched off, the same pairs are off by far more than the tolerance."""
    case = random_case(size=0.5)
    truth = effects(case, "reference").delta_loss
    unchecked = effects(case, tolerance=float("inf"))
    assert unchecked.full_share == 0
    assert (unchecked.delta_loss - truth).abs().max() > 1000 * TOLERANCE
    assert (effects(case).delta_loss - truth).abs().max() < 10 * TOLERANCE


def adversarial():
    """Cases in which one approximation or another breaks down."""
    certain = random_case(size=0.1)
    bias = torch.zeros(50, dtype=torch.float64)
    bias[int(certain.target[0])] = 40.0
    yield "one token with probability 1 - 1e-9", replace(certain, readout=replace(certain.readout, b_U=bias))
    hidden = random_case(size=0.02)
    W_U = hidden.readout.W_U.clone()
    W_U[7] *= 60
    b_U = hidden.readout.b_U.clone()
    b_U[7] -= 300
    yield (
        "a token of tiny probability and huge change",
        replace(hidden, readout=replace(hidden.readout, W_U=W_U, b_U=b_U)),
    )
    doubled = random_case(size=1.0)
    yield (
        "a shift that doubles the norm's scale",
        replace(doubled, W_out=3 * doubled.W_out, shift=doubled.shift.abs() + 1),
    )
    aligned = random_case(size=0.1)
    aligned.W_out[0] = aligned.resid[0]
    aligned.shift[0, 0] = -0.999
    yield "a neuron aligned with the residual that all but cancels it", aligned
    twins = random_case(size=0.3)
    W_U = twins.readout.W_U.clone()
    W_U[10:40] = W_U[10]
    yield "duplicated vocabulary rows", replace(twins, readout=replace(twins.readout, W_U=W_U))
    loud = random_case(size=0.3)
    yield "logits of ±100", replace(loud, readout=replace(loud.readout, scale=20.0))
    silent = random_case(size=0.3)
    silent.W_out[::2] = 0
    yield "rows of W_out that are all zero", silent
    yield "an overflow of exp in float32", replace(random_case(size=20.0), readout=replace(loud.readout, scale=30.0))


@pytest.mark.parametrize(("name", "case"), list(adversarial()), ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_adversarial_cases_take_the_exact_path_or_are_right(name, case, precision):
    truth, found = effects(case, "reference"), effects(case, precision)
    for statistic in ("delta_loss", "direct_delta_loss", "kl"):
        right, got = getattr(truth, statistic), getattr(found, statistic).double()
        assert torch.isfinite(got).all(), (name, statistic)
        # float32 rounds logits of up to several hundred at 3e-5, and large effects in proportion.
        atol = TOLERANCE + 6e-5 * min(1.0, right.abs().max().item())
        torch.testing.assert_close(got, right, rtol=5e-5, atol=atol)


def test_small_effects_keep_their_relative_accuracy():
    """Down to 1e-8 nats, where subtracting float32 losses leaves nothing (and does so here: negative control)."""
    case = random_case(size=1e-8, tokens=40)
    truth = effects(case, "reference").delta_loss.abs().mean(0)
    assert 1e-9 < truth.median() < 1e-7
    found = effects(case).delta_loss.double().abs().mean(0)
    assert ((found - truth).abs() / truth).max() < 1e-3
    subtracted = recomputed_in_float32(case).double().abs().mean(0)
    assert ((subtracted - truth).abs() / truth).max() > 1


def test_blocks_of_tokens_do_not_matter(monkeypatch):
    case = random_case(size=0.3, tokens=9)
    whole = effects(case, "reference").delta_loss
    monkeypatch.setattr("rareneuron.maths.table_memory.TOKENS_PER_BLOCK", 2)
    # one block's matrix product may sum in another order than the whole's
    torch.testing.assert_close(effects(case, "reference").delta_loss, whole, rtol=0, atol=1e-12)


def test_blocks_of_neurons_do_not_matter(monkeypatch):
    case = random_case(size=0.3, tokens=9)
    whole = effects(case)
    monkeypatch.setattr("rareneuron.maths.table_memory.FEWEST_NEURONS", 2)
    fixed, per_neuron = engine_memory(50, 16)
    engine = AblationEngine(case.readout, case.W_out, memory=fixed + 5 * per_neuron)
    assert engine.neurons_at_once in range(5, 9), "12 neurons should take several blocks"
    found = engine.effects(case.resid, case.shift, case.target)
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        # float32 products of other shapes may sum in another order
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-6)


def test_too_little_memory_is_refused_with_what_is_needed():
    case = random_case(neurons=40)
    with pytest.raises(InvalidConfig, match=r"9.54e-07 GiB do not hold .* of 50 .*at least 0\.003 GiB") as refused:
        AblationEngine(case.readout, case.W_out, memory=1024)
    assert refused.value.argument == "memory"


def test_the_total_effect_alone_is_the_same():
    case = random_case(size=0.1)
    engine = AblationEngine(case.readout, case.W_out)
    alone = engine.effects(case.resid, case.shift, case.target, direct=False)
    assert alone.direct_delta_loss is None
    torch.testing.assert_close(alone.delta_loss, effects(case).delta_loss, rtol=0, atol=TOLERANCE)
