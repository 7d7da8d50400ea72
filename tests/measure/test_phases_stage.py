"""Phases of the four rankings: fitted from tables and sums, stored, read back, added to runs that lack them."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import InvalidConfig, NotMeasured, RunFolderError
from rareneuron.maths.phases import Phases
from rareneuron.measure import checkpoint as checkpoint_module
from rareneuron.runs.files import read_json
from rareneuron.runs.rankings import N_DRAWS, RANKINGS, as_record, fit_rankings, layer_curve, read_phases, write_phases
from rareneuron.runs.run import open_run
from rareneuron.study.study import run_study
from tests.tiny_series import study_config

N, PLATEAU, CONTEXTS = 512, 24, 60


def planted(rng, lift=1.0):
    """log|Δ| of a plateau, a power law of κ 0.4 and a decay, in the layer's shuffled order."""
    rank = np.arange(1, N + 1)
    y = -0.4 * np.log(rank) + lift * (rank <= PLATEAU) - np.maximum(rank / (0.3 * N) - 1, 0)
    return np.exp(y)[rng.permutation(N)]


@pytest.fixture(scope="module")
def layer():
    """Effects and sums per context: three phases at rare targets, no plateau at common ones, two signs of unlike size.

    The last context holds no common target.
    """
    rng = np.random.default_rng(0)
    n_tokens, common_n_tokens = rng.integers(1, 9, CONTEXTS), rng.integers(1, 9, CONTEXTS)
    common_n_tokens[-1] = 0
    is_boosting = np.arange(N) % 4 > 0
    absolute, common = planted(rng), planted(rng, lift=0)
    means = {"abs_delta_loss": absolute, "delta_loss": np.where(is_boosting, 0.5, -0.5) * absolute}
    sums = {name: noisy(rng, mean, n_tokens) for name, mean in means.items()}
    sums |= {"common_abs_delta_loss": noisy(rng, common, common_n_tokens)}
    sums |= {"n_tokens": n_tokens, "common_n_tokens": common_n_tokens}
    table = {name: sums[name].sum(0) / n_tokens.sum() for name in means}
    table["common_abs_delta_loss"] = sums["common_abs_delta_loss"].sum(0) / common_n_tokens.sum()
    return pd.DataFrame(table), {k: v.astype(np.float32) if v.ndim == 2 else v for k, v in sums.items()}


def noisy(rng, mean, n_tokens):
    return rng.gamma(4.0, 0.25, (len(n_tokens), len(mean))) * mean * n_tokens[:, None]


@pytest.fixture(scope="module")
def fitted(layer):
    return fit_rankings(*layer, seed=0)


def test_each_ranking_sorts_what_it_says(layer):
    effects, _ = layer
    assert layer_curve(effects).value[0] == effects["abs_delta_loss"].max()
    for ranking, sign in (("boosting", 1), ("suppressing", -1)):
        curve, of_sign = layer_curve(effects, ranking), sign * effects["delta_loss"].to_numpy()
        assert set(curve.neuron) == set(np.flatnonzero(of_sign > 0))
        np.testing.assert_array_equal(curve.value, of_sign[curve.neuron])
        assert (np.diff(curve.value) <= 0).all()
    common = layer_curve(effects, "common")
    np.testing.assert_array_equal(common.value, effects["common_abs_delta_loss"].to_numpy()[common.neuron])


def test_phases_that_were_planted_are_found_and_others_not(fitted):
    assert fitted["all"].outcome == "three phases"
    assert PLATEAU / 1.5 < fitted["all"].plateau_end < PLATEAU * 1.5
    assert fitted["common"].outcome == "no plateau"
    assert (fitted["boosting"].n_neurons, fitted["suppressing"].n_neurons) == (384, 128)
    assert min(fitted["all"].null_p.values()) == 1 / (1 + N_DRAWS)


def test_one_sign_has_no_band(fitted):
    """Its means may cross 0 in a draw, and log 0 would decide the interval."""
    for ranking in ("boosting", "suppressing"):
        assert fitted[ranking].band is None
        assert fitted[ranking].intervals == {}


def test_the_bootstrap_resamples_the_ranked_neurons_own_sums(layer, fitted):
    """A band of the wrong columns would not lie around δ."""
    for ranking in ("all", "common"):
        low, high = fitted[ranking].band
        inside = (low <= fitted[ranking].deviation) & (fitted[ranking].deviation <= high)
        assert inside.mean() > 0.9, ranking


def test_a_seed_gives_the_same_phases_and_another_seed_others(layer, fitted):
    np.testing.assert_equal(asdict(fit_rankings(*layer, seed=0)["all"]), asdict(fitted["all"]))
    assert fit_rankings(*layer, seed=1)["all"].intervals != fitted["all"].intervals


@pytest.mark.parametrize("ranking", RANKINGS)
def test_phases_are_read_back_as_they_were_found(layer, fitted, tmp_path, ranking):
    write_phases(tmp_path, fitted)
    np.testing.assert_equal(asdict(read_phases(tmp_path, ranking, layer[0])), asdict(fitted[ranking]))
    json.dumps(as_record(fitted[ranking]), allow_nan=False)


def test_fewer_than_two_contexts_leave_the_nulls_alone(layer, tmp_path):
    effects, sums = layer
    few = {k: v[-2:] for k, v in sums.items()}  # of these two, one holds common targets
    effects = effects.assign(  # as if these contexts were all
        **{
            f"{kind}{name}": few[f"{kind}{name}"].sum(0) / few[f"{kind}n_tokens"].sum()
            for kind in ("", "common_")
            for name in ("delta_loss", "abs_delta_loss")
            if f"{kind}{name}" in few
        }
    )
    fitted = fit_rankings(effects, few, seed=0)
    assert fitted["all"].band is not None
    assert (fitted["common"].band, fitted["common"].intervals) == (None, {})
    assert set(fitted["common"].null_p) == set(fitted["all"].null_p)
    write_phases(tmp_path, fitted)
    assert read_phases(tmp_path, "common", effects).band is None


def test_what_cannot_be_ranked_is_said(layer):
    effects, sums = layer
    fitted = fit_rankings(effects.drop(columns="common_abs_delta_loss").assign(delta_loss=0.0), sums, seed=0)
    assert isinstance(fitted["all"], Phases)
    assert "No neuron is boosting" in str(fitted["boosting"])
    assert "No neuron is suppressing" in str(fitted["suppressing"])
    assert "No common target" in str(fitted["common"])
    with pytest.raises(InvalidConfig, match=r"no ranking 'rare'.*all, boosting, suppressing, common"):
        layer_curve(effects, "rare")


# --- in a study


@pytest.fixture(scope="module")
def original(series, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("phases") / "run"
    return run_study(study_config(series, text_file, steps=(0, 10), out=str(out))).path


@pytest.fixture
def finished(original, config):
    """A copy of a finished run, where `config` has its run folder."""
    return open_run(shutil.copytree(original, config().run_folder))


def test_a_study_stores_phases_or_why_there_are_none(finished):
    for step in (0, 10):
        stored = read_json(finished.path / "steps" / str(step) / "phases.json")
        assert list(stored) == ["definitions", *RANKINGS]
        assert stored["definitions"] == "paper"
        assert "fewer than 128" in stored["all"]["unavailable"]  # the tiny layer has 40
    with pytest.raises(NotMeasured, match="40 neurons"):
        finished.phases(0, "common")
    assert finished.step_record(10).timings["phases"] > 0
    boosting = finished.rank_curve(10, "boosting")
    np.testing.assert_array_equal(boosting.value, finished.effects(10)["delta_loss"].to_numpy()[boosting.neuron])


@pytest.mark.parametrize("name", ["phases.json", "phases.safetensors"])
def test_missing_phases_are_added_and_effects_kept(finished, config, monkeypatch, name):
    folder = finished.path / "steps" / "0"
    before = {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()}
    (folder / name).unlink()
    with pytest.raises(RunFolderError, match=rf"{name}.*Run the same study again"):
        open_run(finished.path).phases(0)
    monkeypatch.setattr(checkpoint_module, "layer_effects", lambda *_, **__: pytest.fail("effects computed again"))
    (folder / f".{name}.1.partial").write_text("half")
    run_study(config(steps=(0, 10)))
    assert {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()} == before
