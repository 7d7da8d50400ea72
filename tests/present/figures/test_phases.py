"""The figure of phases: what is drawn is what was found, and what is missing is said in words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rareneuron.present.figures import FIGURES, figure
from rareneuron.runs.rankings import fit_rankings, write_phases
from rareneuron.runs.run import Run
from tests.present.planted import DECAY, OF_PHASES, PLATEAU, N
from tests.present.reading import words

MakeRun = Callable[..., Run]


def test_the_phases_frame_holds_what_was_found(planted: MakeRun) -> None:
    run = planted(steps=(0, 512))
    frame, found = FIGURES["phases"].frame(run), run.phases()
    assert found.outcome == "three phases"
    assert found.plateau_end is not None
    assert PLATEAU / 1.5 < found.plateau_end < PLATEAU * 1.5
    np.testing.assert_array_equal(frame["rank"], np.arange(1, N + 1))
    np.testing.assert_allclose(np.log(frame["abs_delta_loss"] / frame["line"]), found.deviation, atol=1e-12)
    facts = frame.iloc[0]
    assert (facts["checkpoint"], facts["verdict"], facts["reason"]) == ("Step 512", "three phases", "")
    for name in ("kappa", "plateau_end", "decay_start"):
        assert facts[name] == getattr(found, name)
        assert (facts[f"{name}_low"], facts[f"{name}_high"]) == found.intervals[name]


def test_phases_are_named_over_their_ranks_and_nothing_overlaps(planted: MakeRun) -> None:
    drawn = figure(planted(), "phases")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    names = {t.get_text(): t for t in axes.texts}
    assert {"plateau", "power law", "decay", "Step 512: three phases"} == set(names)
    bounds = [1, PLATEAU, DECAY, N]
    for i, name in enumerate(("plateau", "power law", "decay")):
        assert bounds[i] < names[name].xy[0] < bounds[i + 1] * 1.2
    boxes = [t.get_window_extent() for t in (*axes.texts, axes.title)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x1 <= drawn.bbox.x1 for box in boxes)


def test_a_phase_that_was_not_found_is_not_named(planted: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planted()
    found = run.phases()
    missing = replace(found, outcome="no plateau", plateau_end=None, null_p=found.null_p | {"no plateau": 0.4})
    monkeypatch.setattr(Run, "phases", lambda *_: missing)
    said = words(run, "phases")
    assert "no plateau (curves without one look the same, p = 0.40)" in said
    assert "| plateau" not in said
    assert "| decay" in said


@pytest.mark.parametrize("name", OF_PHASES)
def test_too_few_neurons_are_said_in_words(make_run: MakeRun, name: str) -> None:
    run = make_run()
    for folder in (run.path / "steps").iterdir():
        contexts = {"abs_delta_loss": np.ones((3, 60)), "delta_loss": np.ones((3, 60)), "n_tokens": np.ones(3, int)}
        contexts |= {"common_abs_delta_loss": np.ones((3, 60)), "common_n_tokens": np.ones(3, int)}
        write_phases(folder, fit_rankings(run.effects(), contexts, 0))
    assert "fewer than 128" in words(run, name)


@pytest.mark.parametrize("name", OF_PHASES)
def test_a_run_older_than_its_phases_is_said_in_words_that_name_no_folder(make_run: MakeRun, name: str) -> None:
    run = make_run()
    said = words(run, name)
    assert "Run the same study again" in said
    assert str(run.path) not in said


@pytest.mark.parametrize("name", OF_PHASES)
def test_figures_of_verdicts_say_that_released_definitions_have_none(planted: MakeRun, name: str) -> None:
    assert "constants that nothing tests" in words(planted(definitions="released"), name)
