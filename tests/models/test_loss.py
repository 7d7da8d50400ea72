"""The mean loss of a model against a loop over its logits, and that the model is left as it was."""

import numpy as np
import pytest
import torch

from rareneuron.models.loss import mean_loss

from .conftest import tiny_model

WINDOWS = np.random.default_rng(0).integers(3, 23, (5, 7))


def test_the_loss_is_that_of_the_next_token():
    model = tiny_model("gpt_neox", dtype=torch.float32)
    logp = model(torch.from_numpy(WINDOWS)).logits.double().log_softmax(-1).detach()
    slow = [-float(logp[c, t, WINDOWS[c, t + 1]]) for c in range(5) for t in range(6)]
    for size in (1, 4, 8):
        assert mean_loss(model, WINDOWS, size) == pytest.approx(np.mean(slow), rel=1e-6)  # float32 logits
    assert mean_loss(model, torch.from_numpy(WINDOWS)) == mean_loss(model, WINDOWS)
    other = tiny_model("gpt_neox", seed=1, dtype=torch.float32)
    assert mean_loss(other, WINDOWS) != pytest.approx(np.mean(slow), rel=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_kept(training):
    model = tiny_model("gpt_neox", dtype=torch.float32, hidden_dropout=0.5, attention_dropout=0.5).train(training)
    assert mean_loss(model, WINDOWS) == mean_loss(model, WINDOWS)
    assert model.training == training
