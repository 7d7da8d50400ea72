"""The compiled sum against float64, and an engine with it against one without."""

import pytest
import torch

from rareneuron.errors import InvalidConfig
from rareneuron.maths import fused
from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.fused import LANES, SMALLEST_VOCAB, compiling_pays, fused_sums, takes_compiled_sums
from tests.maths.conftest import random_case

CPU = torch.device("cpu")
SAME = 1e-6  # of the largest change: what both ways may differ by


def sums_of(size, vocab, n_directions=1):
    """The sums of three tokens and five neurons by the loop, and in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    p, B, D = (3 * normal(3, vocab)).softmax(-1), normal(5, vocab), normal(n_directions, 3, vocab)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(5))
    factors, origin = size * normal(2, 15, 1 + n_directions), size * normal(2, 15)
    factors[1, :, 1:] = 0  # as with a frozen norm
    target = torch.tensor([0, vocab // 2, vocab - 1])
    t, neuron = pairs.T
    delta = factors[..., :1].double() * B[neuron].double()
    for k in range(n_directions):
        delta += factors[..., 1 + k, None].double() * D[k, t].double()
    point = delta[:, torch.arange(15), target[t], None] + origin[..., None].double()
    truth = (p[t].double() * (delta - point).expm1()).sum(-1).log1p()
    # Outside, the caller takes the log-sum-exp: the loop's total is a small rest of 1, or e^x is huge.
    serves = (truth > -0.5) & ((delta - point).amax(-1) < 50)
    return fused_sums(p, B, D, pairs, factors, target, origin)[serves], truth[serves]


@pytest.mark.parametrize("n_directions", [0, 1, 2])
@pytest.mark.parametrize("vocab", [3, LANES, 5 * LANES + 17])
@pytest.mark.parametrize("size", [1e-5, 0.01, 1.0, 4.0])
def test_agrees_with_float64(size, vocab, n_directions):
    found, truth = sums_of(size, vocab, n_directions)
    assert len(truth) >= 5
    assert truth.abs().max() > size / 100
    # Float32 rounds each change, of up to 40 · size, and each probability.
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=2e-6 * size)


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
def test_an_engine_finds_the_same_with_and_without(norm, size):
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
