"""Studies of one gated model in other weights: every number, group, p and verdict is a matter of its function alone.

Signs and powers of two change no rounding, so what is computed from them is the same to the last bit, but for
eigenvalues; another order of neurons adds in another order.
"""

import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rareneuron.maths.moments import SecondMoments
from rareneuron.models.adapter import load_model
from rareneuron.present.findings import findings
from rareneuron.present.page_data import page_data
from rareneuron.present.tables import tables_text
from rareneuron.runs.neurons import read_explorer
from rareneuron.runs.run import Run
from rareneuron.study.study import run_study
from tests.gauge import reorder, rescale
from tests.tiny_series import study_config

# Of the table of effects, what is said in the coordinates of the stored weights (docs/run-folder.md).
COORDINATES = r"(common_)?(mean_act|mean_abs_act|abs_shift)(_se)?|W_out_norm"
N = 40
RNG = np.random.default_rng(0)
ORDER = RNG.permutation(N)
CHANGES = {
    "signs": lambda model, layer: rescale(model, layer, torch.from_numpy(RNG.choice([-1.0, 1.0], N))),
    "scales": lambda model, layer: rescale(model, layer, torch.from_numpy(2.0 ** RNG.integers(-3, 4, N))),
    "any factor": lambda model, layer: rescale(model, layer, torch.from_numpy(RNG.normal(size=N) + 0.1)),
    "order": lambda model, layer: reorder(model, layer, torch.from_numpy(ORDER)),
}
EXACT = ("signs", "scales")


@pytest.fixture(scope="module")
def study(llama, text_file, tmp_path_factory):
    """Runs a study of the tiny Llama in changed weights, once for each change."""
    runs: dict[str, tuple[Run, object]] = {}

    def build(change=None):
        if change not in runs:
            folder = tmp_path_factory.mktemp("gauge")
            shutil.copytree(llama, folder / "model")
            if change is not None:
                model = AutoModelForCausalLM.from_pretrained(llama)
                CHANGES[change](model, model.config.num_hidden_layers - 1)
                model.save_pretrained(folder / "model")
            config = study_config(folder / "model", text_file, out=str(folder / "run"), n_random=200)
            runs[change] = run_study(config, progress=False), folder / "model"
        return runs[change]

    return build


def results(run):
    """The table of effects without those columns."""
    table = run.effects()
    return table[[name for name in table if not re.fullmatch(COORDINATES, name)]]


def same(ours, theirs, tolerance):
    """Whether two tables hold the same words, and the same numbers to a relative tolerance."""
    assert list(ours.columns) == list(theirs.columns)
    for name in ours.columns:
        one, other = ours[name].to_numpy(), theirs[name].to_numpy()
        if np.issubdtype(one.dtype, np.number):
            np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            assert one.tolist() == other.tolist(), name


def near(one, other, tolerance):
    return one is other is None or np.isclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("change", ["signs", "scales", "any factor"])
def test_what_the_weights_leave_open_changes_no_result(study, change):
    (ours, _), (theirs, _) = study(), study(change)
    tolerance = 1e-9 if change in EXACT else 2e-3  # float32 effects; differences of small ones are off by more
    assert not ours.effects()["mean_act"].equals(theirs.effects()["mean_act"]), "nothing was changed"
    same(results(ours), results(theirs), tolerance)
    for role in ("boosting", "suppressing", "random", "matched_random", "matched_pairs"):
        assert getattr(ours.groups(), role).tolist() == getattr(theirs.groups(), role).tolist()
    same(ours.geometry(), theirs.geometry(), tolerance)
    same(ours.spectrum(), theirs.spectrum(), tolerance)
    same(ours.trajectory(), theirs.trajectory(), tolerance)
    for one, other in zip(ours.claims().claims, theirs.claims().claims, strict=True):
        assert (one.name, one.verdict, one.title, one.null) == (other.name, other.verdict, other.title, other.null)
        for number in ("value", "effect", "p", "p_holm", "null_mean"):
            assert near(getattr(one, number), getattr(other, number), tolerance), (one.name, number)
    for one, other in zip(ours.claims().checks, theirs.claims().checks, strict=True):
        assert near(one.value, other.value, tolerance), one.name


@pytest.mark.parametrize("change", EXACT)
def test_the_explorer_and_the_tables_show_the_same(study, change):
    ours, theirs = (study(name)[0] for name in (None, change))
    first, second = (read_explorer(run.folder()) for run in (ours, theirs))
    for name in ("top_token", "near_delta", "histogram", "neighbour", "written"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name in ("act_low", "act_high", "correlation", "written_logit"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-6, err_msg=name)
    pages = [page_data(findings(run)) for run in (ours, theirs)]
    assert pages[0]["neurons"] == pages[1]["neurons"]
    assert {"w_in", "w_out"}.isdisjoint(pages[0]["neurons"])
    assert pages[0]["details"]["activation"]["name"] == "activation · ‖w_out‖"
    assert tables_text([ours], "md").replace("run", "") == tables_text([theirs], "md").replace("run", "")


def test_neurons_may_change_places(study):
    """Draws are by index, so nulls and p are of other draws; what is of the neurons themselves stays with them."""
    (ours, _), (theirs, _) = study(), study("order")
    assert ORDER.tolist() != list(range(N))
    first = results(ours).drop(columns=["neuron", "index"]).iloc[ORDER].reset_index(drop=True)
    second = results(theirs).drop(columns=["neuron", "index"])
    same(first, second, 1e-4)
    for role in ("boosting", "suppressing"):
        assert ORDER[getattr(theirs.groups(), role)].tolist() == getattr(ours.groups(), role).tolist()
    for table, keys in (("geometry", ["statistic", "group"]), ("spectrum", ["matrix", "statistic", "group"])):
        values = []
        for run in (ours, theirs):
            rows = getattr(run, table)()
            rows = rows[rows["group"].isin(["boosting", "suppressing", "boosting-suppressing"])]
            values.append(rows.drop_duplicates(keys).set_index(keys)["value"])
        assert len(values[0]) > 15
        np.testing.assert_allclose(values[0], values[1].loc[values[0].index], rtol=1e-4)


def test_what_is_not_reported_does_change(study):
    """The negative control: of the same two models, the paper's signed means differ."""
    means = []
    for name in (None, "signs"):
        run, folder = study(name)
        assert set(run.geometry()["statistic"]).isdisjoint({"correlation", "cosine"})
        windows = np.random.default_rng(1).integers(3, 90, (8, 16))
        moments = SecondMoments()
        moments.add(load_model(folder).capture(windows).act.reshape(-1, N))
        group = run.groups().boosting
        off = ~np.eye(len(group), dtype=bool)
        means.append([float(x(group, group)[off].mean()) for x in (moments.correlation, moments.cosine)])
    assert abs(np.subtract(*means)).min() > 1e-3, means


def test_what_the_model_leaves_open_is_recorded_and_said(study):
    run, _ = study()
    gauge = run.step_record().gauge
    assert (gauge.sign, gauge.scale, gauge.gate_scale) == (True, True, False)
    of = {claim.name: claim for claim in run.claims().claims}
    assert of["correlation-within"].statistic == "|correlation|"
    assert of["cosine-across"].statistic == "|cosine|"
    assert of["cosine-within"].title == "Activations within either group lie along one line more than random ones"
    assert of["heavy-tail-W_in"].statistic == "α_Hill in W_in, rows of length 1"
    assert of["heavy-tail-W_gate"].statistic == "α_Hill in W_gate"
    text = tables_text([run], "md")
    assert "not defined" in text
    assert "as every gated MLP does" in text
    assert "length of the neuron's row of W_out" in text
    assert "rows of W_in and W_out open" in text
