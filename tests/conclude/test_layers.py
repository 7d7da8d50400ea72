"""Layers side by side against loops over units and contexts; the claims find what is planted, and nothing else."""

import numpy as np
import pytest
from scipy.stats import binom

from rareneuron.conclude.evidence.layers import above_layer
from rareneuron.conclude.layers import layer_profile, rare_over_common, shares
from rareneuron.maths.claims import bootstrap_test
from rareneuron.runs.layers import read_layers
from rareneuron.study.study import run_study
from tests.tiny_series import study_config


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("layers") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=80, layers="all", out=out))


@pytest.mark.slow
def test_shares_and_ratios_are_those_of_loops(run):
    table, n = run.layers(), run.manifest.data
    profile = layer_profile(run).set_index("layer")
    heads = layer_profile(run, kind="heads").set_index("layer")
    for kind, found in (("neuron", profile), ("head", heads)):
        of_kind = table[table["kind"] == kind]
        total = sum(of_kind["abs_delta_loss"])
        for layer, units in of_kind.groupby("layer"):
            assert found.loc[layer, "share"] == pytest.approx(sum(units["abs_delta_loss"]) / total, rel=1e-5)
            rare = sum(units["abs_delta_loss"]) / sum(units["moved"])
            common = sum(units["common_abs_delta_loss"]) / sum(units["common_moved"])
            assert found.loc[layer, "rare_over_common"] == pytest.approx(rare / common, rel=1e-5)
            assert found.loc[layer, "share_low"] < found.loc[layer, "share"] < found.loc[layer, "share_high"]
    assert n.n_contexts >= 40, "intervals need contexts"


@pytest.mark.slow
def test_sums_of_layers_are_those_of_units(run):
    found = read_layers(run.folder())
    rare = found.sums["neurons.rare.abs_delta_loss"].sum(0) / found.sums["rare.n_tokens"].sum()
    by_layer = found.table[found.table["kind"] == "neuron"].groupby("layer")["abs_delta_loss"].sum()
    np.testing.assert_allclose(rare, by_layer, rtol=1e-5)


def contexts(rng, excess, n_contexts=60, n_layers=4):
    """Sums of |Δ| and moves at rare and common targets; the last layer's rare ones are larger by `excess`."""
    scale = np.exp(rng.normal(0, 0.4, (n_contexts, 1, 1)))
    sums = scale * np.exp(rng.normal(0, 0.3, (n_contexts, 4, n_layers)))
    sums[:, 0, -1] *= 1 + excess
    return sums.reshape(n_contexts, -1)


def p_values(excess, n_times=100):
    out = []
    for seed in range(n_times):
        rng = np.random.default_rng(seed)
        sums = contexts(rng, excess)
        tests = [
            bootstrap_test("", None, sums, lambda t, i=i: above_layer(t, n_layers=4, i=i), rng, n_draws=399)
            for i in range(3)
        ]
        out.append(max(test.p for test in tests))  # of every earlier layer
    return np.array(out)


def test_an_excess_of_the_last_layer_is_found_and_none_where_there_is_none():
    false = (p_values(0.0) <= 0.05).sum()
    assert false <= binom.ppf(0.999, 100, 0.05)
    assert (p_values(0.6, 40) <= 0.05).mean() > 0.9


def test_formulas():
    assert shares(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert rare_over_common(*np.array([[6.0], [2.0], [3.0], [3.0]])).tolist() == [3.0]
