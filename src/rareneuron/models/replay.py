"""Patches many units of a layer at a time: the exact engine that verifies estimates, and truth for tests of them.

The rest of the network runs again for one context and a batch of changed units. What makes it faster than `patching`,
its oracle: the context ends at its last analysed token; it is run clean once for all layers, and blocks up to the layer
return what they computed then; where the layer's output is simply added to the residual stream, the layer itself isn't
run again but moved by rows of W_out; the last block's MLP runs at analysed tokens only, since nothing reads it
elsewhere; and losses are compared as differences (`maths.head`), so no effect is lost to the rounding of a loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rareneuron.maths.head import Head, LossChanges
from rareneuron.models.anatomy import Anatomy, part
from rareneuron.models.patching import resuming_at
from rareneuron.models.sites import Site

ROW_POSITIONS = 4096  # positions of a batch of units; more gains nothing on a CPU


class CleanContext:
    """One context as the clean model sees it: what replays from some sites begin with."""

    def __init__(
        self,
        anatomy: Anatomy,
        head: Head,
        sites: Sequence[Site],
        ids: Int[Tensor, " position"],
        position: Int[Tensor, " token"],
        *,
        resume_after: bool | None = None,
    ) -> None:
        """Run the clean model once for all sites.

        `ids` go beyond the last analysed position by at least one, its target. `resume_after`: whether layers
        themselves are moved, not run; None: where that is right.
        """
        self.anatomy, self.head, self.sites, self.position = anatomy, head, sites, position
        self.target = ids[position + 1]
        self.ids = ids[None, : int(position.max()) + 1]
        self.after = [site.adds_plainly if resume_after is None else resume_after for site in sites]
        with torch.inference_mode(), ExitStack() as stack:
            self.seen = [
                stack.enter_context(watching(site.module, block_before(anatomy, site.layer + after)))
                for site, after in zip(sites, self.after, strict=True)
            ]
            hidden = anatomy.backbone(self.ids, use_cache=False).last_hidden_state
            self.hidden = hidden[0, position]


def block_before(anatomy: Anatomy, layer: int) -> nn.Module | None:
    """Return the block whose output a layer reads; None at the embedding."""
    return anatomy.blocks[layer - 1] if layer else None


class Replay:
    """One context, ready to be run again from one site on."""

    def __init__(self, clean: CleanContext, mean_act: Float[Tensor, " column"], which: int = 0) -> None:
        """Take what the clean model put out at one of its sites; `mean_act` replaces it."""
        self.clean, self.anatomy, self.site = clean, clean.anatomy, clean.sites[which]
        self.ids, self.position, self.after = clean.ids, clean.position, clean.after[which]
        self.mean_act = mean_act.to(self.site.W_out)
        self.first = self.site.layer + self.after  # the first block that runs again
        self.shift = self.mean_act - clean.seen[which]["act"].reshape(self.ids.shape[1], -1)
        self.resume: Any = clean.seen[which].get("output")

    @property
    def batch_size(self) -> int:
        """How many units are replayed at a time."""
        return max(1, ROW_POSITIONS // self.ids.shape[1])

    @torch.inference_mode()
    def loss_changes(self, units: Int[Tensor, " unit"]) -> LossChanges:
        """Replace each unit by its mean at every position, one at a time; return what it does to the tokens."""
        parts = [
            self.clean.head.loss_changes(self.clean.hidden, self.changed_hidden(some), self.clean.target)
            for some in units.split(self.batch_size)
        ]
        return LossChanges(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def changed_hidden(self, units: Int[Tensor, " unit"]) -> Float[Tensor, "unit token d_hidden"]:
        """Return the hidden states at the analysed tokens with each unit replaced."""
        n, columns = len(units), self.site.columns(units)
        with ExitStack() as stack:
            if self.after:
                move = torch.einsum("tuw,uwd->utd", self.shift[:, columns], self.site.W_out[columns])
            else:
                move = None
                stack.enter_context(replacing_units(self.site, columns, self.mean_act))
            if self.first:
                stack.enter_context(resuming_at(self.anatomy, self.first, moved(self.resume, n, move)))
            if self.first < len(self.anatomy.blocks) and not self.changes_last_mlp:
                stack.enter_context(last_mlp_at(self.anatomy, self.position, n, self.ids.shape[1]))
            hidden = self.anatomy.backbone(self.ids.expand(n, -1), use_cache=False).last_hidden_state
        return hidden[:, self.position]

    @property
    def changes_last_mlp(self) -> bool:
        """Whether the neurons replaced are those of a last block that runs again."""
        last = len(self.anatomy.blocks) - 1
        return not self.after and self.site.kind == "neurons" and self.site.layer == last


def moved(output: Any, n: int, move: Tensor | None) -> Any:
    """Return a block's output for n rows, its residual stream moved."""
    resid = output[0] if isinstance(output, tuple) else output
    resid = resid.expand(n, -1, -1) if move is None else resid + move
    return (resid, *output[1:]) if isinstance(output, tuple) else resid


@contextmanager
def watching(module: nn.Module, block: nn.Module | None) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that keeps a projection's input, as "act", and what a block returns, as "output"."""
    seen: dict[str, Any] = {}

    def keep_act(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["act"] = args[0]

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        seen["output"] = output

    handles = [module.register_forward_pre_hook(keep_act)]
    if block is not None:
        handles.append(block.register_forward_hook(keep_output))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replacing_units(site: Site, columns: Int[Tensor, "unit width"], mean_act: Tensor) -> Iterator[None]:
    """Let row r of every batch have the columns of unit r replaced by their mean."""

    def replace(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = args[0].clone()
        rows = act.view(len(columns), -1, act.shape[-1])
        index = columns[:, None].expand(-1, rows.shape[1], -1)
        rows.scatter_(2, index, mean_act[columns][:, None].expand_as(index).to(rows))
        return (act, *args[1:])

    handle = site.module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_mlp_at(anatomy: Anatomy, position: Tensor, n: int, n_positions: int) -> Iterator[None]:
    """Let the last block's MLP compute at some positions only, and put out zeros elsewhere."""
    place = (torch.arange(n, device=position.device)[:, None] * n_positions + position).flatten()
    shapes: list[torch.Size] = []

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes[:] = [args[0].shape]
        return (args[0].reshape(-1, args[0].shape[-1])[place], *args[1:])

    def spread(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        whole = output.new_zeros(n * n_positions, output.shape[-1])
        whole[place] = output
        return whole.reshape(*shapes[0][:-1], -1)

    block, family = anatomy.blocks[-1], anatomy.family
    into = [family.mlp_in, *([family.mlp_gate] if family.mlp_gate else [])]
    handles = [part(block, path, family).register_forward_pre_hook(select) for path in into]
    handles.append(anatomy.mlp_out(-1).register_forward_hook(spread))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
