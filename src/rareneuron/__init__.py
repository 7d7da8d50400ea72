"""Finds the MLP neurons of a language model that decide how well it predicts rare tokens.

`import rareneuron as rn` loads neither torch nor transformers nor matplotlib: names come when they are used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rareneuron.data.rarity import RareTypes, rare_types
    from rareneuron.errors import RareNeuronError
    from rareneuron.maths.ablation import AblationEffects, delta_loss
    from rareneuron.maths.claims import Claims
    from rareneuron.maths.geometry import Geometry, effective_dimension, geometry
    from rareneuron.maths.groups import NeuronGroups, neuron_groups
    from rareneuron.maths.phases import ContextSums, Phases, fit_phases
    from rareneuron.maths.rank_curve import RankCurve, rank_curve
    from rareneuron.maths.readout import Readout
    from rareneuron.maths.released import ReleasedPhases, released_phases
    from rareneuron.maths.spectrum import Spectrum, alpha_hill, spectrum
    from rareneuron.models.adapter import Adapter, adapt, load_model
    from rareneuron.pipeline.config import StudyConfig
    from rareneuron.pipeline.run import Run, open_run
    from rareneuron.pipeline.study import run_study
    from rareneuron.present.compare import SideBySide, compare
    from rareneuron.present.figures import figure

_HOMES = {
    "RareTypes": "data.rarity",
    "rare_types": "data.rarity",
    "RareNeuronError": "errors",
    "AblationEffects": "maths.ablation",
    "delta_loss": "maths.ablation",
    "Claims": "maths.claims",
    "Geometry": "maths.geometry",
    "effective_dimension": "maths.geometry",
    "geometry": "maths.geometry",
    "NeuronGroups": "maths.groups",
    "neuron_groups": "maths.groups",
    "ContextSums": "maths.phases",
    "Phases": "maths.phases",
    "fit_phases": "maths.phases",
    "RankCurve": "maths.rank_curve",
    "rank_curve": "maths.rank_curve",
    "Readout": "maths.readout",
    "ReleasedPhases": "maths.released",
    "released_phases": "maths.released",
    "Spectrum": "maths.spectrum",
    "alpha_hill": "maths.spectrum",
    "spectrum": "maths.spectrum",
    "Adapter": "models.adapter",
    "adapt": "models.adapter",
    "load_model": "models.adapter",
    "StudyConfig": "pipeline.config",
    "Run": "pipeline.run",
    "open_run": "pipeline.run",
    "run_study": "pipeline.study",
    "SideBySide": "present.compare",
    "compare": "present.compare",
    "figure": "present.figures",
}

__all__ = [
    "AblationEffects",
    "Adapter",
    "Claims",
    "ContextSums",
    "Geometry",
    "NeuronGroups",
    "Phases",
    "RankCurve",
    "RareNeuronError",
    "RareTypes",
    "Readout",
    "ReleasedPhases",
    "Run",
    "SideBySide",
    "Spectrum",
    "StudyConfig",
    "adapt",
    "alpha_hill",
    "compare",
    "delta_loss",
    "effective_dimension",
    "figure",
    "fit_phases",
    "geometry",
    "load_model",
    "neuron_groups",
    "open_run",
    "rank_curve",
    "rare_types",
    "released_phases",
    "run_study",
    "spectrum",
]  # fmt: skip

__version__ = version("rareneuron")


def __getattr__(name: str) -> Any:
    """Import a public name at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rareneuron' has no attribute {name!r}")
    value = getattr(import_module(f"rareneuron.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
