"""What an architecture leaves open about its neurons, at the models themselves: what may change, and what may not."""

import pytest
import torch

from rareneuron.maths.gauge import Gauge
from rareneuron.models.adapter import adapt
from rareneuron.models.families import FAMILIES
from tests.gauge import rescale
from tests.models.conftest import D_MLP, VOCAB, tiny_model

GATED, RELU, NONE = Gauge(sign=True, scale=True), Gauge(scale=True), Gauge()
IDS = torch.arange(3, 13)[None] % VOCAB
SIGNS = torch.where(torch.arange(D_MLP) % 3 == 0, -1.0, 1.0)
SCALES = torch.logspace(-1, 1, D_MLP, base=2.0)
OTHERS = {  # nonlinearities that an architecture may be configured with
    ("gpt_neox", "relu"): RELU,
    ("gpt_neox", "relu2"): RELU,
    ("gpt_neox", "tanh"): Gauge(sign=True),
    ("gpt_neox", "gelu_fast"): NONE,
    ("llama", "relu"): Gauge(sign=True, scale=True, gate_scale=True),
    ("llama", "gelu"): GATED,
}


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def gap(model, change):
    """How far a change of the last layer moves logits, in units of the largest."""
    before = logits(model)
    change(model, len(adapt(model).anatomy.blocks) - 1)
    return float((logits(model) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_leaves_open_what_its_record_says(family):
    gauge = adapt(tiny_model(family)).gauge()
    expected = GATED if FAMILIES[family].mlp_gate else RELU if family == "opt" else NONE
    assert gauge == expected
    assert (gap(tiny_model(family), lambda model, layer: rescale(model, layer, SIGNS)) < 1e-6) == gauge.sign
    assert (gap(tiny_model(family), lambda model, layer: rescale(model, layer, SCALES)) < 1e-6) == gauge.scale


@pytest.mark.parametrize(("family", "activation"), OTHERS)
def test_the_nonlinearity_decides_whatever_its_name(family, activation):
    def model():
        return tiny_model(family, hidden_act=activation)

    def change(factor, **how):
        return gap(model(), lambda model, layer: rescale(model, layer, factor, **how))

    gauge, degree = adapt(model()).gauge(), 2 if activation == "relu2" else 1
    assert gauge == OTHERS[family, activation]
    assert (change(SIGNS) < 1e-6) == gauge.sign
    assert (change(SCALES, degree=degree) < 1e-6) == gauge.scale
    if family == "llama":
        assert (change(SCALES, by_gate=True) < 1e-6) == gauge.gate_scale


def test_names_of_matrices_whose_rows_have_no_length():
    assert NONE.open_lengths == ()
    assert RELU.open_lengths == ("W_in", "W_out")
    assert Gauge(sign=True, scale=True, gate_scale=True).open_lengths == ("W_in", "W_out", "W_gate")
