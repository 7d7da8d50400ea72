"""Every architecture, by one test: the closed form, the adapter and the model itself agree, or it is refused.

The oracle is `patching`, one forward pass of the whole model per neuron.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from rareneuron.errors import BrokenCheckpoint, OutOfRange, Unavailable, UnfitTokenizer, UnsupportedModel
from rareneuron.maths.ablation import delta_loss
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.readout import Readout
from rareneuron.models import families
from rareneuron.models.adapter import adapt
from rareneuron.models.anatomy import Anatomy, anatomy
from rareneuron.models.families import FAMILIES
from rareneuron.models.patching import patched_loss_changes
from rareneuron.models.probes import ABLATION_TOLERANCE, READOUT_TOLERANCE, ablation_gap, closed_form, readout_gap

from .conftest import D_MLP, D_MODEL, POSITIONS, VOCAB, tiny_model, tiny_tokenizer

POST_NORM = [name for name, family in FAMILIES.items() if family.mlp_norm is not None]

# float64 throughout: rounding of losses near 3 nats, measured at 3e-15.
ATOL_LAYER_NORM = 1e-11
# transformers computes RMSNorm, and OLMo's LayerNorm, in float32 whatever the dtype; version 4 casts GPT-J's logits
# to it. Measured at 1.4e-6.
ATOL_FLOAT32 = 5e-6
FLOAT32 = {name for name, family in FAMILIES.items() if family.norm == "rms"} | {"olmo"}
if transformers.__version__.startswith("4."):
    FLOAT32 |= {"gptj"}


def tolerance(name):
    return ATOL_FLOAT32 if name in FLOAT32 else ATOL_LAYER_NORM


def patched(case, mean_act, layer=-1):
    effects = patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, layer)
    return torch.stack([effect.delta_loss for effect in effects], dim=1)


def at_tokens(case):
    capture = case.adapter.capture(case.windows)
    return capture.resid[case.tokens], capture.act[case.tokens]


def closed(case, mean_act, readout=None, precision="reference"):
    resid, act = at_tokens(case)
    readout = case.adapter.readout() if readout is None else readout
    shift, W_out = mean_shift(act, mean_act), case.adapter.W_out
    mlp_out = readout.mlp_output(act, W_out)
    return delta_loss(readout, resid, shift, case.target, W_out, precision=precision, mlp_out=mlp_out)


def with_double_norms(case):
    """Let the model compute its RMSNorms in its own dtype, float64, as transformers doesn't."""
    offset = case.adapter.family.gain_offset

    def forward(norm, x):
        eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        return (offset + norm.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    norms = [m for m in case.adapter.model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(norms) >= 9, "four norms a block and the last one, whatever attention adds"
    for norm in norms:
        norm.forward = partial(forward, norm)
    return case


POST_NORM_CASES = [
    ("gemma2", {"final_logit_softcapping": 30.0}),
    ("gemma2", {"final_logit_softcapping": 3.0}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma3_text", {}),
    ("gemma3_text", {"final_logit_softcapping": 5.0}),
    ("olmo2", {}),
]


@pytest.mark.parametrize(("name", "overrides"), POST_NORM_CASES)
def test_behind_output_norms_and_soft_caps_the_closed_form_agrees_to_the_last_digits(name, overrides, tiny):
    case = with_double_norms(tiny(name, **overrides))
    readout = case.adapter.readout()
    assert readout.output_norm is not None
    assert readout.softcap == overrides.get("final_logit_softcapping")
    mean_act = at_tokens(case)[1].mean(0)
    slow = patched(case, mean_act)
    assert slow.abs().max() > 1e-2, "the case is too tame to tell right from wrong"
    assert_close(closed(case, mean_act), slow, rtol=0, atol=ATOL_LAYER_NORM)
    assert_close(closed(case, mean_act, precision="fast").double(), slow, rtol=0, atol=1e-5)
    # Negative controls: without the norm, or the cap, effects are wrong by more than any that one wants to see.
    assert (closed(case, mean_act, replace(readout, output_norm=None)) - slow).abs().max() > 0.1
    if readout.softcap is not None:
        assert (closed(case, mean_act, replace(readout, softcap=None)) - slow).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_closed_form_agrees_with_the_model(name, tiny):
    case = tiny(name)
    mean_act = at_tokens(case)[1].mean(0)
    slow = patched(case, mean_act)
    assert slow.shape == (15, D_MLP)
    assert slow.abs().max() > 1e-2, "the case is too tame to tell right from wrong"
    assert_close(closed(case, mean_act), slow, rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_probes_pass_and_the_readout_gives_the_models_logits(name, tiny):
    case = tiny(name)
    proof = case.adapter.closed_form
    assert proof.ok
    assert proof.reason == ""
    assert proof.readout_gap < READOUT_TOLERANCE / 100  # the tolerance is no tight fit for a right model
    # transformers rounds an output norm in float32, of which the smallest moves leave 4.5e-5.
    assert proof.ablation_gap < ABLATION_TOLERANCE / (10 if name in POST_NORM else 100)
    with torch.inference_mode():
        logits = case.adapter.model(torch.from_numpy(case.windows)).logits.double()
    resid = case.adapter.capture(case.windows).resid
    assert_close(case.adapter.readout()(resid.flatten(0, 1)), logits.flatten(0, 1), rtol=0, atol=tolerance(name))


def pretend(monkeypatch, name, **changes):
    """Describe an architecture wrongly."""
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], **changes))


@pytest.mark.parametrize("name", POST_NORM)
def test_a_record_without_the_output_norm_is_refused_and_patching_serves(name, tiny, monkeypatch):
    pretend(monkeypatch, name, mlp_norm=None)
    case = tiny(name)
    with pytest.raises(UnsupportedModel, match=r"W_out.*normalised before it is added.*--engine patching"):
        case.adapter.readout()
    act = at_tokens(case)[1]
    slow = patched(case, act.mean(0))
    assert slow.abs().max() > 1e-2
    # The refusal matters: the closed form would be off by more than any effect that one wants to see.
    assert (closed(case, act.mean(0), case.adapter.anatomy.readout()) - slow).abs().max() > 0.1


@pytest.mark.parametrize("name", POST_NORM)
def test_a_record_with_the_wrong_output_norm_is_refused(name, tiny, monkeypatch):
    pretend(monkeypatch, name, mlp_norm="post_attention_layernorm")
    proof = tiny(name).adapter.closed_form
    assert proof.readout_gap < READOUT_TOLERANCE
    assert proof.ablation_gap > ABLATION_TOLERANCE


def test_a_soft_cap_that_nobody_knows_of_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(Anatomy, "softcap", None)
    case = tiny("gemma2", final_logit_softcapping=3.0)
    with pytest.raises(UnsupportedModel, match=r"final norm and unembedding.*soft-capped.*--engine patching"):
        case.adapter.readout()
    assert case.adapter.closed_form.ablation_gap < ABLATION_TOLERANCE


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "gptj", "llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_unembeddings(name, tied, tiny):
    case = tiny(name, tie_word_embeddings=tied)
    assert case.adapter.provenance["tied"] == tied
    mean_act = at_tokens(case)[1].mean(0)
    assert_close(closed(case, mean_act), patched(case, mean_act), rtol=0, atol=tolerance(name))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("opt", {"enable_bias": False}),
        ("gpt2", {"activation_function": "relu"}),
        ("gemma", {"num_key_value_heads": 2}),
    ],
)
def test_variants_of_an_architecture(name, overrides, tiny):
    case = tiny(name, **overrides)
    mean_act = at_tokens(case)[1].mean(0)
    assert_close(closed(case, mean_act), patched(case, mean_act), rtol=0, atol=tolerance(name))


def test_opt_without_final_norm_is_refused(tiny):
    case = tiny("opt", do_layer_norm_before=False)
    with pytest.raises(UnsupportedModel, match=r"no final norm.*--engine patching"):
        case.adapter.readout()
    assert patched(case, at_tokens(case)[1].mean(0)).abs().max() > 1e-2


def test_opt_with_a_projection_before_the_unembedding_is_refused(tiny):
    case = tiny("opt", word_embed_proj_dim=8)
    with pytest.raises(UnsupportedModel, match=r"from 16 to 8 dimensions.*--engine patching"):
        case.adapter.readout()
    assert patched(case, at_tokens(case)[1].mean(0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_have_the_neuron_axis_first(name, tiny):
    """Recomputes a neuron's activation and output from its rows alone."""
    adapter = tiny(name).adapter
    block = adapter.anatomy.blocks[1]
    x = torch.randn(5, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for path, rows in (
        (adapter.family.mlp_in, adapter.W_in),
        (adapter.family.mlp_gate, adapter.W_gate),
    ):
        if path is None:
            assert rows is None
            continue
        module = block.get_submodule(path)
        bias = 0 if getattr(module, "bias", None) is None else module.bias
        assert_close(x @ rows.T + bias, module(x))
    act = torch.randn(5, D_MLP, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    module = block.get_submodule(adapter.family.mlp_out)
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    assert_close(act @ adapter.W_out + bias, module(act))
    assert isinstance(module, Conv1D) == (name == "gpt2")
    assert (adapter.n_layers, adapter.d_model, adapter.d_mlp, adapter.vocab) == (2, D_MODEL, D_MLP, VOCAB)
    assert not torch.equal(adapter.weights(0).W_out, adapter.weights(1).W_out)
    assert torch.equal(adapter.weights(-2).W_in, adapter.weights(0).W_in)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer", [0, -1])
def test_capture_reads_what_flows_through_a_layer(name, layer, tiny):
    """The residual is that of `output_hidden_states`; act times W_out is what the projection puts out."""
    case = tiny(name)
    adapter = case.adapter
    put_out = []
    handle = adapter.anatomy.mlp_out(layer).register_forward_hook(lambda m, a, out: put_out.append(out))
    capture = adapter.capture(case.windows, layer, contexts_per_batch=2)
    handle.remove()
    bias = getattr(adapter.anatomy.mlp_out(layer), "bias", None)
    expected = torch.cat([out.reshape(-1, D_MODEL) for out in put_out])
    found = capture.act.flatten(0, 1) @ adapter.weights(layer).W_out + (0 if bias is None else bias)
    assert_close(found, expected)
    if layer == 0:
        with torch.inference_mode():
            states = adapter.model(torch.from_numpy(case.windows), output_hidden_states=True).hidden_states
        assert_close(capture.resid, states[1])
    assert not capture.act.is_inference()


def test_capture_runs_no_unembedding(tiny):
    case = tiny("gpt_neox")

    def forbid(module, args):
        raise AssertionError("logits were computed")

    case.adapter.anatomy.unembedding.register_forward_pre_hook(forbid)
    case.adapter.capture(case.windows)
    with pytest.raises(AssertionError, match="logits were computed"):
        case.adapter.model(torch.from_numpy(case.windows))


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "llama"])
def test_the_ablation_probe_sees_wrong_rows(name, tiny):
    parts = tiny(name).adapter.anatomy
    W_out = parts.weights(-1).W_out
    assert ablation_gap(parts, W_out) < ABLATION_TOLERANCE
    for wrong in (W_out.flip(0), W_out.flip(1), 1.01 * W_out, W_out.T, W_out.T.reshape(W_out.shape)):
        assert ablation_gap(parts, wrong.contiguous()) > ABLATION_TOLERANCE


@pytest.mark.parametrize("name", ["gpt_neox", "gemma", "olmo", "phi"])
def test_the_readout_probe_sees_a_wrong_readout(name, tiny):
    parts = tiny(name).adapter.anatomy
    right = parts.readout()
    assert readout_gap(parts, right) < READOUT_TOLERANCE
    wrong = [
        replace(right, scale=1.001),
        replace(right, W_U=right.W_U.flip(0)),
        replace(right, norm="rms" if right.norm == "layer" else "layer"),
        replace(right, eps=right.eps + 0.01),
    ]
    if right.weight is not None:
        wrong.append(replace(right, weight=right.weight - 1))
    if right.b_U is not None:
        wrong.append(replace(right, b_U=None))
    for readout in wrong:
        assert readout_gap(parts, readout) > READOUT_TOLERANCE


def test_a_record_that_points_at_the_wrong_projection_is_caught():
    """Attention's output projection also writes to the residual stream, but the MLP answers to what it writes."""
    parts = anatomy(tiny_model("llama"))
    attention = replace(parts.family, mlp_out="self_attn.o_proj", mlp_in="self_attn.q_proj", mlp_gate=None)
    proof = closed_form(replace(parts, family=attention))
    assert not proof.ok
    assert "W_out" in proof.reason


def test_probes_hold_in_float32_and_in_half_precision(tiny):
    for dtype in (torch.float32, torch.bfloat16):
        adapter = tiny("gpt_neox", dtype=dtype).adapter
        # bfloat16 resolves 4e-3, so its readout can't come near the logits, and the probe must say so.
        assert adapter.closed_form.ok == (dtype == torch.float32)


def test_float32_probes_survive_a_residual_that_dwarfs_the_move():
    """Trained models write components of hundreds at the first position; that is no reason to refuse them."""
    model = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 3] = 3000
    proof = adapt(model).closed_form
    assert proof.ok, proof.reason


def test_a_zero_initialised_output_projection_is_no_reason_to_refuse():
    """Its neurons do nothing, which is what the closed form says."""
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.zero_()
    assert adapt(model).closed_form.ok


def test_readout_of_an_earlier_layer_is_refused(tiny):
    adapter = tiny("gpt_neox").adapter
    with pytest.raises(UnsupportedModel, match=r"After layer 0 come 1 more blocks.*--engine patching"):
        adapter.readout(0)
    assert_close(adapter.readout(1).W_U, adapter.readout(-1).W_U)


@pytest.mark.parametrize(("name", "has_one"), [("gpt2", True), ("llama", True), ("olmo2", False), ("gemma2", False)])
def test_a_readout_is_told_by_layer_and_model_whatever_the_engine(name, has_one, tiny, monkeypatch):
    if not has_one:
        pretend(monkeypatch, name, mlp_norm=None)
    adapter = tiny(name).adapter
    for layer in (1, -1):
        behind = adapter.readout_behind(layer)
        assert isinstance(behind, Readout if has_one else Unavailable)
        assert has_one or f"{adapter.closed_form.reason}, so the closed form" in behind.why
    assert "After layer 0 come 1 more blocks" in adapter.readout_behind(0).why
    assert "--engine" not in adapter.readout_behind(0).why  # what to do is for who asked to say
    with pytest.raises(OutOfRange, match="no layer 2"):
        adapter.readout_behind(2)


def test_neurons_are_counted_by_layer(tiny):
    """A model whose first layer is narrower: `d_mlp` is the last layer's, `n_neurons` any layer's."""
    model = tiny_model("gpt2")
    first = model.transformer.h[0].mlp
    first.c_fc.weight = torch.nn.Parameter(first.c_fc.weight[:, :7].detach())
    first.c_fc.bias = torch.nn.Parameter(first.c_fc.bias[:7].detach())
    first.c_proj.weight = torch.nn.Parameter(first.c_proj.weight[:7].detach())
    first.c_fc.nf = 7
    adapter = adapt(model)
    assert (adapter.n_neurons(0), adapter.n_neurons(1), adapter.n_neurons(), adapter.d_mlp) == (7, D_MLP, D_MLP, D_MLP)
    windows = np.random.default_rng(1).integers(3, VOCAB, size=(2, 6))
    act = adapter.capture(windows, 0).act
    assert act.shape == (2, 6, 7)
    effects = list(patched_loss_changes(adapter, windows, (np.array([0]), np.array([2])), act.mean((0, 1)), 0))
    assert [effect.neuron for effect in effects] == list(range(7))


@pytest.mark.parametrize("layer", [2, -3])
def test_layers_out_of_range(layer, tiny):
    case = tiny("gpt_neox")
    with pytest.raises(OutOfRange, match=rf"no layer {layer}: this model has 2 layers\. Give one of 0…1"):
        case.adapter.capture(case.windows, layer)


def test_windows_longer_than_the_model_are_refused(tiny):
    adapter = tiny("llama").adapter  # rotary positions would compute something beyond the limit
    adapter.capture(np.full((1, POSITIONS), 3))
    with pytest.raises(OutOfRange, match=rf"13 tokens long.*built for 12.*--context-length {POSITIONS}"):
        adapter.capture(np.full((1, POSITIONS + 1), 3))


@pytest.mark.parametrize("bad", [VOCAB, -1])
def test_ids_without_a_row_are_refused(bad, tiny):
    with pytest.raises(OutOfRange, match="rows 0…22"):
        tiny("gpt2").adapter.capture(np.array([[3, bad, 4]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(bad):
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[0, 0] = bad
    with pytest.raises(BrokenCheckpoint, match=r"1 of 384 numbers of `gpt_neox.layers.0.mlp.dense_h_to_4h.weight`"):
        adapt(model)


def test_a_tokenizer_with_more_ids_than_rows_is_refused():
    adapt(tiny_model("gpt2"), tiny_tokenizer(VOCAB))
    with pytest.raises(UnfitTokenizer, match=r"can give the id 23 .*, and the model's embedding has 23 rows"):
        adapt(tiny_model("gpt2"), tiny_tokenizer(VOCAB + 1))


def test_a_missing_tokenizer_is_an_error_when_it_is_needed():
    adapter = adapt(tiny_model("gpt2"))
    with pytest.raises(UnfitTokenizer, match=r"tokenizer\.json"):
        adapter.tokenizer  # noqa: B018


def test_an_unlisted_architecture_is_refused_with_the_list():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModel, match=r"'bloom'.*gpt_neox, gpt2.*rareneuron families.*one record"):
        adapt(model)


def test_a_model_without_unembedding_is_refused():
    with pytest.raises(UnsupportedModel, match="no unembedding"):
        adapt(tiny_model("gpt2").transformer)


def test_a_modified_architecture_is_refused_by_the_path_it_lacks():
    model = tiny_model("llama")
    model.model.layers[1].mlp.feed_forward = model.model.layers[1].mlp.down_proj
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(UnsupportedModel, match=r"has no `mlp\.down_proj`"):
        adapt(model)


def test_families_can_be_read_without_torch():
    """`rareneuron families` answers at once."""
    import subprocess
    import sys

    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('f', sys.argv[1]); m = u.module_from_spec(s); "
        "sys.modules['f'] = m; s.loader.exec_module(m); assert len(m.FAMILIES) >= 15; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, families.__file__], check=True)
