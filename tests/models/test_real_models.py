"""Trained models from elsewhere: a Llama, and a GPT-2 with every intermediate of one forward pass on record."""

import base64
import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from rareneuron.maths.ablation import delta_loss
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.readout import token_loss
from rareneuron.models.adapter import adapt, load_model
from rareneuron.models.patching import patched_loss_changes

# Recorded in float32 on another machine, with sums in another order; intermediates reach 10, one ulp of which is 1e-6.
ATOL = 2e-6

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. One day, "
    "she saw a big dog. The dog was sad because he lost his ball. Lily wanted to help him find it. "
)


def test_babyllama(reference_data):
    adapter = load_model(reference_data / "models" / "babyllama-tok105")
    assert adapter.closed_form.ok
    assert adapter.closed_form.readout_gap < 1e-5  # float32 sums of 128 terms
    assert (adapter.n_layers, adapter.d_model, adapter.d_mlp, adapter.vocab) == (5, 128, 352, 105)
    assert adapter.provenance["n_params"] == pytest.approx(0.94e6, rel=0.01)
    tokenizer = adapter.tokenizer
    windows = np.array([[tokenizer.bos_token_id, *tokenizer(STORY, add_special_tokens=False)["input_ids"]]])
    resid = adapter.capture(windows).resid[0, :-1]
    target = torch.from_numpy(windows[0, 1:])
    loss = token_loss(adapter.readout()(resid), target).mean().item()
    # 0.845 nats per character on a sample of such stories, of which this one has the commonest phrases only.
    assert 0.1 < loss < 0.845
    with torch.inference_mode():
        own = adapter.model(torch.from_numpy(windows), labels=torch.from_numpy(windows)).loss
    assert loss == pytest.approx(own.item(), abs=1e-5)  # float32 sums of 128 terms


def test_babyllama_closed_form_agrees_with_patching(reference_data):
    adapter = load_model(reference_data / "models" / "babyllama-tok105", dtype="float64")
    ids = adapter.tokenizer(STORY, add_special_tokens=False)["input_ids"][:129]
    windows = np.array(ids[:128]).reshape(2, 64)
    tokens = np.nonzero(np.ones((2, 63), bool))
    capture = adapter.capture(windows)
    resid, act = capture.resid[tokens], capture.act[tokens]
    mean_act = act.mean(0)
    neurons = list(range(0, 352, 11))
    effects = list(patched_loss_changes(adapter, windows, tokens, mean_act, neurons=neurons))
    slow = torch.stack([effect.delta_loss for effect in effects], dim=1)
    fast = delta_loss(
        adapter.readout(),
        resid,
        mean_shift(act, mean_act)[:, neurons],
        torch.from_numpy(windows[tokens[0], tokens[1] + 1]),
        adapter.W_out[neurons],
        precision="reference",
    )
    assert slow.abs().max() > 1e-2
    assert_close(fast, slow, rtol=0, atol=5e-6)  # RMSNorm in float32, logits near 10


def tensors(path):
    """The file's own encoding: base64 of little-endian float32."""
    content = json.loads(path.read_text())
    config = content.pop("config")
    return config, {
        name: torch.from_numpy(np.frombuffer(base64.b64decode(entry["data"]), "<f4").copy()).reshape(entry["shape"])
        for name, entry in content.items()
    }


@pytest.fixture
def nano(reference_data):
    folder = reference_data / "models" / "gpt-nano-sort"
    config, weights = tensors(folder / "gpt-nano-sort-model.json")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config["vocab_size"],
            n_positions=config["block_size"],
            n_embd=config["n_embd"],
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            activation_function="gelu_new",
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",  # so that attention weights exist
        )
    )
    # minGPT keeps its maps as [out, in]; Hugging Face's GPT-2 as [in, out].
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {n: w.T if n.endswith(conv1d) else w for n, w in weights.items() if not n.endswith(".attn.bias")}
    model.load_state_dict(state, strict=True)
    _, partials = tensors(folder / "gpt-nano-sort-t0-partials.json")
    return adapt(model), partials.pop("idx").long().numpy(), partials


def test_every_intermediate_of_gpt_nano_sort(nano):
    adapter, ids, partials = nano
    found = intermediates(adapter.model, torch.from_numpy(ids))
    assert set(found) == set(partials), "some intermediate on record was not compared"
    for name, recorded in partials.items():
        if name == "att":  # scores are recorded before the softmax, masked by -inf
            visible = recorded.isfinite()
            assert torch.equal(visible, torch.ones(11, 11).tril().bool().expand_as(recorded))
            assert_close(found[name][visible], recorded[visible], rtol=0, atol=ATOL, msg=name)
        else:
            assert_close(found[name], recorded, rtol=0, atol=ATOL, msg=lambda text, name=name: f"{name}: {text}")


def intermediates(model, ids):
    """Under the names of the record; those without a block's number belong to block 0."""
    out, seen = {}, {}
    block = model.transformer.h[0]
    modules = {
        "tok_emb": model.transformer.wte,
        "pos_emb": model.transformer.wpe,
        "x": model.transformer.drop,
        "ln1": block.ln_1,
        "qkv": block.attn.c_attn,
        "yProj": block.attn.c_proj,
        "ln2": block.ln_2,
        "fc": block.mlp.c_fc,
        "gelu": block.mlp.act,
        "mlp": block.mlp,
        "block0": model.transformer.h[0],
        "block1": model.transformer.h[1],
        "block2": model.transformer.h[2],
        "ln_f": model.transformer.ln_f,
        "lm_head": model.lm_head,
    }
    inputs = {"y": block.attn.c_proj, "attnResid": block.ln_2}

    def keep_output(name):
        return lambda module, args, output: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep_output(name)) for name, module in modules.items()]
    handles += [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.__setitem__(name, args[0]))
        for name, module in inputs.items()
    ]
    with torch.inference_mode():
        result = model(ids, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    out.update(seen)
    q, k, v = (x.unflatten(-1, (3, 16)).transpose(1, 2) for x in seen["qkv"].split(48, dim=-1))
    out |= {"q": q, "k": k, "v": v, "att": q @ k.mT / 16**0.5, "attSm": result.attentions[0]}
    out["mlpResid"] = seen["attnResid"] + seen["mlp"]
    out["probs"] = result.logits.softmax(-1)
    return out


def test_the_adapter_on_gpt_nano_sort(nano):
    adapter, ids, partials = nano
    assert adapter.closed_form.ok
    last, first = adapter.capture(ids), adapter.capture(ids, layer=0)
    assert_close(last.resid, partials["block2"], rtol=0, atol=ATOL)
    assert_close(first.resid, partials["block0"], rtol=0, atol=ATOL)
    assert_close(first.act, partials["gelu"], rtol=0, atol=ATOL)
    logits = adapter.readout()(last.resid.flatten(0, 1)).unflatten(0, ids.shape)
    assert_close(logits, partials["lm_head"], rtol=0, atol=ATOL)


def test_gpt_nano_sort_sorts(nano):
    """The model is trained: after six letters it names them in order."""
    adapter, ids, _ = nano
    predicted = adapter.readout()(adapter.capture(ids).resid.flatten(0, 1)).argmax(-1).reshape(ids.shape).numpy()
    np.testing.assert_array_equal(predicted[0, 5:], np.sort(ids[0, :6]))
