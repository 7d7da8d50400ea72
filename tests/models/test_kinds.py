"""Kinds of architectures that aren't served are refused for the right reason, and the way out works."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from rareneuron.errors import UnsupportedModel
from rareneuron.models.adapter import load_model
from rareneuron.models.anatomy import family_of
from rareneuron.models.families import FAMILIES
from rareneuron.models.kinds import why_not_served

from .conftest import COMMON, tiny_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}
SEEING = {
    "gemma3": ({}, {}, {"mm_tokens_per_image": 4, "image_token_index": 20}),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}, {"image_token_index": 20}),
}


@pytest.mark.parametrize(
    ("config", "n"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "8 "),
        ({"model_type": "olmoe", "num_experts": 64}, "64 "),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "256 "),
        ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}}, "16 "),
        ({"model_type": "brand_new_moe"}, ""),
    ],
)
def test_mixtures_of_experts_are_refused_for_their_router(config, n):
    with pytest.raises(UnsupportedModel, match=rf"is a mixture of {n}experts: a router chooses.*dense model.*gpt_neox"):
        family_of(config)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "granitemoe", "jamba"])
def test_the_configs_of_transformers_say_that_they_are_mixtures(name):
    assert "mixture of" in why_not_served(AutoConfig.for_model(name).to_dict(), FAMILIES)


def test_a_dense_model_is_no_mixture():
    assert why_not_served({"model_type": "brand_new", "num_experts": 1}, FAMILIES) is None
    assert why_not_served({"model_type": "brand_new", "num_local_experts": None}, FAMILIES) is None
    with pytest.raises(UnsupportedModel, match="'brand_new' is not an architecture"):
        family_of({"model_type": "brand_new"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"model_type": "llama"}, r"text part is llama, which is supported.*own-model\.md"),
        ({"model_type": "brand_new"}, r"text part \(brand_new\) isn't among those"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, r"text part \(qwen3_moe\) is a mixture of experts"),
        (None, "Give a model of text alone"),
    ],
)
def test_models_with_other_senses_say_whether_their_text_part_helps(text, said):
    config = {"model_type": "seeing", "text_config": text, "vision_config": {}, "audio_config": {}}
    with pytest.raises(UnsupportedModel, match=rf"seeing reads images and sound besides text.*{said}"):
        family_of(config)


def test_recurrent_models_have_no_neurons():
    with pytest.raises(UnsupportedModel, match=r"falcon_mamba is a recurrent or state-space model.*no neurons"):
        family_of({"model_type": "falcon_mamba"})


@pytest.mark.parametrize("kind", SEEING)
def test_the_text_part_of_a_seeing_model_is_had_as_the_docs_say(kind, tmp_path, monkeypatch):
    text, vision, further = SEEING[kind]
    config = AutoConfig.for_model(kind, text_config=COMMON | text, vision_config=VISION | vision, **further)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "seeing-model")
    tiny_tokenizer().save_pretrained(tmp_path / "seeing-model")
    with pytest.raises(UnsupportedModel, match=rf"{kind} reads images besides text.*text part is \w+, which is supp"):
        load_model(tmp_path / "seeing-model")
    page = (DOCS / "howto" / "own-model.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(page.split("### A model that also sees")[1].split("```text\n")[1].split("```")[0])
    adapter = load_model(tmp_path / "text-model")
    assert adapter.family.model_type == json.loads((tmp_path / "text-model" / "config.json").read_text())["model_type"]
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        assert torch.equal(adapter.model(ids).logits, whole(ids).logits)
    assert len(adapter.tokenizer) == len(tiny_tokenizer())
