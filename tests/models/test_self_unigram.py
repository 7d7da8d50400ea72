import numpy as np
import pytest
import torch

from rareneuron.errors import BrokenCheckpoint
from rareneuron.models import self_unigram as module
from rareneuron.models.self_unigram import self_unigram
from tests.models.conftest import tiny_model

VOCAB = 60


@pytest.fixture(scope="module")
def model():
    return tiny_model("gpt_neox", seed=1, vocab_size=VOCAB).eval()


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, VOCAB, (40, 12)).astype(np.int32)


def by_positions(model, windows):
    """The mean over contexts of the mean over positions, and its standard error, one position at a time."""
    means = []
    for window in windows:
        p = torch.zeros(VOCAB, dtype=torch.float64)
        for t in range(len(window) - 1):
            with torch.inference_mode():
                logits = model(torch.tensor(window[: t + 1])[None].long()).logits[0, -1]
            p += logits.double().softmax(-1) / (len(window) - 1)
        means.append(p.numpy())
    return np.mean(means, 0), np.std(means, 0, ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_it_is_the_mean_over_positions(model, windows, monkeypatch, at_once):
    monkeypatch.setattr(module, "LOGIT_BYTES", at_once * 4 * VOCAB * windows.shape[1])
    found = self_unigram(model, lambda i: windows[i], np.arange(40), precision=0.0, most_positions=10**6)
    p, se = by_positions(model, windows)
    assert (se / p).max() > 0.02, "the case is too tame to tell right from wrong"
    np.testing.assert_allclose(found.p, p, rtol=1e-5)  # logits go through float32
    np.testing.assert_allclose(found.se, se, rtol=1e-3)  # a difference of such numbers
    assert (found.n_contexts, found.n_positions) == (40, 440)


def test_it_takes_no_more_text_than_it_may_and_than_it_needs(model, windows, monkeypatch):
    monkeypatch.setattr(module, "LOGIT_BYTES", 1)

    def taken(**limits):
        order = np.random.default_rng(0).permutation(40)
        return self_unigram(model, lambda i: windows[i], order, **limits)

    assert taken(precision=0.0, most_positions=110).n_contexts == 10
    assert taken(precision=0.0, most_positions=1).n_contexts == 1
    assert np.isinf(taken(precision=0.0, most_positions=1).se).all()
    monkeypatch.setattr(module, "FEWEST_CONTEXTS", 5)
    asked = taken(precision=0.0, most_positions=220).precision
    enough = taken(precision=asked, most_positions=10**6)
    assert enough.precision <= asked
    assert 5 <= enough.n_contexts < 40


def test_a_model_that_predicts_nothing_finite_is_refused(windows):
    broken = tiny_model("gpt_neox", seed=1, vocab_size=VOCAB).eval()
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(BrokenCheckpoint, match="isn't finite"):
        self_unigram(broken, lambda i: windows[i], np.arange(3), precision=0.1, most_positions=100)
