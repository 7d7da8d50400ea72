"""Lists the engines by name. To add one, write a file here and add its record to `ENGINES`; tests compare it with
patching.
"""

from rareneuron.errors import InvalidConfig
from rareneuron.measure.engines.base import EngineKind
from rareneuron.measure.engines.closed_form import CLOSED_FORM
from rareneuron.measure.engines.gradient import GRADIENT
from rareneuron.measure.engines.patching import PATCHING
from rareneuron.runs.config import ENGINE_NAMES

ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (CLOSED_FORM, GRADIENT, PATCHING)}


def engine_kind(name: str) -> EngineKind:
    """Return the record of an engine."""
    if name not in ENGINES:
        raise InvalidConfig(
            f"The run asks for the engine {name!r}, which this program doesn't have, so its effects can't be computed. "
            f"Use one of: {', '.join(ENGINES)}."
        )
    return ENGINES[name]


def register(kind: EngineKind) -> None:
    """Make an engine known under its name, to studies and to `StudyConfig`."""
    if kind.name in ENGINES:
        raise InvalidConfig(f"There is an engine {kind.name!r} already. Give the new one another name.")
    ENGINES[kind.name] = kind
    ENGINE_NAMES.append(kind.name)
