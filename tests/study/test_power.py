"""What a dry run says about text that is needed: what was measured, beside what the plan has."""

import pytest

from rareneuron.conclude.hypotheses import hypothesis
from rareneuron.runs.config import StudyConfig
from rareneuron.study.estimate import plan_as_dict, plan_as_text
from rareneuron.study.plan import plan_study
from rareneuron.study.power import MEASURED, OF_LAYERS, ON_ALL, needed_for


@pytest.mark.parametrize(
    ("n_contexts", "per_context", "expected"),
    [(400, 5.0, 120), (100, 5.0, 50), (1000, 60.0, 40), (1, 5.0, 1)],  # 600 tokens, half, the fewest, all
)
def test_a_claim_has_the_sample_of_the_experiments(n_contexts, per_context, expected):
    for one in needed_for(StudyConfig(), n_contexts, per_context):
        if one.claim in ON_ALL:
            assert (one.contexts, one.tokens) == (n_contexts, n_contexts * per_context)
            continue
        assert (one.contexts, one.tokens) == (expected, expected * per_context)
        assert one.claim not in OF_LAYERS


def test_claims_about_layers_have_all_contexts():
    of = {one.claim: one for one in needed_for(StudyConfig(layers="all"), 400, 5.0)}
    assert set(of) == set(MEASURED)
    assert of["layers-share"].contexts == 400
    assert of["joint-sum"].contexts == 120
    for claim in MEASURED:
        assert hypothesis(claim).smallest > 0  # or there is no effect that matters


def test_a_dry_run_says_what_claims_would_take(tmp_path):
    plan = plan_study(StudyConfig(steps=(4096,), n_tokens=400, out=str(tmp_path / "run")))
    text = plan_as_text(plan)
    assert "the embedded series" in text
    for one in plan_as_dict(plan)["power"]:
        takes = next(iter(one["needed"].values()))
        assert f"{one['claim']} {takes['contexts']:,} ({takes['tokens']:,})" in text
        assert f"has {one['contexts']:,} ({one['tokens']:,})" in text
