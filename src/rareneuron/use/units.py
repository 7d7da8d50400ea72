"""Says which units are meant: by name, by a group of a run, or by a random group like it, and what replaces them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig, NotMeasured
from rareneuron.models.sites import UnitKind
from rareneuron.runs.layers import read_layers
from rareneuron.runs.run import Run, open_run

Place = tuple[int, UnitKind]  # layer from 0, and kind of unit
NAME = re.compile(r"(\d+)\.(h?)(\d+)")
GROUPS = ("boosting", "suppressing", "random", "matched-boosting", "matched-suppressing")


@dataclass(frozen=True)
class Units:
    """Some units of some layers."""

    index: Mapping[Place, Int[np.ndarray, " unit"]]

    @property
    def names(self) -> list[str]:
        """Return the printed names, layer by layer."""
        return [f"{layer}.{'h' if kind == 'heads' else ''}{i}" for (layer, kind), of in self.index.items() for i in of]

    def __len__(self) -> int:
        return sum(len(of) for of in self.index.values())


def named_units(names: str | Iterable[str]) -> Units:
    """Return the units of names such as `29.511`, or `3.h2` for a head; a text may hold several with commas between.

    >>> named_units("29.511,2.7,3.h2").names
    ['29.511', '2.7', '3.h2']
    """
    parts = [part.strip() for part in (names.split(",") if isinstance(names, str) else names)]
    found: dict[Place, list[int]] = {}
    for part in parts:
        if not part:
            continue
        match = NAME.fullmatch(part)
        if match is None:
            raise InvalidConfig(
                f"{part!r} names no unit. A neuron is `layer.index`, such as 29.511, and a head `layer.hN`, such as "
                "3.h2, both counted from 0."
            )
        place: Place = (int(match[1]), "heads" if match[2] else "neurons")
        found.setdefault(place, []).append(int(match[3]))
    return Units({place: np.unique(np.array(index)) for place, index in found.items()})


def group_units(run: Run, group: str, step: int | None = None, seed: int = 0) -> Units:
    """Return a group of a run: boosting, suppressing, or a random one; of these `seed` says which.

    `random` are drawn from the whole layer, `matched-boosting` and `matched-suppressing` from neurons that move the
    residual stream as far as the group's.
    """
    groups = run.groups(step)
    if group not in GROUPS:
        raise InvalidConfig(f"There is no group {group!r}. Those of a run: {', '.join(GROUPS)}.")
    if group in ("boosting", "suppressing"):
        index = getattr(groups, group)
    elif group == "random":
        index = groups.random[seed % len(groups.random)]
    else:
        role = group.removeprefix("matched-")
        if role not in groups.matched:
            raise NotMeasured(f"The run {run.path} has no matched groups, so there is none like the {role} one.")
        index = groups.matched[role][seed % len(groups.matched[role])]
    return Units({(run.manifest.layer, "neurons"): np.unique(index)})


def chosen_units(
    run: Run | None,
    group: str | None = None,
    units: str | Iterable[str] | Units | None = None,
    step: int | None = None,
    seed: int = 0,
) -> Units:
    """Return the units that a group or names stand for; refuse both or neither."""
    if (group is None) == (units is None):
        raise InvalidConfig(
            "Say which units are meant, in one way: a `group` of the run (boosting, suppressing, random, "
            "matched-boosting, matched-suppressing), or `units` by name, such as '29.511,2.7'."
        )
    if isinstance(units, Units):
        return units
    if units is not None:
        return named_units(units)
    if run is None:
        raise InvalidConfig(f"The group {group!r} is one of a run, and none was given. Give the run, or `units`.")
    assert group is not None
    return group_units(run, group, step, seed)


def opened_run(run: Run | str | Path | None) -> Run | None:
    """Return a run that is given as a run, a folder or not at all."""
    return open_run(run) if isinstance(run, str | Path) else run


def stored_means(run: Run, place: Place, step: int | None = None) -> Float[np.ndarray, " column"]:
    """Return what replaces the units of a place: n̄ at rare targets, or the mean over all positions of other layers.

    There is a number for each column of the projection that reads the units.
    """
    layer, kind = place
    if kind == "neurons" and layer == run.manifest.layer:
        return run.effects(step)["mean_act"].to_numpy(np.float64, copy=True)
    name = f"{kind}.mean.{layer}"
    if run.has_layers(step):
        sums = read_layers(run.folder(step)).sums
        if name in sums:
            return sums[name].astype(np.float64)
    raise NotMeasured(
        f"The run {run.path} holds no mean of the {kind} of layer {layer}, so nothing can take their place. Study that "
        'layer (`--layers all`), or replace by zero (`to="zero"`).'
    )
