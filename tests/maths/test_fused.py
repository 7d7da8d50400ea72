"""The compiled sum against float64, and an engine with it against one without."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rareneuron.errors import InvalidConfig
from rareneuron.maths import ablation, fused
from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.fused import (
    AT_ONCE,
    C1,
    C2,
    C3,
    C4,
    C5,
    SMALLEST_VOCAB,
    compiling_pays,
    fused_sums,
    power_less_one,
    takes_compiled_sums,
)
from rareneuron.maths.pair_effects import TOLERANCE
from tests.maths.conftest import random_case

CPU = torch.device("cpu")
SAME = 1e-6  # of the largest change: what both ways may differ by


def sums_of(size, vocab, n_directions=1, kinds=2, a=0.01):
    """The sums of three tokens and five neurons by the loop, and in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    p, B, X = (3 * normal(3, vocab)).softmax(-1), normal(5, vocab), normal(n_directions, 3, vocab)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(5))
    t, neuron = pairs.T
    # As behind a norm: the direct effect has no G, and the total one is it, stretched by 1 + a, and a G.
    direct, of_G, origin = size * normal(n_directions, 15), a * normal(15), size * normal(2, 15)
    direct = torch.cat([direct[:1], torch.zeros(1, 15), direct[1:]])
    total = direct * (1 + of_G)
    total[1] = of_G
    factors = torch.stack([total, direct])[:kinds]
    target = torch.tensor([0, vocab // 2, vocab - 1])
    delta = factors[:, 0, :, None].double() * B[neuron].double()
    delta += torch.einsum("kdp,dpv->kpv", factors[:, 1:].double(), X[:, t].double())
    point = delta[:, torch.arange(15), target[t], None] + origin[:kinds, :, None].double()
    truth = (p[t].double() * (delta - point).expm1()).sum(-1).log1p()
    # Outside, the caller takes the log-sum-exp: the loop's total is a small rest of 1, or e^x is huge.
    serves = (truth > -0.5) & ((delta - point).amax(-1) < 50)
    farthest = (direct[0].abs() * B.abs().amax(1)[neuron] + (direct[1:].abs() * X.abs().amax(2)[:, t]).sum(0)) * 2
    reach = farthest + X[0].abs().amax(1)[t] + origin[1].abs()
    found = fused_sums(p, X, B, target, pairs, factors[:, 1:], factors[:, 0], origin[:kinds], reach)
    return found[serves], truth[serves]


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("n_directions", [1, 2])
@pytest.mark.parametrize("vocab", [3, AT_ONCE, 2 * AT_ONCE + 17])
@pytest.mark.parametrize("size", [1e-5, 0.01, 1.0, 4.0])
def test_agrees_with_float64(size, vocab, n_directions, kinds):
    found, truth = sums_of(size, vocab, n_directions, kinds)
    assert len(truth) >= 5
    assert truth.abs().max() > size / 100
    # Float32 rounds each change, of up to 40 · size and 0.1, and each probability; a following sum may leave some out.
    atol = 1e-7 + 2e-6 * size + (fused.FOLLOWING if kinds == 2 else 0)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("a", [1e-4, 0.01, 0.1, 1.0])
def test_the_total_effect_follows_from_the_direct_one_or_is_summed_itself(a, monkeypatch):
    found, truth = sums_of(0.1, 3_000, a=a)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=fused.FOLLOWING)
    monkeypatch.setattr(fused, "FOLLOWING", float("inf"))
    unchecked, _ = sums_of(0.1, 3_000, a=a)
    if a == 1.0:
        assert (unchecked - truth).abs().max() > 1e-4, "negative control: what is left out matters"
    if a == 1e-4:
        assert torch.equal(unchecked, found), "no pair should need a sum of its own"


def test_the_power_of_two_keeps_what_it_promises():
    y = np.linspace(-100, 60, 200_001).astype(np.float32)
    with np.errstate(over="ignore"):
        found = np.array([power_less_one(x) for x in y[::100]])
    exact = np.exp2(y[::100].astype(float)) - 1
    assert (np.abs(found - exact) <= 2e-7 * np.maximum(exact + 1, 1)).all()
    f = np.linspace(-0.5, 0.5, 10_001)
    polynomial = 1 + sum(float(c) * f ** (n + 1) for n, c in enumerate((C1, C2, C3, C4, C5)))
    off = np.abs(polynomial / np.exp2(f) - 1)
    assert 5e-8 < off.max() < 1e-7
    # Negative control: one power fewer is not enough.
    assert np.abs((polynomial - float(C5) * f**5) / np.exp2(f) - 1).max() > 1e-5


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, _ = sums_of(1.0, 1_000)
        torch.set_num_threads(2)
        together, _ = sums_of(1.0, 1_000)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_an_engine_finds_the_same_with_and_without(norm, size, monkeypatch):
    for name in ("FOR_THIRD", "FOR_FOURTH"):  # so that both sum the same pairs
        monkeypatch.setattr(ablation, name, replace(getattr(ablation, name), worth=(0.05, 0.05)))
    case = random_case(norm, size, vocab=300)
    truth = AblationEngine(case.readout, case.W_out, precision="reference").effects(case.resid, case.shift, case.target)
    found = [
        AblationEngine(case.readout, case.W_out, compiled=compiled).effects(case.resid, case.shift, case.target)
        for compiled in (True, False)
    ]
    assert found[0].full_share > 0
    assert found[0].full_share == found[1].full_share
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        right = getattr(truth, name)
        largest = max(1.0, right.abs().max().item())
        ours, theirs = (getattr(f, name).double() for f in found)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SAME * largest)
        # Expanded pairs may err by the tolerance, in both alike.
        torch.testing.assert_close(ours, right, rtol=0, atol=5e-6 + 20 * SAME * largest)


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_left_to_themselves_both_differ_by_no_more_than_they_promise(size):
    """Compiled sums are cheap, so that engine takes fewer products and more sums."""
    case = random_case("rms", size, vocab=300, tokens=20)
    loop, plain = (
        AblationEngine(case.readout, case.W_out, compiled=compiled).effects(case.resid, case.shift, case.target)
        for compiled in (True, False)
    )
    assert loop.full_share > plain.full_share
    for name in ("delta_loss", "direct_delta_loss", "kl"):
        torch.testing.assert_close(getattr(loop, name), getattr(plain, name), rtol=SAME, atol=2 * TOLERANCE)


def test_the_engine_chooses_by_the_vocabulary():
    assert takes_compiled_sums(SMALLEST_VOCAB, CPU)
    assert not takes_compiled_sums(SMALLEST_VOCAB - 1, CPU)
    assert not takes_compiled_sums(SMALLEST_VOCAB, torch.device("cuda"))
    assert not takes_compiled_sums(SMALLEST_VOCAB, CPU, wish=False)


def test_a_small_study_of_the_embedded_series_compiles_nothing_and_one_of_a_real_model_does():
    assert not compiling_pays(n_tokens=600, n_neurons=512, vocab=10_000)
    assert compiling_pays(n_tokens=600, n_neurons=1_536, vocab=49_152)


def test_without_numba_the_engine_takes_torch_and_a_wish_is_refused(monkeypatch):
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    assert not takes_compiled_sums(SMALLEST_VOCAB, CPU)
    with pytest.raises(InvalidConfig, match="numba"):
        takes_compiled_sums(SMALLEST_VOCAB, CPU, wish=True)
