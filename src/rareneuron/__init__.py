"""Finds the MLP neurons of a language model that decide how well it predicts rare tokens.

`import rareneuron as rn` loads neither torch nor transformers nor matplotlib: names come when they are used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rareneuron.data.rarity import RareTypes, rare_types
    from rareneuron.errors import RareNeuronError
    from rareneuron.maths.ablation import delta_loss
    from rareneuron.maths.activations import effective_dimension, geometry
    from rareneuron.maths.claims import Claims
    from rareneuron.maths.geometry import Geometry
    from rareneuron.maths.groups import NeuronGroups, neuron_groups
    from rareneuron.maths.pair_effects import AblationEffects
    from rareneuron.maths.phase_fit import fit_phases
    from rareneuron.maths.phases import ContextSums, Phases
    from rareneuron.maths.rank_curve import RankCurve, rank_curve
    from rareneuron.maths.readout import Readout
    from rareneuron.maths.released import ReleasedPhases, released_phases
    from rareneuron.maths.spectrum import Spectrum, alpha_hill
    from rareneuron.maths.weights import spectrum
    from rareneuron.models.adapter import Adapter, adapt, load_model
    from rareneuron.present.compare import SideBySide, compare
    from rareneuron.present.figures import figure
    from rareneuron.runs.config import StudyConfig
    from rareneuron.runs.run import Run, open_run
    from rareneuron.study.study import run_study
    from rareneuron.use.ablated import ablated
    from rareneuron.use.attempt import Attempt, try_text
    from rareneuron.use.evaluate import evaluate_swap
    from rareneuron.use.export import export_model
    from rareneuron.use.harness import evaluate_tasks

_HOMES = {
    "RareTypes": "data.rarity",
    "rare_types": "data.rarity",
    "RareNeuronError": "errors",
    "AblationEffects": "maths.pair_effects",
    "delta_loss": "maths.ablation",
    "Claims": "maths.claims",
    "Geometry": "maths.geometry",
    "effective_dimension": "maths.activations",
    "geometry": "maths.activations",
    "NeuronGroups": "maths.groups",
    "neuron_groups": "maths.groups",
    "ContextSums": "maths.phases",
    "Phases": "maths.phases",
    "fit_phases": "maths.phase_fit",
    "RankCurve": "maths.rank_curve",
    "rank_curve": "maths.rank_curve",
    "Readout": "maths.readout",
    "ReleasedPhases": "maths.released",
    "released_phases": "maths.released",
    "Spectrum": "maths.spectrum",
    "alpha_hill": "maths.spectrum",
    "spectrum": "maths.weights",
    "Adapter": "models.adapter",
    "adapt": "models.adapter",
    "load_model": "models.adapter",
    "StudyConfig": "runs.config",
    "Run": "runs.run",
    "open_run": "runs.run",
    "run_study": "study.study",
    "Attempt": "use.attempt",
    "ablated": "use.ablated",
    "evaluate_swap": "use.evaluate",
    "evaluate_tasks": "use.harness",
    "export_model": "use.export",
    "try_text": "use.attempt",
    "SideBySide": "present.compare",
    "compare": "present.compare",
    "figure": "present.figures",
}

__all__ = [
    "AblationEffects",
    "Adapter",
    "Attempt",
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
    "ablated",
    "adapt",
    "alpha_hill",
    "compare",
    "delta_loss",
    "effective_dimension",
    "evaluate_swap",
    "evaluate_tasks",
    "export_model",
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
    "try_text",
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
