"""Estimates the effects of all units of all layers at once, by backward passes instead of patching (`first_order`).

One forward pass of the backbone and 1 + R backward passes serve a batch of analysed tokens, whatever the number of
units: each token is a row of its own, cut where the token stands, since nothing later can matter to it. Rows are sorted
by length, so little is padded. The vocabulary is in no backward pass: cotangents are formed at the normed hidden state
(`maths.head`). Attention needs no special care, as rows are independent and passes are single ones.
Oracle: patching with the shift times ε, for every architecture; `replay` for whole effects.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from rareneuron.maths.first_order import FirstOrder, first_order
from rareneuron.maths.head import Head
from rareneuron.models.anatomy import Anatomy
from rareneuron.models.sites import Site

ROW_POSITIONS = 2048  # of one batch of rows, where memory allows


@dataclass(frozen=True, kw_only=True)
class SiteMeans:
    """What the clean model puts out at a site, over all positions of all contexts."""

    mean: Float64[Tensor, " column"]
    mean_later: Float64[Tensor, " column"]  # without the first two positions of a context
    median_norm: float  # of the residual stream behind the layer


@dataclass(frozen=True, kw_only=True)
class TokenEstimates:
    """The estimates of a batch of tokens, one `FirstOrder` a site."""

    index: Int[np.ndarray, " token"]  # which of the tokens asked for
    loss: Float64[Tensor, " token"]  # clean
    of_site: tuple[FirstOrder, ...]


def site_means(
    anatomy: Anatomy, sites: Sequence[Site], windows: Int[np.ndarray, "context position"], contexts_per_batch: int = 8
) -> tuple[SiteMeans, ...]:
    """Return the mean activations of every site over all positions, from one pass over all contexts."""
    ids = anatomy.token_ids(windows)
    sums, later = ([torch.zeros(len(s.W_out), dtype=torch.float64, device=ids.device) for s in sites] for _ in "12")
    norms: list[list[Tensor]] = [[] for _ in sites]
    for batch in ids.split(contexts_per_batch):
        with torch.inference_mode(), watching_sites(anatomy, sites) as seen:
            anatomy.backbone(batch, use_cache=False)
            for i in range(len(sites)):
                act = seen.act[i].reshape(*batch.shape, -1).double()
                sums[i] += act.sum((0, 1))
                later[i] += act[:, 2:].sum((0, 1))
                norms[i].append(seen.resid[i].double().norm(dim=-1).flatten())
    n, n_later = ids.numel(), max(1, ids[:, 2:].numel())
    return tuple(
        SiteMeans(mean=s / n, mean_later=rest / n_later, median_norm=torch.cat(norm).median().item())
        for s, rest, norm in zip(sums, later, norms, strict=True)
    )


def estimates(
    anatomy: Anatomy,
    head: Head,
    sites: Sequence[Site],
    windows: Int[np.ndarray, "context position"],
    tokens: tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]],
    mean_acts: Sequence[Tensor],  # [column] of each site
    *,
    n_draws: int = 1,
    key: int = 0,
    row_positions: int = ROW_POSITIONS,
) -> Iterator[TokenEstimates]:
    """Yield what gradients say about every unit of the sites at the tokens (context row, position), in batches.

    A token's target is the id after it. A unit's replacement is its entry of `mean_acts`, at every position. Signs are
    drawn by `key` and each token's place, so an estimate doesn't depend on the other tokens asked for.
    """
    ids = anatomy.token_ids(windows)
    context, position = (np.asarray(x, np.int64) for x in tokens)
    for index in batches_by_length(position, row_positions):
        rows, at = (torch.from_numpy(x[index]).to(ids.device) for x in (context, position))
        signs = random_signs(context[index], position[index], n_draws, len(head.W_U), key)
        target, signs_here = ids[rows, at + 1], torch.from_numpy(signs).to(head.W_U)
        with following(anatomy, sites) as seen:
            hidden = anatomy.backbone(ids[rows, : int(at.max()) + 1], use_cache=False).last_hidden_state
            chosen = hidden[torch.arange(len(at), device=at.device), at]
            cotangents = head.cotangents(chosen.detach(), target, signs_here)
            passes = [
                torch.autograd.grad(chosen, seen.act, cotangent, retain_graph=i < n_draws)
                for i, cotangent in enumerate(cotangents)
            ]
        found = []
        for i, (site, mean_act) in enumerate(zip(sites, mean_acts, strict=True)):
            shape = (*hidden.shape[:2], -1)
            shift = mean_act.to(seen.act[i]) - seen.act[i].detach().reshape(shape)
            grads = torch.stack([grad[i].reshape(shape) for grad in passes])
            found.append(first_order(shift, grads, at, site.W_out, site.width))
        log_p = head(chosen.detach()).double().log_softmax(-1)
        loss = -log_p.gather(1, target[:, None])[:, 0]
        yield TokenEstimates(index=index, loss=loss, of_site=tuple(found))


def positions_within(anatomy: Anatomy, sites: Sequence[Site], memory: int, longest: int) -> int:
    """Return how many positions a batch of rows may have, with the graph of its forward pass in the memory.

    At least one row of the longest context has to fit.
    """
    columns = sum(len(site.W_out) for site in sites if site.kind == "neurons")
    graph = 4 * (24 * len(anatomy.blocks) * anatomy.d_model + 8 * columns)  # bytes a position, in float32
    return int(min(ROW_POSITIONS, max(longest, memory / graph)))


def batches_by_length(position: Int[np.ndarray, " token"], row_positions: int) -> Iterator[Int[np.ndarray, " token"]]:
    """Yield tokens of similar position together, the last ones first, with at most `row_positions` in their rows."""
    order = np.argsort(-position, kind="stable")
    while len(order):
        n = max(1, row_positions // int(position[order[0]] + 1))
        yield order[:n]
        order = order[n:]


def random_signs(
    context: Int[np.ndarray, " token"], position: Int[np.ndarray, " token"], n_draws: int, vocab: int, key: int
) -> Float[np.ndarray, "draw token vocab"]:
    """Return independent ±1 for each draw, token and word, drawn by a key and the token's place."""
    signs = np.empty((n_draws, len(context), vocab), np.float32)
    for i, place in enumerate(zip(context.tolist(), position.tolist(), strict=True)):
        drawn = np.random.default_rng([key, *place]).integers(0, 256, (n_draws, -(-vocab // 8)), np.uint8)
        signs[:, i] = 2.0 * np.unpackbits(drawn, axis=1, count=vocab) - 1
    return signs


@dataclass
class Seen:
    """What a forward pass leaves at each site."""

    act: list[Tensor]
    resid: list[Tensor]


@contextmanager
def watching_sites(anatomy: Anatomy, sites: Sequence[Site], *, follow: bool = False) -> Iterator[Seen]:
    """Yield what the last forward pass put out at each site; with `follow` gradients can be asked for there."""
    seen = Seen([torch.empty(0)] * len(sites), [torch.empty(0)] * len(sites))

    def keep_act(i: int, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = args[0] if args[0].requires_grad or not follow else args[0].detach().requires_grad_()
        seen.act[i] = act
        return (act, *args[1:])

    def keep_resid(i: int, module: nn.Module, args: object, output: Any) -> None:
        seen.resid[i] = output[0] if isinstance(output, tuple) else output

    handles = []
    for i, site in enumerate(sites):
        handles.append(site.module.register_forward_pre_hook(partial(keep_act, i)))
        handles.append(anatomy.blocks[site.layer].register_forward_hook(partial(keep_resid, i)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def following(anatomy: Anatomy, sites: Sequence[Site]) -> Iterator[Seen]:
    """Let a forward pass be followed back to the sites, and to no parameter."""
    needed = [p for p in anatomy.model.parameters() if p.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), watching_sites(anatomy, sites, follow=True) as seen:
            yield seen
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)
