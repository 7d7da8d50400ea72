"""Estimates of every layer against patching, unit by unit, and what a study does with them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from rareneuron.errors import InvalidConfig, NotMeasured, WrongEffects
from rareneuron.maths import certificate
from rareneuron.measure import layer_units, pieces
from rareneuron.measure.gradient_check import judged_check
from rareneuron.measure.layer_units import LayersWork
from rareneuron.measure.layers import wanted_sites
from rareneuron.models.adapter import load_model
from rareneuron.present.report import render_report
from rareneuron.present.summary import study_summary
from rareneuron.present.terminal import largest_units, layer_profiles
from rareneuron.runs.layers import read_layers
from rareneuron.runs.run import open_run
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import load_tokens
from rareneuron.study.study import run_study
from tests.tiny_series import study_config

pytestmark = pytest.mark.slow
STUDY = {"steps": (10,), "n_tokens": 60, "layers": "all"}


@pytest.fixture(scope="module", autouse=True)
def no_fewest_cells():
    """So small a model has hardly more cells than are patched at least."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "LEAST_CELLS", 0)
        yield


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    """A study of every unit of every layer, with every cell patched."""
    out = str(tmp_path_factory.mktemp("layers") / "run")
    return run_study(study_config(series, text_file, **STUDY, verify=1, out=out))


@pytest.fixture(scope="module")
def estimated(series, text_file, tmp_path_factory):
    """The same study with a tenth of the cells."""
    out = str(tmp_path_factory.mktemp("layers") / "run")
    return run_study(study_config(series, text_file, **STUDY, verify=0.1, out=out))


def test_with_every_cell_patched_means_are_those_of_a_study_of_one_layer(run, series, text_file, tmp_path):
    """The patching engine replaces by the mean over all positions as well."""
    found = run.layers()
    for layer in (0, 1):
        config = study_config(series, text_file, steps=(10,), n_tokens=60, layer=layer, reference="all")
        theirs = run_study(replace(config, engine="patching", out=str(tmp_path / f"{layer}"))).effects()
        ours = found[(found["kind"] == "neuron") & (found["layer"] == layer)]
        assert ours["unit"].tolist() == theirs["neuron"].tolist()
        for name in ("abs_delta_loss", "delta_loss", "abs_delta_loss_se", "common_abs_delta_loss", "common_delta_loss"):
            assert theirs[name].abs().max() > 1e-3, "the case is too tame to tell right from wrong"
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(ours["moved"], theirs["move"], rtol=1e-4)
    assert set(found["certainty"]) == {"exact"}
    assert not found["abs_delta_loss_half_width"].any()


def test_intervals_hold_the_exact_values(run, estimated):
    exact, found = run.layers(), estimated.layers()
    assert found["unit"].tolist() == exact["unit"].tolist()
    assert set(found["certainty"]) == {"exact", "verified"}
    for name in ("abs_delta_loss", "delta_loss", "common_abs_delta_loss"):
        inside = (found[name] - exact[name]).abs() <= found[f"{name}_half_width"] + 1e-6
        assert inside.mean() > 0.85, name
    assert (found["abs_delta_loss"] - exact["abs_delta_loss"]).abs().max() > 1e-5, "nothing was left to estimate"
    last = found[(found["layer"] == found["layer"].max())]
    assert (last["certainty"] == "exact").all()
    assert spearmanr(found["abs_delta_loss"], exact["abs_delta_loss"]).statistic > 0.9


def test_the_record_says_what_was_patched_and_the_closed_form_checks_the_gradient(estimated):
    record = read_layers(estimated.folder()).record
    assert 0 < record.n_patched < record.n_cells
    assert record.layers == (0, 1)
    assert record.check.spearman > 0.9
    assert record.check.n_tokens == 64


def test_without_verification_every_number_is_called_a_screen(series, text_file, tmp_path):
    run = run_study(study_config(series, text_file, **STUDY, verify=0, units="neurons", out=str(tmp_path / "run")))
    found = run.layers()
    assert set(found.loc[found["layer"] == 0, "certainty"]) == {"screen"}
    assert found.loc[found["layer"] == 0, "abs_delta_loss_half_width"].isna().all()
    assert set(found["kind"]) == {"neuron"}
    page = render_report(run)
    assert "Numbers marked screen are estimates that nothing verified" in page
    assert layer_profiles(run, None, "neurons")["screen"].tolist() == [True, False]
    told = {claim.name: claim for claim in run.claims().claims}
    assert told["layers-share"].verdict == "inconclusive"
    assert "a screen here" in told["layers-share"].sentence


def test_a_study_of_an_earlier_layer_may_not_rest_on_a_screen(config):
    with pytest.raises(InvalidConfig, match="would be a screen"):
        run_study(config(steps=(10,), n_tokens=60, layer=0, verify=0))


def test_an_interrupted_study_goes_on_from_its_pieces_with_the_same_bits(run, series, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_WORK", {"cpu": 2e6, "gpu": 2e6})
    settings = study_config(series, text_file, **STUDY, verify=0.1, units="neurons")
    whole = run_study(replace(settings, out=str(tmp_path / "whole"))).layers()
    from rareneuron.measure import layers

    estimated_piece, computed = layers.estimated_piece, []

    def dies_at_the_third(work, contexts, progress):
        computed.append(contexts)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return estimated_piece(work, contexts, progress)

    monkeypatch.setattr(layers, "estimated_piece", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_study(replace(settings, out=str(tmp_path / "killed")))
    again = run_study(replace(settings, out=str(tmp_path / "killed"))).layers()
    assert len(set(map(str, computed))) < len(computed), "no piece was begun again, so none was interrupted"
    assert computed.count(computed[0]) == 1, "a finished piece was computed again"
    pd.testing.assert_frame_equal(again, whole)


def test_a_study_interrupted_while_it_verifies_patches_no_cell_twice(series, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_WORK", {"cpu": 2e6, "gpu": 2e6})
    monkeypatch.setattr(layer_units, "CONTEXTS_AT_ONCE", 2)
    monkeypatch.setattr(layer_units, "WORTH_KEEPING", 0.0)
    settings = study_config(series, text_file, **STUDY | {"layers": (0,)}, verify=0.1, units="neurons")
    whole = run_study(replace(settings, out=str(tmp_path / "whole"))).layers()
    patched_sums, patched = layer_units.patched_sums, []

    def dies_at_the_fifth(anatomy, head, selection, context, replaced, kinds):
        if len(patched) == 5:
            patched.append(None)
            raise KeyboardInterrupt
        patched.append((context, [(of.units.tolist(), of.means[True].sum().item()) for of in replaced]))
        return patched_sums(anatomy, head, selection, context, replaced, kinds)

    monkeypatch.setattr(layer_units, "patched_sums", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run_study(replace(settings, out=str(tmp_path / "killed")))
    again = run_study(replace(settings, out=str(tmp_path / "killed"))).layers()
    before, after = patched[:5], patched[6:]
    assert not [cells for cells in before[:4] if cells in after], "cells that were stored were patched again"
    assert before[4] in after, "the interrupted block wasn't begun again"
    pd.testing.assert_frame_equal(again, whole)


def test_how_many_sites_share_a_clean_pass_changes_no_bit(estimated, series, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_units, "CLEAN_SPACE", 0.0)
    patched_sums, sizes = layer_units.patched_sums, []

    def counted(anatomy, head, selection, context, replaced, kinds):
        sizes.append(len(replaced))
        return patched_sums(anatomy, head, selection, context, replaced, kinds)

    monkeypatch.setattr(layer_units, "patched_sums", counted)
    alone = run_study(study_config(series, text_file, **STUDY, verify=0.1, out=str(tmp_path / "run")))
    assert set(sizes) == {1}
    pd.testing.assert_frame_equal(alone.layers(), estimated.layers())


def test_layers_are_chosen_by_number_and_heads_alone(series, text_file, tmp_path):
    settings = study_config(series, text_file, **STUDY | {"layers": (0, -1)}, units="heads", out=str(tmp_path / "run"))
    run = run_study(settings)
    found = run.layers()
    assert found["unit"].str.match(r"^[01]\.h\d+$").all()
    assert set(layer_profiles(run, None, "both")["layer"]) == {0, 1}
    assert "looked at attention heads alone" in " ".join(c.sentence for c in run.claims().claims)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": (7,)}, "no layer 7"),
        ({"layers": ()}, "are no layers"),
        ({"layers": (0, 0)}, "each once"),
        ({"verify": 1.5}, "must be a share of the cells"),
        ({"units": "atoms"}, "not known"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(config, settings, words):
    with pytest.raises(Exception, match=words):
        run_study(config(**STUDY | settings))


def test_memory_that_cannot_hold_the_sums_is_refused(run, series):
    adapter = load_model(series / "step10", device="cpu")
    given = {"adapter": adapter, "selection": load_tokens(RunStore(run.path)).selection, "verify": 0.1, "seed": 0}
    given |= {
        "sites": wanted_sites(adapter, run.manifest.config),
        "store": pieces.PieceStore(run.path, {}),
        "pieces": (),
    }
    with pytest.raises(InvalidConfig, match=r"84 units take 0\.0 GiB, .*larger --memory"):
        LayersWork(**given, memory=1000)
    LayersWork(**given, memory=10**8)


def test_pages_and_commands_show_the_layers(estimated, invoke):
    page = render_report(estimated)
    assert "Every layer" in page
    assert "Layers side by side, neurons." in page
    top = largest_units(estimated, None, "neurons", 5)
    assert top["abs_delta_loss"].is_monotonic_decreasing
    printed = invoke("layers", estimated.path, "--top", 3)
    assert printed.exit_code == 0
    assert len(printed.output.splitlines()) == 4
    profile = invoke("layers", estimated.path, "--profile", "--json")
    assert '"share"' in profile.output
    names = {claim.name for claim in estimated.claims().claims}
    assert {"last-layer-special", "layers-share"} <= names


def test_summary_and_trajectory_know_the_layers(estimated):
    line = next(line for line in study_summary(estimated)["lines"] if line.startswith("Layers: "))
    assert "the largest neuron of all layers is" in line
    assert "cells patched" in line
    row = estimated.trajectory().iloc[-1]
    assert row["share_layer_0"] + row["share_layer_1"] == pytest.approx(1)
    assert row["common_share_layer_1"] != row["share_layer_1"]


def test_a_study_of_one_layer_says_how_to_get_the_others(config):
    run = run_study(config(steps=(10,), n_tokens=60))
    with pytest.raises(NotMeasured, match="--layers all"):
        run.layers()
    assert 'id="layers"' not in render_report(run)
    assert not {"last-layer-special", "layers-share"} & {claim.name for claim in run.claims().claims}


def test_the_check_refuses_estimates_that_rank_otherwise(series, text_file, run):
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((20, 50)) * np.exp(rng.standard_normal(50))
    assert judged_check(exact * 1.1, exact).spearman > 0.99
    with pytest.raises(WrongEffects, match="rank neurons otherwise"):
        judged_check(rng.permutation(exact.T).T, exact)


def test_the_engine_is_chosen_by_what_serves_and_the_mean_by_the_layer(config, tmp_path):
    last = run_study(config(steps=(10,), n_tokens=60))
    assert (last.manifest.config.engine, last.manifest.config.reference) == ("closed-form", "analysed")
    early = run_study(config(steps=(10,), n_tokens=60, layer=0, out=str(tmp_path / "early")))
    assert (early.manifest.config.engine, early.manifest.config.reference) == ("gradient", "all")
    assert early.step_record().audit.check.spearman > 0.9
    again = run_study(config(steps=(10,), n_tokens=60, layer=0, out=str(tmp_path / "early")))
    assert again.manifest.config == early.manifest.config
    assert open_run(early.path).effects().equals(early.effects())


def test_a_model_without_closed_form_falls_to_gradients(config, monkeypatch):
    from rareneuron.errors import UnsupportedModel
    from rareneuron.measure import engines

    def no_readout(adapter, layer):
        raise UnsupportedModel("no readout")

    first = replace(engines.BY_THEMSELVES[0], refuse_model=no_readout)
    monkeypatch.setattr(engines, "BY_THEMSELVES", (first, *engines.BY_THEMSELVES[1:]))
    run = run_study(config(steps=(10,), n_tokens=60))
    assert run.manifest.config.engine == "gradient"
