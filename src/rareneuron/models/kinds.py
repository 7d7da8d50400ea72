"""Says why an architecture isn't served, by its kind: experts, other senses, no MLP, encoders.

A kind is read from config.json alone, so a model that nobody has listed yet is refused for the right reason, too.
"""

from collections.abc import Collection, Mapping
from typing import Any

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SENSES = {
    "vision_config": "images",
    "audio_config": "sound",
    "speech_config": "speech",
    "video_config": "video",
    "perceiver_config": "images",
}
RECURRENT = ("mamba", "rwkv", "xlstm", "recurrent", "hyena")


def why_not_served(config: Mapping[str, Any], served: Collection[str]) -> str | None:
    """Return why the kind of model that a config describes isn't served, and what to do; None for an unlisted one."""
    model_type = str(config.get("model_type"))
    heads = config.get("architectures") or []
    if config.get("is_encoder_decoder"):
        return (
            f"{model_type} is an encoder-decoder model, whose loss isn't that of the next token given the text "
            "before it. Only decoder-only models are supported."
        )
    senses = sorted({sense for name, sense in SENSES.items() if isinstance(config.get(name), Mapping)})
    if senses:
        return (
            f"{model_type} reads {' and '.join(senses)} besides text, and a study is of text. {of_text(config, served)}"
        )
    experts = n_experts(config)
    if experts or "moe" in model_type:
        how_many = f"of {experts} experts" if experts else "of experts"
        return (
            f"{model_type} is a mixture {how_many}: a router chooses for every token which of them compute, so most "
            "neurons of a layer aren't there at most tokens, and their mean and their ablation aren't those of Eq. "
            "3-4. Only models with one dense MLP in each layer are supported: take a dense model of that family."
        )
    if any(name in model_type for name in RECURRENT):
        return (
            f"{model_type} is a recurrent or state-space model, whose layers have no MLP between residual streams, so "
            "there are no neurons in the sense of Eq. 2. Take a transformer."
        )
    if any("MaskedLM" in head or "PreTraining" in head for head in heads):
        return (
            f"{model_type} ({', '.join(heads)}) is an encoder: it sees the tokens that it predicts. Only decoder-only "
            "models are supported."
        )
    return None


def of_text(config: Mapping[str, Any], served: Collection[str]) -> str:
    """Say whether the part of a model that reads text can be studied by itself, and how."""
    text = config.get("text_config")
    if not isinstance(text, Mapping) or (model_type := text.get("model_type")) is None:
        return "Give a model of text alone."
    if n_experts(text):
        return (
            f"Its text part ({model_type}) is a mixture of experts, which isn't supported either: give a dense model."
        )
    if model_type not in served:
        return f"Its text part ({model_type}) isn't among those that are supported: give a model of text alone."
    return (
        f"Its text part is {model_type}, which is supported: save that by itself and give the new folder "
        "(docs/howto/own-model.md, “A model that also sees”)."
    )


def n_experts(config: Mapping[str, Any]) -> int:
    """Return how many experts a layer of a model has, by its config; 0 for a dense model."""
    inner = config.get("ffn_config")
    found = [part.get(name) for part in (config, inner if isinstance(inner, Mapping) else {}) for name in EXPERTS]
    return max((n for n in found if isinstance(n, int) and n > 1), default=0)
