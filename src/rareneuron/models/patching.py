"""The effect of a neuron by brute force: replace it, run the rest of the network, compare (Eq. 3-4).

Serves every layer and architecture, one pass over the tokens per neuron, and is the oracle of the closed form.
Four things make it bearable: blocks before the layer return what they computed once, nothing is computed after a
context's last token asked for, logits are computed only at these tokens, and memory is that of the clean run. Logits
come out of the model's own forward, so soft-capping and scales are in them. A difference of two losses keeps nothing
below the rounding of the model's dtype, 1e-6 nats in float32: load the model in float64 to judge anything by it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from rareneuron.errors import OutOfRange
from rareneuron.models.adapter import Adapter
from rareneuron.models.anatomy import Anatomy


class PatchedEffect(NamedTuple):
    """What replacing one neuron does to each token, in nats. Positive `delta_loss`: the ablation hurts."""

    neuron: int
    delta_loss: Float64[Tensor, " token"]  # L(ablated) - L(clean)
    kl: Float64[Tensor, " token"]  # KL(clean || ablated)


@dataclass(frozen=True, kw_only=True)
class CleanBatch:
    """A few contexts, and what the clean model computes for them."""

    ids: Int[Tensor, "context position"]
    before: Any  # what the block before the layer returned; None at layer 0
    place: Int[Tensor, " token"]  # context · n_positions + position
    order: Int[Tensor, " token"]  # index among all the tokens asked for
    target: Int[Tensor, " token"]
    log_p: Float64[Tensor, "token vocab"]


def patched_loss_changes(
    adapter: Adapter,
    windows: Int[np.ndarray, "context position"] | Int[Tensor, "context position"],
    tokens: tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]],
    mean_act: Float[Tensor, " neuron"],
    layer: int = -1,
    neurons: Iterable[int] | None = None,
    *,
    contexts_per_batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Iterator[PatchedEffect]:
    r"""Replace each neuron by its mean at every position of every context, one at a time.

    $\Delta_i = L(\text{ablated}) - L(\text{clean})$ at the tokens (context row, position); a token's target is the
    id after it. At the last layer this equals ablating at that token alone; at earlier layers later positions also
    read the ablated ones. Holds token · vocab float64 numbers: give it as many contexts at a time as fit. `progress`
    is called with each neuron that is done.
    """
    anatomy = adapter.anatomy
    layer = anatomy.layer_index(layer)
    d_mlp = adapter.n_neurons(layer)
    chosen = list(range(d_mlp)) if neurons is None else list(neurons)
    if len(mean_act) != d_mlp or not all(0 <= neuron < d_mlp for neuron in chosen):
        raise OutOfRange(
            f"Layer {layer} has {d_mlp} neurons; {len(mean_act)} means were given, for neurons "
            f"{min(chosen, default=0)}…{max(chosen, default=0)}. Give one mean per neuron, and neurons of "
            f"0…{d_mlp - 1}."
        )
    ids = anatomy.token_ids(windows)
    context, position = (torch.as_tensor(x).to(ids.device, torch.long) for x in tokens)
    if len(context) and not (
        int(context.min()) >= 0
        and int(context.max()) < ids.shape[0]
        and int(position.min()) >= 0
        and int(position.max()) < ids.shape[1] - 1
    ):
        raise OutOfRange(
            f"Tokens are a context of 0…{ids.shape[0] - 1} and a position of 0…{ids.shape[1] - 2} here: the last "
            "position of a window has no next token to predict. Some of those given lie outside."
        )
    return patched_effects(anatomy, ids, context, position, mean_act, layer, chosen, contexts_per_batch, progress)


def patched_effects(
    anatomy: Anatomy,
    ids: Tensor,
    context: Tensor,
    position: Tensor,
    mean_act: Tensor,
    layer: int,
    neurons: list[int],
    contexts_per_batch: int,
    progress: Callable[[int], None] | None,
) -> Iterator[PatchedEffect]:
    """Yield the effects of each neuron; arguments are those of `patched_loss_changes`, checked and on the device."""
    batches = list(clean_batches(anatomy, ids, context, position, layer, contexts_per_batch))
    for neuron in neurons:
        delta_loss = torch.empty(len(context), dtype=torch.float64, device=ids.device)
        kl = torch.empty_like(delta_loss)
        for batch in batches:
            with anatomy.replacing(layer, neuron, mean_act[neuron]), resuming_at(anatomy, layer, batch.before):
                log_q = log_probabilities(anatomy, batch.ids, batch.place)
            change = batch.log_p - log_q
            delta_loss[batch.order] = change.gather(1, batch.target[:, None])[:, 0]
            kl[batch.order] = (batch.log_p.exp() * change).sum(-1)
        yield PatchedEffect(neuron, delta_loss, kl)
        if progress is not None:
            progress(neuron)


def clean_batches(
    anatomy: Anatomy, ids: Tensor, context: Tensor, position: Tensor, layer: int, contexts_per_batch: int
) -> Iterator[CleanBatch]:
    """Run the clean model over batches of contexts of about equal ends, and keep what patching them needs."""
    last = torch.full((len(ids),), -1, device=ids.device).scatter_reduce(0, context, position, "amax")
    for of_one_end in last.argsort(stable=True).split(contexts_per_batch):
        rows = of_one_end.sort().values
        order = torch.isin(context, rows).nonzero()[:, 0]
        if not len(order):
            continue
        cut = ids[rows, : int(last[rows].max()) + 1]
        place = torch.searchsorted(rows, context[order]) * cut.shape[1] + position[order]
        with keeping_output(anatomy, layer) as kept:
            log_p = log_probabilities(anatomy, cut, place)
        yield CleanBatch(
            ids=cut,
            before=kept.get("output"),
            place=place,
            order=order,
            target=ids[context[order], position[order] + 1],
            log_p=log_p,
        )


@torch.inference_mode()
def log_probabilities(
    anatomy: Anatomy, ids: Int[Tensor, "context position"], place: Int[Tensor, " token"]
) -> Float64[Tensor, "token vocab"]:
    """Log-probabilities by the model's own logits, in float64, at some places of a batch only."""

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[place][None], *args[1:])

    handle = anatomy.unembedding.register_forward_pre_hook(select)
    try:
        logits = anatomy.model(ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits[0].double().log_softmax(-1)


@contextmanager
def keeping_output(anatomy: Anatomy, layer: int) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that keeps, as "output", what the block before `layer` returned last."""
    kept: dict[str, Any] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept["output"] = output

    handles = [anatomy.blocks[layer - 1].register_forward_hook(keep)] if layer else []
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resuming_at(anatomy: Anatomy, layer: int, before: Any) -> Iterator[None]:
    """Let blocks before `layer` compute nothing and return `before` while the context is open."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        return before

    # An instance attribute hides the class's method; libraries that dispatch models set one of their own.
    hidden = [(block, block.__dict__.get("forward")) for block in anatomy.blocks[:layer]]
    try:
        for block, _ in hidden:
            block.forward = skip
        yield
    finally:
        for block, own in hidden:
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own
