"""Where the units of a layer put out what they compute: neurons and attention heads, seen alike.

A unit is a block of columns of the input of a projection that writes to the residual stream: one column of the MLP's
down-projection for a neuron, the `head_dim` columns of attention's output projection for a head. Everything else that
an estimate or a replay needs is the same for both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rareneuron.errors import UnsupportedModel
from rareneuron.maths.head import Head
from rareneuron.models.anatomy import Anatomy, output_first, part

UnitKind = Literal["neurons", "heads"]
HEAD_TOLERANCE = 1e-4  # of the largest logit, as for readouts (`probes`)
ADDITION_TOLERANCE = 1e-3  # of the move, as for ablations there; a residual stream far larger than it costs speed only


@dataclass(frozen=True, kw_only=True)
class Site:
    """The units of one kind in one layer."""

    layer: int  # from 0
    kind: UnitKind
    module: nn.Module  # the projection whose input the units put out
    width: int  # columns of a unit
    n_units: int
    W_out: Float[Tensor, "column d_model"]
    adds_plainly: bool  # what the units put out moves the block's output by as much, and by nothing else

    def columns(self, units: Tensor) -> Tensor:
        """Return the columns of some units, [unit, width]."""
        return units[:, None] * self.width + torch.arange(self.width, device=units.device)

    def name(self, unit: int) -> str:
        """Return the printed name of a unit, `layer.index` or `layer.hN`."""
        return f"{self.layer}.{'h' if self.kind == 'heads' else ''}{unit}"


def site_of(anatomy: Anatomy, layer: int, kind: UnitKind = "neurons") -> Site:
    """Find the units of a layer."""
    layer = anatomy.layer_index(layer)
    if kind == "neurons":
        module = anatomy.mlp_out(layer)
        n_units = n_columns = output_first(module).shape[1]
    else:
        module = part(anatomy.blocks[layer], anatomy.family.attention_out, anatomy.family)
        n_units, n_columns = int(anatomy.model.config.num_attention_heads), output_first(module).shape[1]
        if n_columns % n_units:
            raise UnsupportedModel(
                f"{anatomy.family.model_type}: layer {layer} puts {n_columns} numbers into attention's output "
                f"projection for {n_units} heads, so heads aren't blocks of columns here. Analyse neurons instead."
            )
    return Site(
        layer=layer,
        kind=kind,
        module=module,
        width=n_columns // n_units,
        n_units=n_units,
        W_out=output_first(module).T,
        adds_plainly=addition_gap(anatomy, layer, module) <= ADDITION_TOLERANCE,
    )


def addition_gap(anatomy: Anatomy, layer: int, module: nn.Module) -> float:
    """Return how far a move of what a projection puts out is from moving its block's output alike, relative to it."""
    ids, moves = probe_ids(anatomy), []

    def add(module: nn.Module, args: object, output: Tensor) -> Tensor:
        move = output.detach().flip(-1)  # of the output's own size
        moves.append(move.reshape(ids.shape[1], -1))
        return output + move

    with torch.inference_mode(), anatomy.reading(layer) as seen:
        anatomy.backbone(ids, use_cache=False)
        clean = seen["resid"][0]
        handle = module.register_forward_hook(add)
        try:
            anatomy.backbone(ids, use_cache=False)
        finally:
            handle.remove()
        gap = (seen["resid"][0] - clean - moves[0]).abs().max() / moves[0].abs().max().clamp(min=1e-30)
    return float(gap)


def probe_ids(anatomy: Anatomy) -> Tensor:
    """Return eight ids from all over the vocabulary."""
    n_ids = anatomy.model.get_input_embeddings().weight.shape[0]
    return torch.arange(8, device=anatomy.model.device)[None] * 7919 % n_ids


def head_of(anatomy: Anatomy) -> Head:
    """Return the unembedding as data, once it is shown to give the model's own logits."""
    cap = getattr(anatomy.model.config, "final_logit_softcapping", None)
    bias = getattr(anatomy.unembedding, "bias", None)
    head = Head(
        W_U=anatomy.unembedding.weight.detach(),
        b_U=None if bias is None else bias.detach(),
        cap=None if cap is None else float(cap),
    )
    gap = head_gap(anatomy, head)
    if not gap <= HEAD_TOLERANCE:
        raise UnsupportedModel(
            f"{anatomy.family.model_type}: the unembedding of the backbone's output doesn't give the model's own "
            f"logits (off by {gap:.2g} of their size), so a loss can't be followed back from there. Use "
            "`--engine patching`, which asks the model itself."
        )
    return head


def head_gap(anatomy: Anatomy, head: Head) -> float:
    """Return the largest difference between a head's and the model's logits, relative to the largest logit."""
    ids = probe_ids(anatomy)
    with torch.inference_mode():
        logits = anatomy.model(ids, use_cache=False).logits[0]
        found = head(anatomy.backbone(ids, use_cache=False).last_hidden_state[0])
    return float((found - logits).abs().max() / logits.abs().max())
