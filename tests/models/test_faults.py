"""Each sentence about numbers that mean nothing, with the input that causes it, and none that another caused."""

import re

import numpy as np
import pytest
import torch

from rareneuron.errors import BrokenCheckpoint, RareNeuronError, UnsupportedModel
from rareneuron.measure.effects import refuse_overflow
from rareneuron.models.adapter import adapt
from rareneuron.models.faults import soft_cap, why_logits_differ
from rareneuron.models.self_unigram import mean_distributions

from .conftest import tiny_model

CAUSES = ("soft-capped", "scaled", "float16", "--dtype float32", "diverged", "damaged", "bfloat16")


def said(error) -> set[str]:
    return {cause for cause in CAUSES if re.search(rf"(?<!\w){cause}", str(error.value))}


def with_large(model, part: str, value: float):
    """The model with one large, finite matrix."""
    with torch.no_grad():
        weight = dict(model.named_parameters())[part]
        weight.div_(weight.abs().max()).mul_(value)
    return model


MLP_OUT = "model.layers.{}.mlp.down_proj.weight"


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("largest", [3e38, 1e25])  # of the second only the squares overflow, and the logits are finite
def test_a_checkpoint_that_diverged(layer, largest):
    model = with_large(tiny_model("llama", dtype=torch.float32), MLP_OUT.format(layer), largest)
    with pytest.raises(
        BrokenCheckpoint, match=rf"infinite, or .* from layer {layer} on.*largest float32 number"
    ) as error:
        adapt(model)
    assert said(error) == {"diverged"}
    assert "--dtype float64" in str(error.value)
    assert "patching" not in str(error.value)


def test_float64_computes_what_float32_cannot():
    adapt(with_large(tiny_model("gpt_neox"), "gpt_neox.layers.1.mlp.dense_4h_to_h.weight", 1e39))


def test_half_precision_that_overflows():
    model = with_large(tiny_model("llama", dtype=torch.float16), MLP_OUT.format(1), 6e4)
    with pytest.raises(BrokenCheckpoint, match=r"infinite, or .* from layer 1 on.*overflow in float16") as error:
        adapt(model)
    assert said(error) == {"float16", "--dtype float32"}


def test_a_damaged_head():
    model = with_large(tiny_model("llama", dtype=torch.float32), "lm_head.weight", 3e38)
    with pytest.raises(
        BrokenCheckpoint, match=r"All layers are finite.*unembedding is damaged.*largest 3\.0e\+38"
    ) as error:
        adapt(model)
    assert said(error) == {"damaged"}


def test_half_precision_hides_whether_the_closed_form_holds():
    adapter = adapt(tiny_model("llama", dtype=torch.bfloat16))
    with pytest.raises(UnsupportedModel, match=r"bfloat16 rounds by 0\.008.*can't be seen.*--dtype float32") as error:
        adapter.readout()
    assert said(error) == {"bfloat16", "--dtype float32"}
    assert "patching" not in str(error.value)
    with pytest.raises(UnsupportedModel, match="--engine patching"):
        adapter.readout(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_that_are_not_finite_say_what_the_precision_allows(dtype):
    with pytest.raises(RareNeuronError, match="not a finite number at 1 analysed tokens") as error:
        refuse_overflow(torch.tensor([1.0, torch.nan], dtype=torch.float64).numpy(), dtype)
    half = dtype in (torch.float16, torch.bfloat16)
    assert ("--dtype float32" in str(error.value)) == half
    assert ("diverged" in str(error.value)) == (not half)
    assert ("--dtype float64" in str(error.value)) == (dtype == torch.float32)


def test_predictions_that_are_not_finite_on_a_text():
    model = with_large(tiny_model("llama", dtype=torch.float32), MLP_OUT.format(1), 3e38)
    with pytest.raises(BrokenCheckpoint, match=r"isn't finite on this text.*diverged"):
        mean_distributions(model, np.array([[3, 4, 5]], np.int32))


# --- logits of another architecture


@pytest.fixture
def read_out():
    return 20 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_scaled_logits(read_out):
    assert why_logits_differ(read_out / 16, read_out) == "the logits are scaled by 0.0625"


@pytest.mark.parametrize("cap", [3.0, 30.0])
def test_soft_capped_logits(read_out, cap):
    capped = cap * torch.tanh(read_out / cap)
    assert why_logits_differ(capped, read_out) == f"the logits are soft-capped at {cap:.3g}"
    assert soft_cap(capped, read_out) == pytest.approx(cap)


def test_logits_of_no_known_shape(read_out):
    other = read_out + 3 * torch.sin(read_out)
    assert "usual cause" in why_logits_differ(other, read_out)
    assert soft_cap(2 * read_out, read_out) is None


def test_a_cap_is_named_in_the_refusal():
    reason = adapt(tiny_model("gemma2", dtype=torch.float32, final_logit_softcapping=4.0)).closed_form.reason
    assert "soft-capped at 4" in reason or "soft-capped" not in reason  # served where the readout knows of caps
