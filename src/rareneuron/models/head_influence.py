r"""How much attention heads write to the neurons of a later layer: estimated for all heads at once, exact for one.

Replacing head h by its mean output at every position changes the activation of neuron i at token s by I_{h,i,s}.
To first order $I = \sum_{t \le s} (\bar z_h - z_{t,h}) \cdot ∂n_{i,s}/∂z_{t,h}$. One backward pass of
$\sum_i ζ_i w_i n_{i,s}$ with random signs ζ gives S for all heads of all layers, and $E_ζ S^2 = \sum_i w_i^2 I_i^2$,
the influence of a head on the neurons that have weights. The exact I of one head comes from running the model
again with it replaced, for all neurons at once. Oracle: tests/models/test_head_influence.py, whole passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rareneuron.models.anatomy import Anatomy
from rareneuron.models.gradient import ROW_POSITIONS, batches_by_length, following, random_signs
from rareneuron.models.patching import keeping_output, resuming_at
from rareneuron.models.replay import replacing_units, watching
from rareneuron.models.sites import Site


@dataclass(frozen=True, kw_only=True)
class TokenInfluence:
    """The estimated influence of every head on groups of neurons at a batch of tokens."""

    index: Int[np.ndarray, " token"]  # which of the tokens asked for
    squared: Float64[np.ndarray, "group token head"]  # S², heads of all sites side by side


def estimated_influence(
    anatomy: Anatomy,
    heads: Sequence[Site],
    target: Site,
    windows: Int[np.ndarray, "context position"],
    tokens: tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]],
    means: Sequence[Tensor],  # [column] of each site of heads
    weights: Float[np.ndarray, "group neuron"],
    *,
    key: int = 0,
    row_positions: int = ROW_POSITIONS,
) -> Iterator[TokenInfluence]:
    """Yield S² of every head for groups of neurons, which weights of 0 leave out, at tokens (context row, position).

    Signs are drawn by `key` and each token's place, so an estimate doesn't depend on the other tokens asked for.
    """
    ids = anatomy.token_ids(windows)
    context, position = (np.asarray(x, np.int64) for x in tokens)
    for index in batches_by_length(position, row_positions):
        rows, at = (torch.from_numpy(x[index]).to(ids.device) for x in (context, position))
        signs = random_signs(context[index], position[index], len(weights), weights.shape[1], key)
        with following(anatomy, [*heads, target]) as seen:
            anatomy.backbone(ids[rows, : int(at.max()) + 1], use_cache=False)
            *outputs, acts = seen.act
            shape = (len(rows), int(at.max()) + 1, -1)
            chosen = acts.reshape(shape)[torch.arange(len(at), device=at.device), at]
            cotangents = torch.from_numpy(signs * weights[:, None]).to(chosen)
            passes = [
                torch.autograd.grad(chosen, outputs, cotangent, retain_graph=i + 1 < len(weights))
                for i, cotangent in enumerate(cotangents)
            ]
        squared = []
        for i, (site, mean) in enumerate(zip(heads, means, strict=True)):
            shift = mean.to(outputs[i]) - outputs[i].detach().reshape(shape)
            summed = [(shift * grads[i].reshape(shape)).sum(1).unflatten(-1, (-1, site.width)) for grads in passes]
            squared.append(torch.stack(summed).sum(-1).double().square())
        yield TokenInfluence(index=index, squared=torch.cat(squared, -1).cpu().numpy())


@torch.inference_mode()
def exact_influence(
    anatomy: Anatomy,
    heads: Sequence[tuple[Site, int]],
    target: Site,
    windows: Int[np.ndarray, "context position"],
    tokens: tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]],
    means: Sequence[Tensor],  # [column] of the site of each head
) -> tuple[Float[Tensor, "token neuron"], Iterator[Float[Tensor, "token neuron"]]]:
    """Return the clean activations of the target's neurons at tokens, and I of each head in turn, of a few contexts.

    `heads` are heads of sites, by their index. The windows are run at once.
    """
    ids = anatomy.token_ids(windows)
    row, at = (torch.from_numpy(np.asarray(x, np.int64)).to(ids.device) for x in tokens)
    ids = ids[:, : int(at.max()) + 1]
    clean, resume = acts_and_resumption(anatomy, sorted({site.layer for site, _ in heads}), target, ids)
    chosen = clean[row, at]

    def each() -> Iterator[Tensor]:
        for (site, head), mean in zip(heads, means, strict=True):
            columns = site.columns(torch.full((len(ids),), head, device=ids.device))
            with (
                torch.inference_mode(),
                replacing_units(site, columns, mean),
                resuming_at(anatomy, site.layer, resume[site.layer]),
                watching(target.module, None) as seen,
            ):
                anatomy.backbone(ids, use_cache=False)
            yield seen["act"].reshape(clean.shape)[row, at] - chosen

    return chosen, each()


def acts_and_resumption(
    anatomy: Anatomy, layers: Sequence[int], target: Site, ids: Int[Tensor, "context position"]
) -> tuple[Float[Tensor, "context position neuron"], dict[int, object]]:
    """Return the target's activations, and what the block before each layer returned."""
    with ExitStack() as stack:
        kept = {layer: stack.enter_context(keeping_output(anatomy, layer)) for layer in layers}
        seen = stack.enter_context(watching(target.module, None))
        anatomy.backbone(ids, use_cache=False)
    return seen["act"].reshape(*ids.shape, -1), {layer: of.get("output") for layer, of in kept.items()}
