"""Folders on disk: sound ones in every form, and each way in which one can be bad."""

import hashlib
import json
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rareneuron.errors import (
    BrokenCheckpoint,
    InvalidConfig,
    ModelNotFound,
    OutOfRange,
    UnfitTokenizer,
    UnsupportedModel,
)
from rareneuron.models.adapter import load_model
from rareneuron.models.families import FAMILIES
from rareneuron.models.heads import use_stored_head
from rareneuron.models.loading import DTYPES

from .conftest import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "model", "gpt_neox")


def saved(folder, model_type, dtype=torch.float32, shard="1GB", **overrides):
    model = tiny_model(model_type, dtype=dtype, **overrides)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").replace(path)  # a loaded model may be no more than a view of the file


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_loads_what_it_saved(name, tmp_path):
    adapter = load_model(saved(tmp_path / "model", name))
    expected = tiny_model(name, dtype=torch.float32)
    for (key, weight), (other, value) in zip(
        sorted(adapter.model.state_dict().items()), sorted(expected.state_dict().items()), strict=True
    ):
        assert key == other
        assert torch.equal(weight, value), key
    assert adapter.closed_form.ok, adapter.closed_form.reason
    assert not adapter.model.training


def test_provenance_says_what_was_loaded(folder):
    content = (folder / "model.safetensors").read_bytes()
    assert load_model(folder).provenance == {
        "source": str(folder),
        "revision": None,
        "commit": None,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "model_type": "gpt_neox",
        "n_params": sum(p.numel() for p in tiny_model("gpt_neox").parameters()),
        "dtype": "float32",
        "tied": False,
        "tokenizer": "tokenizer.json",
        "head": None,
        "form": None,
    }


def test_sharded_weights_load_alike(tmp_path):
    whole = load_model(saved(tmp_path / "whole", "llama"))
    sharded = load_model(saved(tmp_path / "shards", "llama", shard="4KB"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(whole.readout().W_U, sharded.readout().W_U)
    assert torch.equal(whole.W_gate, sharded.W_gate)
    assert sharded.provenance["weights_sha256"] != whole.provenance["weights_sha256"]
    one = next((tmp_path / "shards").glob("*00001*.safetensors"))
    before = sharded.provenance["weights_sha256"]
    weights = load_file(one)
    save_file({name: weight + 1 for name, weight in weights.items()}, one, metadata={"format": "pt"})
    assert load_model(tmp_path / "shards").provenance["weights_sha256"] != before


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_computed_in_float32(stored, tmp_path):
    adapter = load_model(saved(tmp_path / "model", "gpt2", dtype=stored))
    assert adapter.model.dtype == torch.float32
    assert adapter.closed_form.ok
    exact = tiny_model("gpt2", dtype=stored).transformer.h[1].mlp.c_proj.weight
    assert torch.equal(adapter.W_out, exact.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_asked_for_is_the_dtype_computed(dtype, folder):
    adapter = load_model(folder, dtype=dtype)
    assert adapter.provenance["dtype"] == dtype
    assert adapter.capture(torch.tensor([[3, 4]])).act.dtype == DTYPES[dtype]


def test_an_unknown_dtype(folder):
    with pytest.raises(OutOfRange, match=r"no dtype 'float8'.*float64, float32"):
        load_model(folder, dtype="float8")


def test_device_auto_is_cuda_where_there_is_one(folder):
    assert load_model(folder).model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "mps", "meta", "cuda"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path, monkeypatch, device):
    if device == "cuda":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidConfig, match=rf"no device '{device}'.*This machine has cpu.*--device, or `auto`"):
        load_model(tmp_path, device=device)  # before anything is read: the folder is empty


def test_a_checkpoint_without_the_backbones_prefix(tmp_path):
    """As GPT-2's original files are."""
    folder = saved(tmp_path / "model", "gpt2")

    def bare(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 12, 12)  # a mask that old versions stored

    before = load_model(folder)
    edit_weights(folder, bare)
    assert torch.equal(load_model(folder).W_out, before.W_out)


def test_a_checkpoint_with_the_unembeddings_old_name(folder):
    """As Pythia's files are."""
    before = load_model(folder)

    def old(weights):
        weights["embed_out.weight"] = weights.pop("lm_head.weight", weights.pop("embed_out.weight", None))

    edit_weights(folder, old)
    assert torch.equal(load_model(folder).readout().W_U, before.readout().W_U)


def test_no_such_folder(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no folder .*absent.*Hub id"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelNotFound, match="no folder"):
        load_model("./absent")


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(ModelNotFound, match="is a file"):
        load_model(folder / "model.safetensors")


def test_a_local_folder_has_no_revisions(folder):
    with pytest.raises(ModelNotFound, match="only models on the Hub have revisions"):
        load_model(folder, "main")


def test_two_revisions_at_once():
    with pytest.raises(ModelNotFound, match="Give one of the two"):
        load_model("lab/tiny@a", "b")


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no config\.json.*save_pretrained"):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00"])
def test_a_config_that_is_not_json(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(BrokenCheckpoint, match=r"config\.json.*Download it again"):
        load_model(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenCheckpoint, match=r"holds no model\.safetensors"):
        load_model(folder)


def test_pickled_weights_are_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "opened"
    # The pickle protocol's own example: opening it would create a file.
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.")
    with pytest.raises(BrokenCheckpoint, match=r"only as pickles \(pytorch_model\.bin\).*convert once"):
        load_model(folder)
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrokenCheckpoint, match="truncated or not a safetensors file"):
        load_model(folder)


def test_corrupt_weights(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match="truncated or not a safetensors file"):
        load_model(folder)


def test_a_header_that_claims_to_be_huge(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(BrokenCheckpoint, match="truncated or not a safetensors file"):
        load_model(folder)


def test_a_missing_shard(tmp_path):
    folder = saved(tmp_path / "model", "llama", shard="4KB")
    next(folder.glob("*00002*.safetensors")).unlink()
    with pytest.raises(BrokenCheckpoint, match=r"lacks 1 of the \d+ weight files.*00002"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside(name, tmp_path):
    folder = saved(tmp_path / "model", "llama", shard="4KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(BrokenCheckpoint, match="weight_map"):
        load_model(folder)


def test_nan_weights(folder):
    edit_weights(folder, lambda weights: weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"].fill_(torch.nan))
    with pytest.raises(
        BrokenCheckpoint, match=r"384 of 384 numbers of `gpt_neox\.layers\.1\.mlp\.dense_4h_to_h\.weight`"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "gpt_neox.final_layer_norm.bias"])
def test_missing_weights_are_not_made_up(name, folder):
    edit_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(BrokenCheckpoint, match=rf"lack 1 weight of the model \({name}\)"):
        load_model(folder)


def test_a_missing_unembedding_is_not_made_up(tmp_path):
    folder = saved(tmp_path / "model", "llama")
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(BrokenCheckpoint, match=r"lm_head\.weight.*without its language modelling head"):
        load_model(folder)
    edit_config(folder, tie_word_embeddings=True)  # tied, it isn't missing
    assert load_model(folder).provenance["tied"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_weights_under_the_names_of_a_wrapper_are_named_so(tmp_path, prefix):
    folder = saved(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    save_file({f"{prefix}{name}": w for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenCheckpoint, match=rf"names that begin with `{re.escape(prefix)}`, as a wrapper's own"):
        load_model(folder)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "gemma"])
def test_a_stored_unembedding_wins_over_the_configs_tie(name, tmp_path):
    folder = saved(tmp_path / "model", name, tie_word_embeddings=False)
    edit_config(folder, tie_word_embeddings=True)
    stored = next(
        w for n, w in load_file(folder / "model.safetensors").items() if n in ("lm_head.weight", "embed_out.weight")
    )
    adapter = load_model(folder)
    assert torch.equal(adapter.readout().W_U, stored)
    assert not torch.equal(stored, adapter.model.get_input_embeddings().weight), "the case shows nothing"
    assert not adapter.provenance["tied"]
    assert "of the weight files, which differs from the embedding" in adapter.provenance["head"]


def test_a_stored_copy_of_the_embedding_stays_tied(tmp_path):
    folder = saved(tmp_path / "model", "llama", tie_word_embeddings=True)
    edit_weights(
        folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    )
    adapter = load_model(folder)
    assert adapter.provenance["head"] is None
    assert torch.equal(adapter.readout().W_U, adapter.model.get_input_embeddings().weight)


def test_where_a_version_ties_all_the_same_the_stored_unembedding_is_put_back(tmp_path):
    """As transformers 4.54 to 4.57 do."""
    folder = saved(tmp_path / "model", "llama", tie_word_embeddings=False)
    edit_config(folder, tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    model = tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    said = use_stored_head(model, folder)
    assert said.startswith("lm_head.weight of the weight files")
    assert torch.equal(model.lm_head.weight, stored)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, stored), "tied again"


def test_weights_that_the_config_has_no_place_for(tmp_path):
    """The config says no biases, and the model was trained with them."""
    folder = saved(tmp_path / "biased", "llama", attention_bias=True)
    load_model(folder)
    edit_config(folder, attention_bias=False)
    with pytest.raises(BrokenCheckpoint, match=r"hold 8 weights that llama has no place for.*_proj\.bias"):
        load_model(folder)


def test_misshapen_weights(folder):
    edit_config(folder, intermediate_size=32)
    with pytest.raises(BrokenCheckpoint, match=r"has the shape \[24, 16\].*config\.json asks for \[32, 16\]"):
        load_model(folder)


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_a_depth_that_is_not_that_of_the_weights(n, folder):
    edit_config(folder, num_hidden_layers=n)
    with pytest.raises(BrokenCheckpoint, match=rf"asks for {n} blocks, and the weight files hold 2"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt_neox", {"vocab_size": 10**12}),
        ("gpt_neox", {"intermediate_size": 10**12}),
        ("gpt_neox", {"hidden_size": 10**9}),
        ("gpt2", {"n_positions": 10**12}),
        ("gptj", {"n_positions": 10**10}),
        ("gpt_neo", {"max_position_embeddings": 10**6}),
        ("llama", {"num_attention_heads": 10**9, "num_key_value_heads": 10**9}),
    ],
)
def test_hostile_sizes_are_refused_before_anything_is_allocated(name, change, tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", name)
    edit_config(folder, **change)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("it was allocated"))
    with pytest.raises(BrokenCheckpoint, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"hidden_size": -16},
        {"hidden_size": "sixteen"},
        {"hidden_act": "no such function"},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
    ],
)
def test_configs_that_describe_no_model(change, folder):
    edit_config(folder, **change)
    with pytest.raises(BrokenCheckpoint, match=r"config\.json"):
        load_model(folder)


def test_encoders_and_encoder_decoders(folder):
    edit_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    with pytest.raises(UnsupportedModel, match=r"is an encoder.*decoder-only"):
        load_model(folder)
    edit_config(folder, model_type="t5", is_encoder_decoder=True)
    with pytest.raises(UnsupportedModel, match=r"encoder-decoder.*decoder-only"):
        load_model(folder)
    edit_config(folder, model_type="brand_new", is_encoder_decoder=False, architectures=None)
    with pytest.raises(UnsupportedModel, match=r"'brand_new'.*gpt_neox, gpt2.*rareneuron families"):
        load_model(folder)


def test_code_of_a_repository_is_never_run(folder):
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_custom.Model"})
    (folder / "modeling_custom.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UnsupportedModel, match="auto_map"):
        load_model(folder)


def test_code_of_a_tokenizer_is_never_run(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["custom.T", None]}}))
    with pytest.raises(UnfitTokenizer, match="auto_map"):
        load_model(folder)


def test_quantised_weights(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UnsupportedModel, match="quantised"):
        load_model(folder)

    def quantise(weights):
        name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
        weights[name] = weights[name].to(torch.int8)

    edit_weights(other, quantise)
    with pytest.raises(UnsupportedModel, match="stored as I8"):
        load_model(other)


def test_a_tokenizer_of_another_model(folder):
    tiny_tokenizer(30).save_pretrained(folder)
    with pytest.raises(UnfitTokenizer, match=r"can give the id 29 \('w29'\), and the model's embedding has 23 rows"):
        load_model(folder)
    assert load_model(folder, tokenizer=tiny_tokenizer()).tokenizer.vocab_size == 23


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(content, folder):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UnfitTokenizer, match=r"tokenizer"):
        load_model(folder)


def test_no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    adapter = load_model(folder)
    with pytest.raises(UnfitTokenizer, match=r"no tokenizer in its folder or the one above"):
        adapter.tokenizer  # noqa: B018


def test_float64_differs_from_float32_by_rounding_only(folder):
    ids = torch.tensor([[3, 4, 5]])
    single, double = (load_model(folder, dtype=dtype).capture(ids).resid for dtype in ("float32", "float64"))
    assert_close(single.double(), double, rtol=1e-5, atol=1e-5)  # float32 sums of 24 terms of size 1
