"""The section on method: what it says of definitions and of the mean activation is what the run did."""

from collections.abc import Callable

import pytest

from rareneuron.present.blocks import Definitions, Paragraph
from rareneuron.present.findings import findings
from rareneuron.present.sections.method import method_section
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run, open_run

MakeRun = Callable[..., Run]


def paragraphs(run: Run) -> str:
    """All paragraphs of the section."""
    return " ".join(b.text for b in method_section(findings(run)).blocks if isinstance(b, Paragraph))


def mean_ablation(run: Run) -> str:
    """What the section says of mean ablation."""
    items = next(b.items for b in method_section(findings(run)).blocks if isinstance(b, Definitions))
    return dict(items)["mean ablation"]


def test_released_definitions_reach_phases_geometry_and_spectrum(make_run: MakeRun) -> None:
    run = make_run(definitions="released")
    assert read_json(run.folder() / "geometry.json")["definitions"] == "released"
    assert set(run.spectrum()["definitions"]) == {"released"}
    said = paragraphs(run)
    assert "“released” for phases, for the geometry of groups and for the spectra of their weights" in said
    assert "every other quantity" not in said
    assert "“released”" not in paragraphs(make_run())


@pytest.mark.parametrize(("reference", "common"), [("analysed", True), ("analysed", False), ("all", True)])
def test_common_targets_have_a_mean_of_their_own(make_run: MakeRun, reference: str, common: bool) -> None:
    run = make_run(common=common)
    manifest = read_json(run.path / "run.json")
    manifest["config"]["reference"] = reference
    write_json(run.path / "run.json", manifest)
    said = mean_ablation(open_run(run.path))
    assert ("over the analysed rare tokens" in said) == (reference == "analysed")
    assert ("Common targets are ablated to a mean of their own" in said) == (reference == "analysed" and common)
    assert ("the same for common targets" in said) == (reference == "all")
