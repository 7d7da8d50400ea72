"""A study's influence of heads against whole passes over its contexts, and the claim that rests on it."""

import json
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import pytest

from rareneuron.errors import NotMeasured, Unavailable
from rareneuron.maths.groups import NeuronGroups
from rareneuron.measure.routing import PATCHED, RoutingWork, routing
from rareneuron.models.adapter import load_model
from rareneuron.models.gradient import site_means
from rareneuron.models.sites import site_of
from rareneuron.present.report import render_report
from rareneuron.progress import progress_bar
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.routing import read_routing, write_routing
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import load_tokens
from rareneuron.study.study import run_study
from tests.models.test_gradient import shifted
from tests.tiny_series import study_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("routing") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=200, layers="all", verify=0.02, out=out))


def test_influence_is_that_of_whole_passes(run, series):
    found, adapter = read_routing(run.folder()), load_model(series / "step10", device="cpu")
    selection = load_tokens(RunStore(run.path)).selection
    judging = np.unique(read_experiments(run.folder())["context"])
    site = site_of(adapter.anatomy, 0, "heads")
    mean = site_means(adapter.anatomy, [site], selection.windows)[0].mean
    clean, acts = (np.zeros((len(selection.context), adapter.d_mlp)) for _ in "12")
    assert set(found.influence) == {f"0.h{head}" for head in range(min(PATCHED, site.n_units))}
    for head in range(min(PATCHED, site.n_units)):
        for c in judging:
            rows = np.flatnonzero(selection.context == c)
            clean[rows] = adapter.capture(selection.windows[[c]], 1).act[0, selection.position[rows]].numpy()
            with shifted(site, head, 1.0, mean):
                acts[rows] = adapter.capture(selection.windows[[c]], 1).act[0, selection.position[rows]].numpy()
        judged = np.isin(selection.context, judging)
        size = np.abs(acts - clean) / clean[judged].std(0)
        influence = found.influence[f"0.h{head}"]
        for kind, sums in ((True, influence.rare), (False, influence.common)):
            slow = [size[(selection.context == c) & (selection.rare == kind)].sum(0) for c in judging]
            assert np.max(slow) > 0.01, "the case is too tame to tell right from wrong"
            np.testing.assert_allclose(sums, slow, rtol=2e-3, atol=2e-4)
        assert influence.n_rare.sum() == (selection.rare & judged).sum()


def test_the_table_names_every_earlier_head_and_which_were_replaced(run):
    heads = run.routing()
    assert heads["layer"].eq(0).all()
    assert heads["patched"].sum() == min(PATCHED, len(heads))
    assert (heads["influence"] > 0).all()
    claim = next(claim for claim in run.claims().claims if claim.name == "no-routing")
    assert claim.smallest == 0.1
    assert "of the influence of head 0.h" in claim.sentence or "contexts are too few" in claim.sentence


def test_a_layer_without_heads_before_it_says_so(run, series, tmp_path):
    selection = load_tokens(RunStore(run.path)).selection
    adapter, few = load_model(series / "step10", device="cpu"), np.arange(2)
    groups = NeuronGroups(
        boosting=few, suppressing=few + 2, random=few[None], matched_random=few[None], matched_on="move"
    )
    given = {
        "adapter": adapter,
        "selection": selection,
        "groups": groups,
        "seed": 0,
        "memory": 10**9,
        "bar": progress_bar,
    }
    found = routing(RoutingWork(**given, layer=0, judging=np.unique(selection.context)))
    assert isinstance(found, Unavailable)
    write_routing(tmp_path, found)
    with pytest.raises(NotMeasured, match="no attention head stands before"):
        read_routing(tmp_path)
    everywhere = routing(RoutingWork(**given, layer=1, judging=np.unique(selection.context)))
    assert isinstance(everywhere, Unavailable)
    assert "choose heads on" in everywhere.why


def test_progress_comes_to_its_end(run, series):
    """Minutes on a real model: the tokens of the estimates, then the contexts of the replacements."""
    done, totals = defaultdict(int), {}

    @contextmanager
    def bar(part, total, unit):
        totals[part, unit] = total

        class Counter:
            def update(self, n):
                done[part, unit] += n

        yield Counter()

    judging = np.unique(read_experiments(run.folder())["context"])
    work = RoutingWork(
        adapter=load_model(series / "step10", device="cpu"),
        selection=load_tokens(RunStore(run.path)).selection,
        layer=1,
        groups=run.groups(),
        judging=judging,
        seed=0,
        memory=10**9,
        bar=bar,
    )
    routing(work)
    assert totals == dict(done)
    assert totals["heads, all estimated", "token"] == len(work.others)
    assert totals["heads, the largest replaced", "context"] == len(judging)


def test_a_study_of_one_layer_is_not_asked(config):
    run = run_study(config(steps=(10,), n_tokens=60))
    with pytest.raises(NotMeasured, match="--layers all"):
        run.routing()
    assert "no-routing" not in {claim.name for claim in run.claims().claims}


def test_command_and_report_show_the_heads_that_write_most(run, invoke):
    printed = invoke("layers", run.path, "--routing", "--json")
    assert printed.exit_code == 0
    rows = json.loads(printed.output)
    influences = [row["influence"] for row in rows]
    assert influences == sorted(influences, reverse=True)
    of_one = run.routing().set_index("unit").loc[rows[0]["unit"]]
    expected = of_one["boosting_rare"] / of_one["boosting_common"]
    assert rows[0]["boosting_rare_over_common"] == pytest.approx(expected)
    assert f"The {len(rows)} attention heads of earlier layers that write most" in render_report(run)
    both = invoke("layers", run.path, "--routing", "--profile")
    assert both.exit_code == 2
    assert "one at a time" in both.output
