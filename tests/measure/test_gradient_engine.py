"""The gradient engine against the patching engine, in studies of an earlier layer."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from rareneuron.errors import InvalidConfig, WrongEffects
from rareneuron.maths.certificate import Certificate
from rareneuron.measure.engines.gradient import audit_of, joined_evidence
from rareneuron.present.report import render_report
from rareneuron.present.summary import audit_line
from rareneuron.study.study import run_study
from tests.tiny_series import study_config

pytestmark = pytest.mark.slow
STUDY = {"steps": (10,), "layer": 0, "reference": "all", "n_tokens": 60}


@pytest.fixture(scope="module")
def truth(series, text_file, tmp_path_factory):
    """The run of the patching engine."""
    out = str(tmp_path_factory.mktemp("patched") / "run")
    return run_study(study_config(series, text_file, **STUDY, engine="patching", out=out)).effects()


def test_verified_effects_of_an_earlier_layer_are_those_of_patching(config, truth):
    """Random models bend far more than trained ones; intervals know."""
    run = run_study(config(**STUDY, engine="gradient"))
    found = run.effects()
    assert set(found["certainty"]) <= {"exact", "verified"}
    assert spearmanr(found["abs_delta_loss"], truth["abs_delta_loss"]).statistic > 0.8
    for name in ("abs_delta_loss", "delta_loss", "common_abs_delta_loss", "common_delta_loss"):
        inside = np.abs(found[name] - truth[name]) <= found[f"{name}_half_width"] + 1e-5
        assert inside.mean() > 0.8, name
    record = run.step_record()
    assert record.engine == "gradient"
    assert record.audit.n_pairs > 0
    assert "patched cells" in audit_line(record)
    assert "half_width" in render_report(run)


def test_a_budget_for_every_cell_gives_what_patching_gives(config, truth):
    run = run_study(config(**STUDY, engine="gradient", verify=1))
    found = run.effects()
    assert set(found["certainty"]) == {"exact"}
    for name in ("abs_delta_loss", "delta_loss", "delta_loss_se", "common_abs_delta_loss", "abs_shift"):
        assert np.abs(truth[name]).max() > 1e-3, "the case is too tame to tell right from wrong"
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-4, atol=1e-5)
    assert not found["abs_delta_loss_half_width"].any()
    sums = run.context_sums()["abs_delta_loss"].sum(0) / run.context_sums()["n_tokens"].sum()
    np.testing.assert_allclose(sums, found["abs_delta_loss"], rtol=1e-4)


def test_the_last_layer_takes_means_of_either_kind(config):
    ours = run_study(config(steps=(10,), n_tokens=60, engine="gradient")).effects()
    theirs = run_study(config(steps=(10,), n_tokens=60, out=str(config().run_folder) + "-closed")).effects()
    inside = np.abs(ours["abs_delta_loss"] - theirs["abs_delta_loss"]) <= ours["abs_delta_loss_half_width"] + 1e-5
    assert inside.mean() > 0.8
    assert spearmanr(ours["abs_delta_loss"], theirs["abs_delta_loss"]).statistic > 0.9


def test_a_mean_over_analysed_tokens_is_refused_for_an_earlier_layer(config):
    with pytest.raises(InvalidConfig, match=r"Layer 0 acts through later positions.*--reference all"):
        run_study(config(**STUDY | {"reference": "analysed"}, engine="gradient"))


def test_estimates_that_say_nothing_are_refused():
    exact = np.ones((2, 3, 4))
    found = {"estimate": exact[:, 0], "half_width": exact[:, 0], "undecided": np.zeros(0, int), "rank": 1}
    known = np.ones((3, 4), bool)
    n_tokens = np.array([2, 1, 1])
    good = Certificate(**found, by_context=exact, residual=0.1 * exact, known=known)
    assert audit_of(good, n_tokens).rms_error < 0.1
    with pytest.raises(WrongEffects, match="say nothing about this layer"):
        audit_of(Certificate(**found, by_context=exact, residual=1.1 * exact, known=known), n_tokens)


def test_evidence_of_pieces_is_joined_in_order():
    parts = [
        {"contexts": np.arange(2), "move": np.array([[1.0, 3.0]]), "rare_mean": np.array([5.0])},
        {"contexts": np.arange(2, 5), "move": np.array([[2.0, 0.5]]), "rare_mean": np.array([5.0])},
    ]
    joined = joined_evidence(parts)
    assert joined["contexts"].tolist() == [0, 1, 2, 3, 4]
    assert joined["move"].tolist() == [[1.0, 3.0], [2.0, 0.5]]
    assert joined["rare_mean"].tolist() == [5.0]
