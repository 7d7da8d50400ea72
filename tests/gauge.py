"""Models with other weights and the same function: signs and scales of neurons changed, or neurons put elsewhere."""

import torch
from transformers.pytorch_utils import Conv1D

from rareneuron.models.anatomy import anatomy, part


def projections(model, layer):
    """The layer's projections into its neurons, then the one out of them."""
    found = anatomy(model)
    block, family = found.blocks[layer], found.family
    gate = None if family.mlp_gate is None else part(block, family.mlp_gate, family)
    return part(block, family.mlp_in, family), gate, part(block, family.mlp_out, family)


def rows(projection):
    """A projection's weight, a row for each output."""
    return projection.weight.T if isinstance(projection, Conv1D) else projection.weight


@torch.no_grad()
def scale(projection, factor):
    """Multiply what a projection gives to each neuron."""
    rows(projection).mul_(factor[:, None].to(projection.weight))
    if projection.bias is not None:
        projection.bias.mul_(factor.to(projection.bias))


@torch.no_grad()
def rescale(model, layer, factor, *, degree=1, by_gate=False):
    """Make each neuron's activation `factor` as large, and its row of W_out as much smaller.

    `degree` is that of φ, to which a factor before it is raised.
    """
    into, gate, out = projections(model, layer)
    scale(gate if by_gate else into, factor.abs() ** (1 / degree) * factor.sign())
    rows(out).div_(factor.to(out.weight))


@torch.no_grad()
def reorder(model, layer, order):
    """Put neuron `order[i]` in place i."""
    *into, out = projections(model, layer)
    for projection in into:
        if projection is not None:
            rows(projection).copy_(rows(projection)[order].clone())
            if projection.bias is not None:
                projection.bias.copy_(projection.bias[order].clone())
    rows(out).copy_(rows(out)[:, order].clone())
