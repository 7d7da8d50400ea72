"""Released definitions through a study: what is stored, continued, refused and computed from the other kind of run."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rareneuron.conclude.trajectory import trajectory, trends
from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import rank_curve
from rareneuron.maths.released import ReleasedPhases, released_phases
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import read_json, read_tensors, write_json
from rareneuron.runs.rankings import SIGNS, fit_rankings, phases_are_whole, released_ranking, write_phases
from rareneuron.runs.run import Run
from rareneuron.study.study import run_study


@pytest.fixture(scope="module")
def effects():
    """600 neurons of both signs; mean |Δ| is not |mean Δ|."""
    rng = np.random.default_rng(0)
    signed = rng.standard_normal(600)
    return pd.DataFrame({"delta_loss": signed, "abs_delta_loss": np.abs(signed) + rng.random(600)})


def test_each_sign_is_ranked_by_its_signed_mean(effects):
    for ranking, sign in zip(SIGNS, (1, -1), strict=True):
        signed = sign * effects["delta_loss"].to_numpy()
        expected = released_phases(rank_curve(signed[signed > 0]))
        np.testing.assert_equal(asdict(released_ranking(effects, ranking)), asdict(expected))
    with pytest.raises(InvalidConfig, match=r"one sign.*'common'"):
        released_ranking(effects, "common")


def test_released_numbers_are_stored_whole(effects, tmp_path):
    found = fit_rankings(effects, {}, 0, "released")
    write_phases(tmp_path, found, "released")
    stored, arrays = read_json(tmp_path / "phases.json"), read_tensors(tmp_path / "phases.safetensors")
    assert list(stored) == ["definitions", *SIGNS]
    for ranking in SIGNS:
        assert stored[ranking]["kappa"] == found[ranking].kappa
        np.testing.assert_array_equal(arrays[f"{ranking}.slope"], found[ranking].slope)
        np.testing.assert_array_equal(arrays[f"{ranking}.deviation"], found[ranking].deviation)
    assert phases_are_whole(tmp_path, effects, "released")
    assert not phases_are_whole(tmp_path, effects, "paper")
    assert not phases_are_whole(tmp_path, effects.assign(delta_loss=2 * effects["delta_loss"]), "released")


@pytest.mark.slow  # all nulls of two fits
@pytest.mark.parametrize("made_with", ["paper", "released"])
def test_a_run_gives_the_other_definitions_too(effects, monkeypatch, tmp_path, made_with):
    monkeypatch.setattr(Run, "manifest", SimpleNamespace(config=StudyConfig(definitions=made_with, seed=3)))
    monkeypatch.setattr(Run, "effects", lambda *_: effects)
    monkeypatch.setattr(Run, "context_sums", lambda *_: {"n_tokens": np.ones(1, np.int64)})
    monkeypatch.setattr(Run, "folder", lambda *_: tmp_path)
    write_phases(tmp_path, fit_rankings(effects, Run(tmp_path).context_sums(), 3))
    run = Run(tmp_path)
    assert isinstance(run.phases(), Phases if made_with == "paper" else ReleasedPhases)
    paper, released = run.phases(definitions="paper"), run.phases(definitions="released")
    monkeypatch.setattr(Run, "manifest", SimpleNamespace(config=StudyConfig(seed=3)))
    np.testing.assert_equal(asdict(paper), asdict(Run(tmp_path).phases()))
    np.testing.assert_equal(asdict(released), asdict(released_ranking(effects, "boosting")))


def test_the_trajectory_follows_both_signs(effects, monkeypatch, tmp_path):
    monkeypatch.setattr(Run, "manifest", SimpleNamespace(config=StudyConfig(definitions="released")))
    monkeypatch.setattr(Run, "steps", [0, 1, 2])
    monkeypatch.setattr(Run, "step_record", lambda *_: SimpleNamespace(loss_rare=1.0, loss_common=1.0))
    monkeypatch.setattr(
        Run, "effects", lambda _, step: effects.assign(delta_loss=effects["delta_loss"] ** (2 * step + 1))
    )
    table = trajectory(Run(tmp_path))
    assert (table["definitions"] == "released").all()
    assert not {"outcome", "kappa", "plateau_end"} & set(table)
    for ranking in SIGNS:
        kappa = released_ranking(effects, ranking).kappa
        np.testing.assert_allclose(table[f"kappa_{ranking}"], kappa * np.array([1, 3, 5]))  # a power of every effect
    assert trends(table).set_index("column").loc["kappa_late_boosting", "tau"] == 1


# --- in a study


def test_a_study_records_its_definitions_and_refuses_others(config):
    run = run_study(config(steps=(0, 10), definitions="released"))
    assert run.manifest.config.definitions == run.definitions == "released"
    stored = read_json(run.path / "steps" / "10" / "phases.json")
    assert list(stored) == ["definitions", *SIGNS]
    assert "begins at rank 245" in stored["boosting"]["unavailable"]  # the tiny layer has 40 neurons
    assert (run.trajectory()["definitions"] == "released").all()
    assert run.trajectory()["kappa_boosting"].isna().all()
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    (run.path / "steps" / "10" / "phases.json").unlink()
    run_study(config(steps=(0, 10), definitions="released"))
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    with pytest.raises(RunFolderError, match="definitions: 'released' there, 'paper' now"):
        run_study(config(steps=(0, 10)))


def test_a_run_of_before_there_was_a_choice_is_continued(config):
    run = run_study(config(steps=(0,)))
    manifest = read_json(run.path / "run.json")
    del manifest["config"]["definitions"]
    write_json(run.path / "run.json", manifest)
    path = run.path / "steps" / "0" / "phases.json"
    stored = read_json(path)
    del stored["definitions"]
    write_json(path, stored)
    run = run_study(config(steps=(0, 10)))
    assert run.steps == [0, 10]
    assert run.definitions == "paper"
    assert read_json(run.path / "steps" / "0" / "phases.json")["definitions"] == "paper"
    with pytest.raises(RunFolderError, match="definitions: 'paper' there, 'released' now"):
        run_study(config(steps=(0, 10), definitions="released"))


def test_other_definitions_are_refused(config):
    with pytest.raises(InvalidConfig, match=r"definitions = 'ours' is not known\. Use one of: paper, released"):
        config(definitions="ours")
