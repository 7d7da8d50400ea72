"""The section on neurons: what the groups are and how well matched ones match."""

from collections.abc import Callable

from rareneuron.present.findings import findings
from rareneuron.present.sections.neurons import neurons_section
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run
from tests.present.reading import texts

MakeRun = Callable[..., Run]


def test_the_neurons_section_says_how_well_matched_groups_match(make_run: MakeRun) -> None:
    run = make_run()
    assert "99 groups of neurons alike in mean |activation|, which may hold" in texts(neurons_section(findings(run)))
    path = run.path / "steps" / "512" / "groups.json"
    found = {"group": 0.4, "matched": 0.37, "uniform": 0.1, "shared": 0.48, "distinct": 263}
    write_json(path, read_json(path) | {"matching": {"boosting": found}})
    words = texts(neurons_section(findings(run)))
    assert "a mean of 0.400, its matched groups of 0.370, random ones of 0.100; 48 % of a matched group" in words
    assert "together hold 263 neurons." in words
