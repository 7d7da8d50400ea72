"""Lists the engines by name. To add one, write a file here and add its record to `ENGINES`; tests compare it with
patching.
"""

from collections.abc import Sequence
from contextlib import suppress

from rareneuron.errors import InvalidConfig, RareNeuronError, UnsupportedModel
from rareneuron.measure.engines.base import Asked, EngineKind
from rareneuron.measure.engines.closed_form import CLOSED_FORM
from rareneuron.measure.engines.gradient import GRADIENT
from rareneuron.measure.engines.patching import PATCHING
from rareneuron.models.adapter import Adapter
from rareneuron.runs.config import AUTO, ENGINE_NAMES

BY_THEMSELVES = (CLOSED_FORM, GRADIENT, PATCHING)  # engines that a study chooses from, in this order
ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in BY_THEMSELVES}


def engine_kind(name: str) -> EngineKind:
    """Return the record of an engine."""
    if name not in ENGINES:
        raise InvalidConfig(
            f"The run asks for the engine {name!r}, which this program doesn't have, so its effects can't be computed. "
            f"Use one of: {', '.join(ENGINES)}."
        )
    return ENGINES[name]


def serving_kinds(asked: Asked) -> tuple[EngineKind, ...]:
    """Return the engines that can serve a layer by what is known before weights are loaded, the best one first.

    The closed form comes first, then gradients, then patching; other engines are used where they are asked for. What
    isn't a matter of the architecture, such as too little memory, is raised.
    """
    found: list[EngineKind] = []
    for kind in BY_THEMSELVES:
        with suppress(RareNeuronError if found else UnsupportedModel):  # what only might be used refuses nothing
            kind.refuse(asked)
            found.append(kind)
    return tuple(found)


def kinds_to_try(name: str, asked: Asked) -> tuple[EngineKind, ...]:
    """Return the engine of a name, or those that may serve a layer if the choice is left to us; refuse what can't."""
    if name == AUTO:
        return serving_kinds(asked)
    kind = engine_kind(name)
    kind.refuse(asked)
    return (kind,)


def first_that_serves(kinds: Sequence[EngineKind], adapter: Adapter, layer: int) -> EngineKind:
    """Return the first engine that a loaded model's probes allow; raise what the last one says where none does."""
    for kind in kinds[:-1]:
        with suppress(UnsupportedModel):
            kind.refuse_model(adapter, layer)
            return kind
    kinds[-1].refuse_model(adapter, layer)
    return kinds[-1]


def register(kind: EngineKind) -> None:
    """Make an engine known under its name, to studies and to `StudyConfig`."""
    if kind.name in ENGINES:
        raise InvalidConfig(f"There is an engine {kind.name!r} already. Give the new one another name.")
    ENGINES[kind.name] = kind
    ENGINE_NAMES.append(kind.name)
