"""The report's sections below its first screen, from top to bottom: one function each, from findings to blocks."""

from collections.abc import Callable

from rareneuron.present.blocks import Section
from rareneuron.present.findings import Findings
from rareneuron.present.sections.checkpoints import checkpoints_section
from rareneuron.present.sections.claims import claims_section
from rareneuron.present.sections.geometry import geometry_section
from rareneuron.present.sections.layers import layers_section
from rareneuron.present.sections.mechanism import mechanism_section
from rareneuron.present.sections.method import method_section
from rareneuron.present.sections.neurons import neurons_section
from rareneuron.present.sections.phases import phases_section
from rareneuron.present.sections.provenance import provenance_section
from rareneuron.present.sections.reproduce import reproduce_section
from rareneuron.present.sections.spectrum import spectrum_section
from rareneuron.present.sections.summary import summary_section
from rareneuron.present.sections.targets import targets_section
from rareneuron.present.sections.tasks import tasks_section

SECTIONS: tuple[Callable[[Findings], Section | None], ...] = (  # None: the run has nothing of the kind
    summary_section,
    claims_section,
    neurons_section,
    mechanism_section,
    phases_section,
    checkpoints_section,
    layers_section,
    geometry_section,
    spectrum_section,
    tasks_section,
    targets_section,
    method_section,
    provenance_section,
    reproduce_section,
)
