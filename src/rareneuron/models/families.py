"""One record per architecture: where the blocks, the last norm and the MLP's projections and nonlinearity are.

Paths of blocks and final norm start at the model's backbone (`model.base_model`), those of the MLP at a block.
Everything else is found by structure: the unembedding by `get_output_embeddings()`, the orientation of a weight
by its module's type, biases, ties and soft caps by looking. Adding an architecture is adding a record here: the
contract test builds a tiny random model from `tiny` and compares the closed form with the model itself. What a
record claims is not trusted either: `probes` decides at every load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture, as `config.model_type` names it."""

    model_type: str
    blocks: str
    final_norm: str
    mlp_in: str
    mlp_out: str  # its input is what this package calls neurons
    norm: Literal["layer", "rms"]
    activation: str  # φ, the MLP's nonlinearity
    mlp_gate: str | None = None
    attention_out: str = "self_attn.o_proj"  # its input is what the heads put out, one block of columns a head
    gain_offset: float = 0.0  # the gain of a norm is this plus the stored weight
    norm_eps: float | None = None  # only where the norm's module doesn't carry it
    attention: str | None = None  # only where transformers' default attention computes something else
    mlp_norm: str | None = None  # the RMSNorm between the MLP's output and the residual stream
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a tiny config needs beyond the common names


GATED: dict[str, Any] = {
    "mlp_in": "mlp.up_proj",
    "mlp_out": "mlp.down_proj",
    "mlp_gate": "mlp.gate_proj",
    "activation": "mlp.act_fn",
}
POST_NORM: dict[str, Any] = {"mlp_norm": "post_feedforward_layernorm"}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="gpt_neox",
            blocks="layers",
            final_norm="final_layer_norm",
            mlp_in="mlp.dense_h_to_4h",
            mlp_out="mlp.dense_4h_to_h",
            attention_out="attention.dense",
            activation="mlp.act",
            norm="layer",
        ),
        Family(
            model_type="gpt2",
            blocks="h",
            final_norm="ln_f",
            mlp_in="mlp.c_fc",
            mlp_out="mlp.c_proj",
            attention_out="attn.c_proj",
            activation="mlp.act",
            norm="layer",
            tiny={"n_inner": 24},
        ),
        Family(
            model_type="gpt_neo",
            blocks="h",
            final_norm="ln_f",
            mlp_in="mlp.c_fc",
            mlp_out="mlp.c_proj",
            attention_out="attn.attention.out_proj",
            activation="mlp.act",
            norm="layer",
            tiny={"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 3},
        ),
        Family(
            model_type="gptj",
            blocks="h",
            final_norm="ln_f",
            mlp_in="mlp.fc_in",
            mlp_out="mlp.fc_out",
            attention_out="attn.out_proj",
            activation="mlp.act",
            norm="layer",
            tiny={"n_inner": 24, "rotary_dim": 4},
        ),
        Family(
            model_type="phi",
            blocks="layers",
            final_norm="final_layernorm",
            mlp_in="mlp.fc1",
            mlp_out="mlp.fc2",
            attention_out="self_attn.dense",
            activation="mlp.activation_fn",
            norm="layer",
        ),
        Family(
            model_type="opt",
            blocks="decoder.layers",
            final_norm="decoder.final_layer_norm",
            mlp_in="fc1",
            mlp_out="fc2",
            attention_out="self_attn.out_proj",
            activation="activation_fn",
            norm="layer",
            tiny={"ffn_dim": 24, "word_embed_proj_dim": 16},
        ),
        Family(model_type="olmo", blocks="layers", final_norm="norm", norm="layer", norm_eps=1e-5, **GATED),
        Family(model_type="llama", blocks="layers", final_norm="norm", norm="rms", **GATED),
        Family(model_type="mistral", blocks="layers", final_norm="norm", norm="rms", **GATED),
        Family(model_type="qwen2", blocks="layers", final_norm="norm", norm="rms", **GATED),
        Family(model_type="qwen3", blocks="layers", final_norm="norm", norm="rms", **GATED),
        Family(model_type="gemma", blocks="layers", final_norm="norm", norm="rms", gain_offset=1.0, **GATED),
        Family(
            model_type="gemma2",
            blocks="layers",
            final_norm="norm",
            norm="rms",
            gain_offset=1.0,
            attention="eager",  # fused attention leaves out the soft-capping of attention scores
            **GATED,
            **POST_NORM,
        ),
        Family(
            model_type="gemma3_text",
            blocks="layers",
            final_norm="norm",
            norm="rms",
            gain_offset=1.0,
            **GATED,
            **POST_NORM,
        ),
        Family(model_type="olmo2", blocks="layers", final_norm="norm", norm="rms", **GATED, **POST_NORM),
    )
}
