"""Claims of whole studies: on random models nothing is supported; what is kept is what is computed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from rareneuron.conclude.evidence import claims_of, with_shared_groups, with_warning
from rareneuron.conclude.evidence.case import Case
from rareneuron.conclude.hypotheses import HYPOTHESES
from rareneuron.maths.equal_loss import effective_number, weights_at_equal_loss
from rareneuron.runs.files import read_tensors, write_tensors
from rareneuron.runs.layout import EXPERIMENT_ARRAYS
from rareneuron.runs.run import open_run
from rareneuron.study.study import run_study
from tests.tiny_series import study_config


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("claims") / "run"
    return run_study(study_config(series, text_file, n_random=1000, out=str(out)))


def test_on_random_models_hardly_anything_is_supported(run, series, text_file, tmp_path):
    """Three random models; the last as the end of its series, which has a trend too.

    At 5 % a model, two of three with anything supported have a chance of 0.7 %.
    """
    supported = {}
    for step in (0, 2, 10):
        alone = study_config(series, text_file, steps=(step,), n_random=1000, out=str(tmp_path / f"run{step}"))
        claims = (run if step == 10 else run_study(alone)).claims()
        assert claims.step == step
        assert {claim.name for claim in claims.claims} <= {h.name for h in HYPOTHESES}
        tested = [claim for claim in claims.claims if claim.p is not None]
        assert len(tested) >= 8  # geometry, spectrum, specificity, joint: or the test would say nothing
        assert all(claim.sentence for claim in claims.claims)
        supported[step] = [claim.name for claim in claims.claims if claim.verdict == "supported"]
    assert sum(len(names) > 0 for names in supported.values()) <= 1, supported


def test_claims_are_computed_again_where_they_are_lost_and_come_out_the_same(run, series, text_file):
    path = run.path / "claims.json"
    before = path.read_bytes()
    path.unlink()
    run_study(study_config(series, text_file, n_random=1000, out=str(run.path)))
    assert path.read_bytes() == before
    assert open_run(run.path).claims() == run.claims()


def test_every_claim_and_check_says_how_few_contexts_stand_behind_it(run):
    claims = run.claims()
    warned = with_warning(claims, 7)
    for before, after in zip((*claims.claims, *claims.checks), (*warned.claims, *warned.checks), strict=True):
        assert after.sentence.startswith(before.sentence)
        assert "Only 7 contexts stand behind these numbers, and 40 are needed" in after.sentence
    assert with_warning(claims, 40) == claims


def test_the_record_states_its_thresholds(run):
    record = json.loads((run.path / "claims.json").read_text())
    assert record["smallest_effects"] == {h.name: h.smallest for h in HYPOTHESES}
    assert record["level"] == 0.05
    assert record["definitions"] == "paper"


@pytest.mark.slow
def test_patching_says_what_it_cannot_tell(series, text_file, tmp_path):
    options = {"steps": (10,), "engine": "patching", "layer": 0, "n_tokens": 30, "out": str(tmp_path / "run")}
    run = run_study(study_config(series, text_file, **options))
    joint = next(claim for claim in run.claims().claims if claim.name == "joint-sum")
    assert joint.verdict == "inconclusive"
    assert "After layer 0 come 1 more blocks" in joint.sentence


def test_released_definitions_are_not_mixed_with_the_papers_claims(series, text_file, tmp_path):
    run = run_study(study_config(series, text_file, steps=(10,), definitions="released", out=str(tmp_path / "run")))
    of = {claim.name: claim for claim in run.claims().claims}
    for name in ("correlation-within", "dimension", "cosine-across", "heavy-tail-W_out"):
        assert of[name].verdict == "inconclusive"
        assert "released" in of[name].sentence
    assert of["joint-random"].p is not None  # made of effects, which no definitions change


def test_groups_of_a_random_model_do_not_repeat(run):
    check = next(check for check in run.claims().checks if check.name == "split-half-groups")
    assert 0 <= check.low <= check.value <= check.high < 1
    assert check.holds is False


@pytest.mark.parametrize("n_eff", [0.0, np.nan])
def test_rare_and_common_tokens_of_no_common_loss_are_not_compared(run, tmp_path, n_eff):
    weights = weights_at_equal_loss(np.linspace(8, 9, 30), np.linspace(1, 2, 20))[1]
    assert effective_number(weights) == 0
    assert effective_number(np.ones(20)) == 20
    copied = open_run(shutil.copytree(run.path, tmp_path / "run"))
    arrays = dict(read_tensors(copied.folder() / EXPERIMENT_ARRAYS))
    write_tensors(copied.folder() / EXPERIMENT_ARRAYS, arrays | {"common_n_eff": np.array([100.0, n_eff])})
    of = {claim.name: claim for claim in claims_of(Case(copied)).claims}
    assert of["rare-specific-loss"].verdict == "inconclusive"
    assert "common targets at equal loss are worth" in of["rare-specific-loss"].sentence


def test_claims_say_where_matched_groups_are_the_group_itself(run):
    """Of a layer of 40 neurons, groups of 6 matched to a group hold few of its own; here all of them are made to be."""
    case = Case(run)
    claims, groups = claims_of(case), run.groups()
    itself = np.concatenate([np.tile(getattr(groups, role), (200, 1)) for role in ("boosting", "suppressing")])
    same = replace(groups, matched_random=itself)
    told = with_shared_groups(claims, same)
    for before, after in zip(claims.claims, told.claims, strict=True):
        beside_matched = any("matched" in test.null for test in before.tests)
        assert ("matched to the boosting one, 100 % are its own" in after.sentence) == beside_matched, before.name
        assert after.sentence.startswith(before.sentence)
    assert any(any("matched" in test.null for test in claim.tests) for claim in claims.claims)
