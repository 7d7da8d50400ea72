"""What a dry run expects, by hand; benchmarks/estimates.py holds it against real studies."""

from dataclasses import replace

import pytest

from rareneuron.measure.engines import engine_kind
from rareneuron.measure.engines.base import Workload
from rareneuron.runs.config import StudyConfig
from rareneuron.study.estimate import RARE_PER_CONTEXT, computed_share, estimate, rare_per_context
from rareneuron.study.plan import plan_study

WORK = Workload(forward=1e9, resumed=1.0, n_contexts=2, n_tokens=4, n_neurons=100, d_model=8, vocab=10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"n_tokens": 160}, 2),  # 80 contexts
        ({"n_tokens": 40}, 1),
        ({"n_tokens": 25_000}, RARE_PER_CONTEXT),
        ({"n_tokens": 25_000, "context_length": 512}, 2 * RARE_PER_CONTEXT),
        ({"n_tokens": 25_000, "context_length": 2048}, 16),  # the default cap
        ({"n_tokens": 160, "per_context": 5}, 5),
    ],
)
def test_rare_tokens_of_a_context_are_what_it_holds_or_may_give(settings, expected):
    assert rare_per_context(StudyConfig(**settings)) == expected


def test_the_last_of_some_random_places():
    assert computed_share(1.0) == 0.5
    assert computed_share(9.0) == 0.9


def test_patching_counts_what_is_run_again_for_either_kind_of_target():
    operations = engine_kind("patching").operations
    passes = operations(replace(WORK, n_tokens=0))
    assert passes == 2 * 2 * 100 * 1e9  # an overhead of 2, rare and common
    assert operations(replace(WORK, n_tokens=0, resumed=0.25)) == passes / 4


def test_an_estimate_follows_layer_and_cap(tmp_path):
    def expected(**settings):
        config = StudyConfig(steps=(4096,), n_tokens=400, engine="patching", out=str(tmp_path / "run"), **settings)
        return estimate(plan_study(config), 1e10)

    whole = expected(reference="all", layer=2)
    last, first = expected(layer=2), expected(layer=0)  # whose mean is over all positions
    assert 1.3 < first.effects_seconds / last.effects_seconds < 3  # three blocks again instead of one, and the logits
    assert first.capture_seconds == whole.capture_seconds
    assert (last.n_contexts, expected(per_context=1).n_contexts) == (80, 400)
    assert whole.capture_seconds / last.capture_seconds == pytest.approx(11 / 10)


def test_a_norm_behind_the_mlp_and_a_cap_cost_products_of_their_own():
    plain = Workload(forward=0.0, resumed=1.0, n_contexts=10, n_tokens=100, n_neurons=300, d_model=100, vocab=1_000)
    operations = engine_kind("closed-form").operations
    product = 2.0 * 1_000 * 100 * 100  # of the width of the model, for all tokens
    normed, capped, both = (
        operations(replace(plain, **more)) - operations(plain)
        for more in ({"output_norm": True}, {"capped": True}, {"output_norm": True, "capped": True})
    )
    # The norm: H, and H A. The cap: a second weight, with G A, H A and, of thrice the width, B².
    assert (normed, capped, both) == (2 * product, (1 + 3) * product, (2 + 2 + 3) * product)
