"""Switches units of a model off, in anybody's code, for as long as a `with` lasts."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rareneuron.errors import InvalidConfig, OutOfRange
from rareneuron.models.anatomy import anatomy
from rareneuron.models.memory import opened
from rareneuron.models.sites import Site, site_of
from rareneuron.runs.run import Run
from rareneuron.use.units import Place, Units, chosen_units, opened_run, stored_means

REPLACEMENTS = ("mean", "zero", "resample")


@contextmanager
def ablated(
    model: Any,
    run: Run | str | Path | None = None,
    *,
    group: str | None = None,
    units: str | Iterable[str] | Units | None = None,
    to: str = "mean",
    scale: float | int = 1.0,
    step: int | None = None,
    seed: int = 0,
) -> Iterator[Units]:
    r"""Let a model run with some units replaced: $n' = n + s \, (r - n)$ at every position, with r what replaces n.

    Hooks on the projections that read the units do it. They go when the block ends, also by an exception; blocks may be
    nested, and then the inner one sees what the outer one left. Generation with a cache, batches with padding, half
    precision and any device work as without. Nothing changes for an empty set of units.

    Args:
        model: A `transformers` model, or a wrapper that holds one.
        run: A run of that model, or its folder. It says who is in a group and what the means are; not needed for
            `units` with `to` zero or resample.
        group: boosting, suppressing, random, matched-boosting or matched-suppressing.
        units: Names such as `"29.511,2.7,3.h2"` in place of a group.
        to: What replaces a unit: its mean over rare targets (of other layers than the run's, over all positions), zero,
            or what it puts out at a random place of the same batch.
        scale: s. 1 replaces, 0.5 goes half of the way, and −1 goes as far the other way.
        step: The run's checkpoint; the last one by default.
        seed: Which of the random groups, and which places are drawn.

    Yields:
        The units, whose `names` say which they are.

    Raises:
        InvalidConfig: Units are named in no way or in two, or `to` is not known.
        OutOfRange: The model has no such layer or unit.
        NotMeasured: The run has no such group, or no mean of these units.

    Source:
        Eq. 3, and the paper's limitations, which ask what the neurons do elsewhere.

    Example:
        >>> import torch
        >>> import rareneuron as rn
        >>> from rareneuron.embedded import SERIES
        >>> model = rn.load_model(SERIES / "step4096", device="cpu").model
        >>> ids = torch.arange(5, 25)[None]
        >>> with torch.inference_mode(), rn.ablated(model, units="2.702", to="zero") as units:
        ...     without = model(ids).logits
        >>> units.names, bool((without == model(ids).logits).all())
        (['2.702'], False)
    """
    if to not in REPLACEMENTS:
        raise InvalidConfig(f"to = {to!r} is not known. Use one of: {', '.join(REPLACEMENTS)}.")
    run = opened_run(run)
    chosen = chosen_units(run, group, units, step, seed)
    parts = anatomy(opened(model))
    with ExitStack() as stack:
        for place, index in chosen.index.items():
            site = checked_site(parts, place, index)
            columns = site.columns(torch.from_numpy(index)).flatten()
            value = replacement(run, place, to, step, columns)
            rng = np.random.default_rng([seed, place[0]])
            handle = site.module.register_forward_pre_hook(Replacing(columns, value, scale, rng))
            stack.callback(handle.remove)
        yield chosen


def checked_site(parts: Any, place: Place, index: np.ndarray) -> Site:
    """Return where the units of a layer put out what they compute; refuse units that it doesn't have."""
    layer, kind = place
    site = site_of(parts, layer, kind)
    if len(index) and index.max() >= site.n_units:
        raise OutOfRange(
            f"Layer {layer} has {site.n_units:,} {kind}, counted from 0, so there is no {site.name(int(index.max()))}. "
            "Is this the model of that run?"
        )
    return site


def replacement(run: Run | None, place: Place, to: str, step: int | None, columns: Tensor) -> Tensor | None:
    """Return what takes the place of some columns; None where it is drawn from the batch."""
    if to == "resample":
        return None
    if to == "zero":
        return torch.zeros(len(columns), dtype=torch.float64)
    if run is None:
        raise InvalidConfig(
            "The mean of a unit is that of a run, and none was given. Give the run of this model, or replace by zero "
            '(`to="zero"`).'
        )
    return torch.from_numpy(stored_means(run, place, step))[columns]


class Replacing:
    """A hook that replaces some columns of what a projection reads."""

    def __init__(self, columns: Tensor, value: Tensor | None, scale: float | int, rng: np.random.Generator) -> None:
        self.columns, self.value, self.scale, self.rng = columns, value, scale, rng

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the arguments with the columns replaced; the tensor that came is left alone."""
        act = args[0]
        columns = self.columns.to(act.device)
        there = act.index_select(-1, columns)
        goal = self.drawn(there) if self.value is None else self.value.to(act.device)
        changed = there + self.scale * (goal - there.to(goal.dtype))
        out = act.clone()
        out[..., columns] = changed.to(act.dtype)
        return (out, *args[1:])

    def drawn(self, there: Tensor) -> Tensor:
        """Return the columns' values at random places of the batch, one place for all columns of a position."""
        flat = there.reshape(-1, there.shape[-1])
        order = torch.from_numpy(self.rng.permutation(len(flat))).to(there.device)
        return flat[order].reshape(there.shape).double()
