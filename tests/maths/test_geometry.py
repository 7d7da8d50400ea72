"""Geometry of groups: the definitions against loops, the nulls against planted and absent structure."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rareneuron.errors import InvalidConfig, NotMeasured, OutOfRange, RareNeuronError, TooFewNeurons
from rareneuron.maths import geometry as module
from rareneuron.maths import moments
from rareneuron.maths.activations import effective_dimension, geometry
from rareneuron.maths.geometry import Measures, geometry_of
from rareneuron.maths.groups import NeuronGroups, disjoint_partners, neuron_groups
from rareneuron.maths.moments import SecondMoments
from tests import geometry_oracle as oracle

N_DRAWS = 199  # 10 of 200 is 5 %


def layer(rng, n=120, tokens=60):
    """Neurons of 12 kinds that share a factor each, with offsets and unequal scales: every statistic varies."""
    factor = rng.normal(size=(tokens, 12))[:, rng.integers(0, 12, n)]
    acts = factor * rng.choice([-1, 1], n) * rng.uniform(0, 3, n) + rng.normal(size=(tokens, n))
    return (acts + rng.normal(size=n)) * rng.lognormal(0, 1, n)


def drawn_groups(rng, n=120, size=8, matched=True, n_draws=N_DRAWS):
    delta = rng.normal(size=n)
    covariate = rng.normal(size=n) if matched else None
    return neuron_groups(
        delta,
        np.abs(delta),
        size=size,
        n_draws=n_draws,
        covariate=covariate,
        matched_on="norm" if matched else None,
        rng=rng,
    )


def moments_of(acts):
    moments = SecondMoments()
    moments.add(acts)
    return moments


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    return layer(rng), drawn_groups(rng)


@pytest.fixture(scope="module")
def found(case):
    return geometry(*case, np.random.default_rng(1))


SIMILARITIES = {
    "correlation": oracle.correlation,
    "cosine": oracle.cosine,
    "abs_correlation": lambda a, b: abs(oracle.correlation(a, b)),
    "abs_cosine": lambda a, b: abs(oracle.cosine(a, b)),
}
WITHIN = {
    **{name: partial(oracle.mean_within, similarity=similarity) for name, similarity in SIMILARITIES.items()},
    "d_eff": lambda acts, group: oracle.effective_dimension(acts[:, group], 0.95),
    "d_eff_zscored": lambda acts, group: oracle.effective_dimension(acts[:, group], 0.95, zscore=True),
    "d_eff_share": lambda acts, group: oracle.effective_dimension(acts[:, group], 0.95) / 8,
    "d_eff_zscored_share": lambda acts, group: oracle.effective_dimension(acts[:, group], 0.95, zscore=True) / 8,
    "clusters_ward": lambda acts, group: oracle.n_clusters(acts, group, "ward"),
    "clusters_average": lambda acts, group: oracle.n_clusters(acts, group, "average"),
}


@pytest.mark.slow
@pytest.mark.parametrize("statistic", WITHIN)
def test_within_groups_agrees_with_loops(case, found, statistic):
    acts, groups = case
    matched = {"boosting": groups.matched_random[:N_DRAWS], "suppressing": groups.matched_random[N_DRAWS:]}
    uniform = np.array([WITHIN[statistic](acts, group) for group in groups.random])
    assert len(np.unique(uniform)) > 2, "the case is too tame to tell right from wrong"
    for role in ("boosting", "suppressing"):
        compared = found.within[statistic][role]
        assert np.isclose(compared.value, WITHIN[statistic](acts, getattr(groups, role)), rtol=1e-12)
        alike = np.array([WITHIN[statistic](acts, group) for group in matched[role]])
        for null, draws in ((compared.uniform, uniform), (compared.matched, alike)):
            assert null.n_draws == len(draws)
            assert np.isclose(null.null_mean, draws.mean(), rtol=1e-12)
            assert np.isclose(null.effect_size, (compared.value - draws.mean()) / draws.std(ddof=1), rtol=1e-9)
    assert np.isclose(found.within[statistic]["random"].value, uniform.mean(), rtol=1e-12)
    assert found.within[statistic]["random"].uniform is None
    assert set(found.within) == set(WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", SIMILARITIES)
def test_between_groups_agrees_with_loops(case, found, statistic):
    acts, groups = case
    similarity, between = SIMILARITIES[statistic], found.between[statistic]
    for role in ("boosting", "suppressing"):
        group = getattr(groups, role)
        compared = between[f"{role}-random"]
        mean = np.mean([oracle.mean_between(acts, group, draw, similarity) for draw in groups.random])
        assert np.isclose(compared.value, mean, rtol=1e-10)
        # a few draws are enough: the rest is the same function
        measure = module.toward_random(Measures(moments_of(acts)), groups, group)
        some = np.concatenate([groups.random[:3], groups.matched_random[:3]])
        slow = [oracle.toward_random(acts, draw, groups.random, group, similarity) for draw in some]
        assert np.allclose(measure(some)[statistic], slow, rtol=1e-10)
        assert compared.uniform.null_mean == measure(groups.random)[statistic].mean()
    partners = disjoint_partners(groups.random, np.random.default_rng(1))
    null = [
        oracle.mean_between(acts, first, second, similarity)
        for first, second in zip(groups.random, partners, strict=True)
    ]
    compared = between["boosting-suppressing"]
    assert np.isclose(compared.value, oracle.mean_between(acts, groups.boosting, groups.suppressing, similarity))
    assert np.isclose(compared.uniform.null_mean, np.mean(null), rtol=1e-10)
    assert np.isclose(between["random-random"].value, np.mean(null), rtol=1e-10)
    null = [oracle.mean_between(acts, *np.split(pair, 2), similarity) for pair in groups.matched_pairs]
    assert np.isclose(compared.matched.null_mean, np.mean(null), rtol=1e-10)
    assert compared.matched.n_draws == N_DRAWS


def test_released_definitions_agree_with_a_short_version(case):
    acts, groups = case
    acts, tight = acts[:25], np.arange(120)  # few tokens: (N − 1)/N shows
    groups = NeuronGroups(
        boosting=tight[:30],
        suppressing=tight[30:60],
        random=np.stack([np.random.default_rng(k).choice(tight[60:], 30, replace=False) for k in range(99)]),
        matched_random=None,
        matched_on=None,
    )
    ours = geometry(acts, groups, definitions="released")
    assert ours.definitions == "released"
    assert set(ours.within) == {*SIMILARITIES, "clusters_ward", "d_eff", "d_eff_share"}
    uniform = [oracle.released(acts, group) for group in groups.random]
    paper = geometry(acts, groups)
    for statistic in ("correlation", "clusters_ward", "d_eff"):
        compared = ours.within[statistic]["boosting"]
        assert np.isclose(compared.value, oracle.released(acts, groups.boosting)[statistic], rtol=1e-12)
        assert np.isclose(compared.uniform.null_mean, np.mean([null[statistic] for null in uniform]), rtol=1e-12)
        assert compared.matched is None
        assert abs(compared.value - paper.within[statistic]["boosting"].value) > 1e-4, "tells nothing apart"
    pair = "boosting-suppressing"
    assert np.isclose(
        ours.between["correlation"][pair].value, paper.between["correlation"][pair].value * 24 / 25, rtol=1e-12
    )
    assert ours.between["cosine"][pair].value == paper.between["cosine"][pair].value


@pytest.mark.parametrize(("tokens", "expected"), [(80, 37), (300, 45), (1000, 47), (4000, 47)])
def test_effective_dimension_of_independent_neurons(tokens, expected):
    """It grows with the number of tokens: groups can only be compared at equal ones. Single samples are 1 off."""
    dims = [
        effective_dimension(np.random.default_rng(seed).normal(size=(tokens, 50)).astype(np.float32))
        for seed in range(20)
    ]
    assert np.median(dims) == expected
    assert np.abs(np.array(dims) - expected).max() <= 1


def test_effective_dimension_of_known_spectra():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(64, 4))
    z = np.linalg.qr(z - z.mean(0))[0]  # centred and orthonormal, up to rounding
    acts = z * np.sqrt([8.0, 4.0, 2.0, 2.0])
    for variance, expected in ((0.3, 1), (0.5, 1), (0.74, 2), (0.76, 3), (0.95, 4), (1.0, 4)):
        assert effective_dimension(acts, variance) == expected
    assert effective_dimension(acts, 0.74, zscore=True) == 3
    assert effective_dimension(rng.normal(size=(5, 30)), 1.0) == 4  # τ = 1 is the rank
    assert effective_dimension(np.c_[acts, np.ones(64)], 0.95) == 4  # a constant neuron adds nothing
    assert effective_dimension(np.c_[acts, np.ones(64)], 0.74, zscore=True) == 3


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), order=st.permutations(range(8)), power=st.integers(-8, 8))
@settings(max_examples=25, deadline=None)
def test_properties(seed, order, power):
    rng = np.random.default_rng(seed)
    acts, groups = layer(rng), drawn_groups(rng, matched=False)
    permuted = NeuronGroups(
        boosting=groups.boosting[list(order)],
        suppressing=groups.suppressing,
        random=groups.random[:, list(order)],
        matched_random=None,
        matched_on=None,
    )
    first, second = (geometry(acts, g, np.random.default_rng(0)) for g in (groups, permuted))
    for statistic, compared in first.within.items():
        other = second.within[statistic]["boosting"]
        assert np.isclose(compared["boosting"].value, other.value, rtol=1e-9)
        assert np.isclose(compared["boosting"].uniform.null_mean, other.uniform.null_mean, rtol=1e-9)
    every = np.arange(120)
    sizes, offsets = rng.lognormal(0, 2, 120) * 2.0**power, rng.normal(size=120)
    moments, scaled, moved = moments_of(acts), moments_of(acts * sizes), moments_of(acts * sizes + offsets)
    assert np.allclose(moments.cosine(every, every), scaled.cosine(every, every), atol=1e-12)
    assert np.allclose(moments.correlation(every, every), moved.correlation(every, every), atol=1e-9)
    assert not np.allclose(moments.cosine(every, every), moved.cosine(every, every), atol=1e-3)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    some = acts[:, groups.boosting]
    assert effective_dimension(some @ rotation) == effective_dimension(some)


@pytest.mark.parametrize("kind", ["float64", "float32", "torch", "bfloat16", "read-only"])
def test_streamed_equals_whole(kind):
    acts = layer(np.random.default_rng(3))
    kept = np.array([7, 3, 99, 50])
    if kind == "float32":
        acts = acts.astype(np.float32)
    elif kind in ("torch", "bfloat16"):
        acts = torch.from_numpy(acts).to(torch.bfloat16 if kind == "bfloat16" else torch.float64)
    elif kind == "read-only":
        acts.flags.writeable = False
    streamed = SecondMoments(kept)
    for start, stop in ((0, 1), (1, 20), (20, 20), (20, 60)):
        streamed.add(acts[start:stop])
    whole = acts if isinstance(acts, np.ndarray) else acts.double().numpy()
    assert streamed.n_tokens == 60
    assert (streamed.neurons == np.sort(kept)).all()
    x = whole[:, kept].astype(np.float64)
    assert np.allclose(streamed.covariance(kept, kept), np.cov(x.T), rtol=1e-10, atol=1e-12)
    assert np.allclose(streamed.correlation(kept, kept), np.corrcoef(x.T), atol=1e-12)
    unit = x / np.linalg.norm(x, axis=0)
    assert np.allclose(streamed.cosine(kept, kept), unit.T @ unit, atol=1e-12)
    stacked = streamed.correlation(np.array([[3, 7], [99, 3]]), np.array([[50], [7]]))
    assert np.allclose(stacked[1], np.corrcoef(x.T)[[2, 1]][:, [0]], atol=1e-12)


@pytest.mark.slow
def test_many_tokens_and_wide_stacks_in_blocks_are_the_same(case, found, monkeypatch):
    monkeypatch.setattr(moments, "TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 500)
    blocks = geometry(*case, np.random.default_rng(1))
    for ours, theirs in zip(blocks.rows(), found.rows(), strict=True):
        for column in ("value", "null_mean", "p"):
            assert ours[column] is theirs[column] is None or np.isclose(ours[column], theirs[column], rtol=1e-9)


def test_a_mean_far_above_the_standard_deviation_costs_no_digits():
    rng = np.random.default_rng(0)
    small = np.round(rng.normal(size=(3000, 4)) @ rng.normal(size=(4, 4)) * 2**10) / 2**10
    acts = small + 2.0**30  # exact in float64: 30 + 10 + a few bits; a one-pass variance would lose 60 bits
    every = np.arange(4)
    assert np.allclose(moments_of(acts).correlation(every, every), np.corrcoef(small.T), atol=1e-11)
    naive = acts.T @ acts / 3000 - np.outer(acts.mean(0), acts.mean(0))
    assert not np.allclose(naive, np.cov(small.T), rtol=0.1)  # negative control
    outlier = np.r_[np.full((1, 4), 1e4), small]  # as first token, from which all is measured
    assert np.allclose(moments_of(outlier).correlation(every, every), np.corrcoef(outlier.T), atol=1e-11)


def test_constant_neurons_are_counted_and_left_out():
    rng = np.random.default_rng(0)
    groups = drawn_groups(rng)
    acts = layer(rng)
    dead = np.r_[groups.boosting[:2], np.setdiff1d(np.arange(120), np.r_[groups.boosting, groups.suppressing])[:10]]
    acts[:, dead] = 0.1  # 60 times 0.1 summed isn't 6: constancy must not hang on rounding
    found = geometry(acts, groups)
    assert found.n_constant["boosting"] == 2
    assert found.n_constant["suppressing"] == 0
    assert found.n_constant["random"] == np.isin(groups.random, dead).sum(1).mean() > 0
    alive = groups.boosting[2:]
    within = found.within
    assert np.isclose(within["correlation"]["boosting"].value, oracle.mean_within(acts, alive, oracle.correlation))
    assert np.isclose(within["cosine"]["boosting"].value, oracle.mean_within(acts, groups.boosting, oracle.cosine))
    assert within["clusters_ward"]["boosting"].value == oracle.n_clusters(acts, alive, "ward")
    assert within["d_eff"]["boosting"].value == oracle.effective_dimension(acts[:, alive], 0.95)
    assert within["d_eff_share"]["boosting"].value == within["d_eff"]["boosting"].value / 8
    assert all(np.isfinite(row["value"]) for row in found.rows())
    acts[:, groups.boosting[0]] = 0  # has no direction either
    silent = geometry(acts, groups).within["cosine"]["boosting"].value
    assert np.isclose(silent, oracle.mean_within(acts, groups.boosting[1:], oracle.cosine))


@pytest.mark.parametrize("which", ["boosting", "random"])
def test_a_group_of_constant_neurons_is_refused(case, which):
    acts, groups = case
    acts = acts.copy()
    acts[:, getattr(groups, which).reshape(-1, 8)[0][1:]] = 3.0
    with pytest.raises(NotMeasured, match=r"both vary.*larger groups"):
        geometry(acts, groups)


def test_rows_are_tidy_json(found):
    rows = found.rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len(rows) == 10 * 5 + 4 * 7
    row = next(r for r in rows if (r["statistic"], r["group"], r["null"]) == ("d_eff", "boosting", "matched"))
    null = found.within["d_eff"]["boosting"].matched
    assert (row["value"], row["null_mean"], row["p"], row["n_draws"]) == (null.value, null.null_mean, null.p, N_DRAWS)
    assert row["definitions"] == "paper"
    assert next(r for r in rows if r["group"] == "random")["null"] is None
    same = np.tile(np.random.default_rng(0).normal(size=(60, 1)), 120)  # every draw alike: no effect size
    rng = np.random.default_rng(0)
    assert geometry(same, drawn_groups(rng)).rows()[0]["effect_size"] is None


def test_partners_share_no_neuron_and_all_neurons_serve():
    draws = drawn_groups(np.random.default_rng(0)).random
    partners = disjoint_partners(draws, np.random.default_rng(1))
    assert all(len({*first, *second}) == 16 for first, second in zip(draws, partners, strict=True))
    assert (np.unique(partners) == np.unique(draws)).all()
    with pytest.raises(TooFewNeurons, match="Use groups of"):
        disjoint_partners(draws % 15, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (InvalidConfig, "1 token were.*more tokens", {"acts": lambda acts: acts[:1]}),
        (InvalidConfig, "0 tokens were", {"acts": lambda acts: acts[:0]}),
        (RareNeuronError, "1 of .*use float32", {"acts": lambda acts: np.where(acts == acts[3, 5], np.nan, acts)}),
        (RareNeuronError, "not finite", {"acts": lambda acts: np.where(acts == acts[3, 5], np.inf, acts)}),
        (OutOfRange, "100 neurons", {"acts": lambda acts: acts[:, :100]}),
        (InvalidConfig, "above 0 and up to 1", {"variance": 0.0}),
        (InvalidConfig, "above 0 and up to 1", {"variance": 1.01}),
        (InvalidConfig, "above 0 and up to 1", {"variance": float("nan")}),
        (TooFewNeurons, "groups of 3 neurons or more", {"size": 2}),
    ],
)
def test_what_cannot_be_measured_is_refused(case, error, match, change):
    acts, groups = case
    acts = change.get("acts", lambda acts: acts)(acts)
    if "size" in change:
        groups = drawn_groups(np.random.default_rng(0), size=change["size"])
    with pytest.raises(error, match=match):
        geometry(acts, groups, variance=change.get("variance", 0.95))


def test_unmeasurable_activations_have_no_effective_dimension():
    with pytest.raises(NotMeasured, match="None of 3 neurons"):
        effective_dimension(np.ones((5, 3)))
    with pytest.raises(InvalidConfig, match="fewer than 2"):
        effective_dimension(torch.ones(1, 3))
    with pytest.raises(InvalidConfig, match="share of variance"):
        effective_dimension(np.eye(3), 1.5)


def test_a_neuron_whose_moments_were_not_kept_is_named(case):
    acts, groups = case
    moments = SecondMoments(groups.boosting)
    moments.add(acts)
    with pytest.raises(OutOfRange, match="not kept"):
        geometry_of(moments, groups, np.random.default_rng(0))


@pytest.mark.slow
def test_planted_co_activation_is_found(through):
    """A shared factor in one group, in the others nothing: correlation 0.33 within 10 neurons at 300 tokens."""
    hits = {"correlation": 0, "cosine": 0, "d_eff": 0, "d_eff_zscored": 0, "boosting-suppressing": 0}
    for seed in through(range(40)):
        rng = np.random.default_rng(seed)
        groups = drawn_groups(rng, n=300, size=10)
        acts = rng.normal(size=(300, 300))
        acts[:, np.r_[groups.boosting, groups.suppressing]] += 0.7 * rng.normal(size=(300, 1))
        found = geometry(acts, groups, rng, variance=0.8)
        for statistic in ("correlation", "cosine"):
            compared = found.within[statistic]["boosting"]
            hits[statistic] += max(compared.uniform.p_above, compared.matched.p_above) <= 0.05
        for statistic in ("d_eff", "d_eff_zscored"):
            compared = found.within[statistic]["boosting"]
            hits[statistic] += max(compared.uniform.p_below, compared.matched.p_below) <= 0.05
        compared = found.between["correlation"]["boosting-suppressing"]
        hits["boosting-suppressing"] += max(compared.uniform.p_above, compared.matched.p_above) <= 0.05
    assert min(hits.values()) >= 0.9 * 40, hits


@pytest.mark.slow
def test_planted_clusters_and_avoidance_are_found(through):
    """A group in three tight clusters, and one that runs against all the rest of the layer."""
    hits = {"clusters_ward": 0, "clusters_average": 0, "boosting-random": 0}
    for seed in through(range(40)):
        rng = np.random.default_rng(seed)
        groups = drawn_groups(rng, n=300, size=9)
        acts = rng.normal(size=(300, 300))
        acts += 0.3 * rng.normal(size=(300, 1)) * np.where(np.isin(np.arange(300), groups.suppressing), -1, 1)
        acts[:, groups.boosting] += 3 * rng.normal(size=(300, 3))[:, np.arange(9) % 3]
        found = geometry(acts, groups, rng)
        for statistic in ("clusters_ward", "clusters_average"):
            compared = found.within[statistic]["boosting"]
            hits[statistic] += max(compared.uniform.p_below, compared.matched.p_below) <= 0.05
        compared = found.between["correlation"]["suppressing-random"]
        hits["boosting-random"] += max(compared.uniform.p_below, compared.matched.p_below) <= 0.05
    assert min(hits.values()) >= 0.9 * 40, hits


@pytest.mark.slow
def test_absent_structure_is_not_found(through):
    """Groups drawn at random from layers full of structure: 5 % of p-values are below 5 %, on both sides.

    Counts tie with their draws, and a p that counts ties on both sides errs to caution. Breaking ties at random makes
    it uniform, which shows that nothing but ties holds it down. 300 layers scatter by 0.9-1.3 % in each of 20 cells, so
    each is held to three standard errors, and their mean to 3-7 %.
    """
    hits, tried = {}, {}
    for seed in through(range(1000, 1300)):
        rng = np.random.default_rng(seed)
        acts, groups = layer(rng, n=600, tokens=100), drawn_groups(rng, n=600, n_draws=99)  # 5 of 100 is 5 %, too
        for row in geometry(acts, groups, rng).rows():
            if row["null"] is None or row["statistic"].endswith("_share"):  # a share's p is its count's
                continue
            pair = row["group"].replace("suppressing-random", "boosting-random")
            key = row["statistic"], pair if "-" in pair else "within", row["null"]
            tied, u = row["p_above"] + row["p_below"] - 1, rng.random()
            p = [row["p_above"], row["p_below"], row["p_above"] - u * tied, row["p_below"] - (1 - u) * tied]
            tried[key] = tried.get(key, 0) + 1
            hits[key] = hits.get(key, 0) + (np.array(p) <= 0.05)
    assert min(tried.values()) == 300
    rates = {key: 100 * hits[key] / n for key, n in tried.items()}
    assert len(rates) == 8 * 2 + 4 * 2 * 2
    for key, rate in rates.items():
        assert (rate[:2] <= 8.8).all(), (key, rate)
        assert (rate[2:] >= 1.2).all(), (key, rate)
        assert (rate[2:] <= 8.8).all(), (key, rate)
    mean = np.mean(list(rates.values()), axis=0)
    assert (mean[2:] >= 3).all()
    assert (mean <= 7).all()


@pytest.mark.slow
@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_what_a_gated_model_leaves_open_changes_nothing(seed):
    """Activations times c, rows of W_out by 1/c: signs and scales of neurons that a gated MLP doesn't determine."""
    rng = np.random.default_rng(seed)
    acts, groups = layer(rng), drawn_groups(rng, n_draws=99)
    length = rng.lognormal(size=120)
    c = rng.choice([-1, 1], 120) * 2.0 ** rng.integers(-3, 4, 120)
    first, second = (
        geometry(acts * factor, groups, np.random.default_rng(1), signed=False, lengths=length / abs(factor))
        for factor in (np.ones(120), c)
    )
    assert first.within.keys() == {*WITHIN} - {"correlation", "cosine"}
    for one, other in zip(first.rows(), second.rows(), strict=True):
        for column in ("value", "null_mean", "effect_size", "p", "p_above"):
            assert one[column] is other[column] is None or np.isclose(one[column], other[column], rtol=1e-9), one


def test_what_is_left_out_of_a_gated_models_geometry_does_change():
    """The negative control, of one layer: by chance a group's neurons may all keep their signs."""
    rng = np.random.default_rng(0)
    acts, groups = layer(rng), drawn_groups(rng, n_draws=99)
    c = rng.choice([-1, 1], 120) * 2.0 ** rng.integers(-3, 4, 120)
    assert len(set(np.sign(c[groups.boosting]))) == 2
    signed, flipped = (geometry(x, groups, np.random.default_rng(1)).within for x in (acts, acts * np.sign(c)))
    for statistic in ("correlation", "cosine"):
        ours, theirs = signed[statistic]["boosting"].value, flipped[statistic]["boosting"].value
        assert not np.isclose(ours, theirs, atol=1e-4)
    loud = geometry(acts * c, groups, np.random.default_rng(1)).within["d_eff"]["boosting"]
    assert loud.uniform.null_mean != signed["d_eff"]["boosting"].uniform.null_mean  # and so does the scale


@pytest.mark.slow
@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_neurons_may_change_places(seed):
    """With draws that follow them; draws are by index, so another order of neurons has others of the same kind."""
    rng = np.random.default_rng(seed)
    acts, groups = layer(rng), drawn_groups(rng, n_draws=99)
    order = rng.permutation(120)
    place = np.argsort(order)
    moved = NeuronGroups(
        **{
            name: place[getattr(groups, name)]
            for name in ("boosting", "suppressing", "random", "matched_random", "matched_pairs")
        },
        matched_on=groups.matched_on,
    )
    first, second = (geometry(x, g, np.random.default_rng(1)) for x, g in ((acts, groups), (acts[:, order], moved)))
    for one, other in zip(first.rows(), second.rows(), strict=True):
        if one["group"] in ("boosting-suppressing", "random-random"):
            assert np.isclose(one["value"], other["value"], atol=0.05)  # partners of draws are drawn by index
        else:
            assert np.isclose(one["value"], other["value"], rtol=1e-9)
            assert one["p"] is other["p"] is None or np.isclose(one["p"], other["p"], atol=1e-12)


@pytest.mark.slow
def test_sizes_see_co_activation_of_mixed_signs(through):
    """A factor that half of a group follows with the other sign leaves a mean ρ near 0, and a mean |ρ| that isn't."""
    hits = {"correlation": 0, "abs_correlation": 0, "abs_cosine": 0}
    for seed in through(range(20)):
        rng = np.random.default_rng(seed)
        groups = drawn_groups(rng, n=300, size=10)
        acts = rng.normal(size=(300, 300))
        acts[:, groups.boosting] += 0.7 * rng.normal(size=(300, 1)) * np.where(np.arange(10) < 5, 1, -1)
        found = geometry(acts, groups, rng).within
        for statistic in hits:
            compared = found[statistic]["boosting"]
            hits[statistic] += max(compared.uniform.p_above, compared.matched.p_above) <= 0.05
    assert hits["abs_correlation"] == hits["abs_cosine"] == 20
    assert hits["correlation"] <= 5


def test_a_comparison_without_a_null_leaves_the_others():
    """172 neurons and groups of 50 leave 72 others: a random group, and no second one without a common neuron."""
    rng = np.random.default_rng(0)
    acts, groups = layer(rng, n=172), drawn_groups(rng, n=172, size=50, n_draws=99)
    found = geometry(acts, groups, rng)
    assert set(found.missing) == {"boosting-suppressing", "random-random"}
    assert "72 neurons in all" in str(found.missing["random-random"])
    pair = found.between["abs_correlation"]["boosting-suppressing"]
    assert pair.uniform is None
    assert pair.matched.n_draws == 99
    assert set(found.between["cosine"]) == {"boosting-random", "suppressing-random", "boosting-suppressing"}
    assert found.between["cosine"]["boosting-random"].uniform.n_draws == 99
    whole = geometry(layer(rng), drawn_groups(rng, n_draws=99), rng)
    assert not whole.missing
