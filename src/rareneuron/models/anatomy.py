"""Where the parts of a Hugging Face model are, and the hooks that read and replace what flows between them.

The only module besides `loading` that touches transformers' modules. Weights come out neuron axis first for
every architecture: `nn.Linear` stores [out, in], GPT-2's `Conv1D` [in, out]. Nothing is copied.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rareneuron.errors import OutOfRange, UnsupportedModel
from rareneuron.maths.gauge import Gauge, gauge_of
from rareneuron.maths.output_norm import OutputNorm
from rareneuron.maths.readout import Readout
from rareneuron.models.families import FAMILIES, Family
from rareneuron.models.kinds import why_not_served


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """A layer's MLP: row i of each matrix belongs to neuron i."""

    W_in: Float[Tensor, "neuron d_model"]
    W_out: Float[Tensor, "neuron d_model"]
    W_gate: Float[Tensor, "neuron d_model"] | None  # None where the MLP isn't gated


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a model by their role."""

    model: Any  # a transformers PreTrainedModel; its classes differ between versions, its protocol doesn't
    family: Family
    backbone: nn.Module
    blocks: tuple[nn.Module, ...]
    final_norm: Any  # a module, or None: OPT has variants without one
    unembedding: Any

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.weights(-1).W_out.shape[1]

    @property
    def softcap(self) -> float | None:
        """The size beyond which no logit goes; None where logits aren't capped."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def n_backbone_params(self) -> int:
        """Parameters that are multiplied at every position: all but the embedding and the unembedding."""
        embeddings = {id(self.model.get_input_embeddings().weight), id(self.unembedding.weight)}
        return sum(p.numel() for p in self.model.parameters() if id(p) not in embeddings)

    def layer_index(self, layer: int) -> int:
        """The index of a layer from 0; negative layers count from the end."""
        return layer_index(layer, len(self.blocks))

    def mlp_out(self, layer: int) -> nn.Module:
        """The projection of a layer whose inputs are its neurons' activations."""
        return part(self.blocks[self.layer_index(layer)], self.family.mlp_out, self.family)

    def weights(self, layer: int) -> LayerWeights:
        """The matrices of a layer's MLP, neuron axis first."""
        block, family = self.blocks[self.layer_index(layer)], self.family
        gate = None if family.mlp_gate is None else part(block, family.mlp_gate, family)
        return LayerWeights(
            W_in=output_first(part(block, family.mlp_in, family)),
            W_out=output_first(part(block, family.mlp_out, family)).T,
            W_gate=None if gate is None else output_first(gate),
        )

    def gauge(self, layer: int) -> Gauge:
        """Which signs and lengths of a layer's neurons mean nothing by themselves, by trying its nonlinearity."""
        activation = part(self.blocks[self.layer_index(layer)], self.family.activation, self.family)

        def phi(z: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(activation(torch.from_numpy(z).to(torch.float64)).numpy())

        return gauge_of(phi, gated=self.family.mlp_gate is not None)

    def readout(self) -> Readout:
        """Final norm and unembedding as data; `probes` finds out whether they are the whole rest of the network."""
        norm, W_U = self.final_norm, self.unembedding.weight.detach()
        if norm is None:
            raise UnsupportedModel(f"{self.family.model_type}: this variant has no final norm")
        if W_U.shape[1] != self.d_model:
            raise UnsupportedModel(
                f"{self.family.model_type}: this variant projects the residual stream from {self.d_model} to "
                f"{W_U.shape[1]} dimensions between final norm and unembedding"
            )
        eps = epsilon(norm) if self.family.norm_eps is None else self.family.norm_eps
        gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        unembedding_bias = getattr(self.unembedding, "bias", None)
        return Readout(
            norm=self.family.norm,
            weight=None if gain is None else self.family.gain_offset + gain.detach(),
            bias=None if bias is None else bias.detach(),
            eps=float(eps),
            W_U=W_U,
            b_U=None if unembedding_bias is None else unembedding_bias.detach(),
            softcap=self.softcap,
            output_norm=self.output_norm(-1),
        )

    def output_norm(self, layer: int) -> OutputNorm | None:
        """The norm between a layer's MLP output and the residual stream as data; None where the record names none."""
        if self.family.mlp_norm is None:
            return None
        norm: Any = part(self.blocks[self.layer_index(layer)], self.family.mlp_norm, self.family)
        bias = getattr(self.mlp_out(layer), "bias", None)
        return OutputNorm(
            weight=self.family.gain_offset + norm.weight.detach(),
            eps=epsilon(norm),
            bias=None if bias is None else bias.detach(),
        )

    def refuse_longer(self, n_positions: int) -> None:
        """Refuse windows longer than those that the model was built for."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and n_positions > longest:
            raise OutOfRange(
                f"The windows are {n_positions} tokens long, and this model was built for {longest}: what it computes "
                f"further on means nothing. Use `--context-length {longest}` or less."
            )

    def token_ids(self, windows: Int[np.ndarray, "context position"] | Int[Tensor, "context position"]) -> Tensor:
        """Windows as a tensor of ids on the model's device; refuses what the model can't read."""
        ids = torch.as_tensor(windows).to(self.model.device, torch.long)
        rows = self.model.get_input_embeddings().weight.shape[0]
        self.refuse_longer(ids.shape[1])
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < rows):
            raise OutOfRange(
                f"The windows hold ids from {int(ids.min())} to {int(ids.max())}, and this model's embedding has the "
                f"rows 0…{rows - 1}. Encode the text with the tokenizer of this model."
            )
        return ids

    @contextmanager
    def reading(self, layer: int) -> Iterator[dict[str, Tensor]]:
        """Yield a dictionary in which every forward pass leaves `resid` (the block's output) and `act` of a layer."""
        seen: dict[str, Tensor] = {}

        def keep_act(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["act"] = args[0]

        def keep_resid(module: nn.Module, args: Any, output: Any) -> None:
            seen["resid"] = output[0] if isinstance(output, tuple) else output  # GPT-Neo adds its attention weights

        handles = [
            self.mlp_out(layer).register_forward_pre_hook(keep_act),
            self.blocks[self.layer_index(layer)].register_forward_hook(keep_resid),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replacing(self, layer: int, neuron: int, value: float | Tensor) -> Iterator[None]:
        """Set one neuron's activation to `value` at every position while the context is open."""

        def replace(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            act = args[0].clone()
            act[..., neuron] = value
            return (act, *args[1:])

        handle = self.mlp_out(layer).register_forward_pre_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def anatomy(model: Any) -> Anatomy:
    """Find the parts of a causal language model, or say why that can't be done."""
    family = family_of(model.config.to_dict())
    backbone = model.base_model
    if backbone is model:  # transformers 4 gives Gemma-3 a prefix that names nothing
        backbone = getattr(model, "model", None)
    unembedding = model.get_output_embeddings()
    if unembedding is None or backbone is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no unembedding, so it predicts no tokens. Load the model with its language "
            "modelling head (`AutoModelForCausalLM`)."
        )
    return Anatomy(
        model=model,
        family=family,
        backbone=backbone,
        blocks=tuple(part(backbone, family.blocks, family).children()),
        final_norm=attribute(backbone, family.final_norm),
        unembedding=unembedding,
    )


def family_of(config: Mapping[str, Any]) -> Family:
    """The record of an architecture, from the content of its config.json."""
    model_type = config.get("model_type")
    listed = f"Architectures that are: {', '.join(FAMILIES)} (`rareneuron families`)."
    if model_type in FAMILIES and not config.get("is_encoder_decoder"):
        return FAMILIES[model_type]
    why = why_not_served(config, FAMILIES)
    if why is not None:
        raise UnsupportedModel(f"{why} {listed}")
    raise UnsupportedModel(
        f"{model_type!r} is not an architecture that this package knows where to find the neurons of. {listed} Adding "
        "one is one record in rareneuron/models/families.py; the contract test picks it up by itself."
    )


def part(root: nn.Module, path: str, family: Family) -> nn.Module:
    """The module at a dotted path."""
    module = attribute(root, path)
    if module is None:
        raise UnsupportedModel(
            f"{family.model_type}: {type(root).__name__} has no `{path}`, so this is not the architecture that the "
            "record in rareneuron/models/families.py describes. Load an unmodified model, or add a record for this one."
        )
    found: nn.Module = getattr(module, "original_component", module)  # TransformerLens' bridge calls it
    return found


def attribute(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path; None where there is none, or where it is switched off."""
    module: Any = root
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


def epsilon(norm: Any) -> float:
    """What a norm's module adds to the mean square, whatever it calls it."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def output_first(projection: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear map as [out, in]."""
    if isinstance(projection, Conv1D):
        return projection.weight.detach().T
    if isinstance(projection, nn.Linear) and projection.weight.is_floating_point():
        return projection.weight.detach()
    raise UnsupportedModel(
        f"An MLP projection is a {type(projection).__name__}, not a plain linear map, so its rows are not a neuron's "
        "weights. Merge adapters into the model, or load weights that are not quantised."
    )


def layer_index(layer: int, n_layers: int) -> int:
    """The index of a layer from 0; negative layers count from the end."""
    if not -n_layers <= layer < n_layers:
        raise OutOfRange(
            f"There is no layer {layer}: this model has {n_layers} layers. Give one of 0…{n_layers - 1}, or "
            f"-{n_layers}…-1."
        )
    return layer % n_layers
