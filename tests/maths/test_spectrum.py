"""Spectra against slow code that reads like the paper, other people's fits, known exponents, and null groups."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from rareneuron.errors import InvalidConfig
from rareneuron.maths import spectrum as sp
from rareneuron.maths.groups import NeuronGroups, neuron_groups, random_groups
from rareneuron.maths.spectrum import alpha_hill, marchenko_pastur_edge, random_directions, spectra_of
from rareneuron.maths.weights import products, spectrum

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "spectrum.json").read_text(encoding="utf-8"))
WIDTHS = (512, 1024, 1600)


def eq_6(eigenvalues, k):
    """As printed."""
    lam = sorted(eigenvalues, reverse=True)
    return 1 / (sum(np.log(lam[i] / lam[k - 1]) for i in range(k)) / k)


def smoothed_peak(eigenvalues):
    """The number of eigenvalues from the peak of their density on, with scipy's kernel density."""
    logs = np.sort(np.log(eigenvalues))[::-1]
    n = len(logs)
    width = 1.06 * (logs[n // 4] - logs[3 * n // 4]) / 1.349 * n**-0.2
    density = gaussian_kde(logs, bw_method=width / logs.std(ddof=1))(logs)
    return 1 + int(density.argmax())


def gaussian_eigenvalues(n, d, rng):
    W = rng.normal(size=(n, d))
    return np.linalg.eigvalsh(W @ W.T / d)


def bent_spectrum(n):
    """A flat bulk and a tail of density exponent 3.5, with a ripple; no random numbers, so it is the same anywhere."""
    i = np.arange(1, 501)
    u = (i - 0.5) / 500
    eigenvalues = np.where(u < 0.6, 0.2 + u, 0.8 * ((1 - u) / 0.4) ** (-1 / 2.5)) * (1 + 0.02 * np.sin(i**2))
    return eigenvalues[4::10] if n == 50 else eigenvalues


# --- α_Hill -------------------------------------------------------------------------------------------------------


def test_alpha_hill_is_eq_6_for_every_rule():
    rng = np.random.default_rng(0)
    for n, d in ((50, 200), (7, 30), (50, 60)):
        eigenvalues = gaussian_eigenvalues(n, d, rng)
        sizes = {"fraction": max(2, n // 10), "half": n // 2, "fix-finger": smoothed_peak(eigenvalues), 2: 2, n: n}
        found = [alpha_hill(rng.permutation(eigenvalues), k) for k in sizes]
        expected = [eq_6(eigenvalues, k) for k in sizes.values()]
        np.testing.assert_allclose(found, expected, rtol=1e-9)  # sums of logarithms, two orders
        assert np.ptp(expected) > 0.5, "rules that agree can't be told apart"
        assert alpha_hill(torch.from_numpy(eigenvalues)) == alpha_hill(eigenvalues.tolist()) == alpha_hill(eigenvalues)


@given(st.integers(0, 10**6), st.floats(1e-8, 1e8), st.sampled_from(["fix-finger", "fraction", "half", 4]))
@settings(max_examples=50, deadline=None)
def test_scale_does_not_matter(seed, scale, k):
    eigenvalues = np.random.default_rng(seed).pareto(2, size=30) + 1
    assert np.isclose(
        alpha_hill(eigenvalues * scale, k), alpha_hill(eigenvalues, k), rtol=1e-7
    )  # log(1e8) loses digits


@pytest.mark.parametrize("k", ["fix-finger", "fraction", "half", 300])
@pytest.mark.parametrize("exponent", [0.7, 1.5, 4.0])
def test_pareto_tails_have_their_exponent(k, exponent):
    """P(λ > x) = x^(−exponent), whose density exponent is one more."""
    draws = np.random.default_rng(1).pareto(exponent, size=(20, 1000)) + 1
    found = [alpha_hill(draw, k) for draw in draws]
    # mean of 20: the standard error is exponent / √(20 k), k ≥ 100
    assert np.isclose(np.mean(found), exponent, rtol=4 / np.sqrt(20 * 100))


@pytest.mark.parametrize("d", WIDTHS)
def test_gaussian_rows_have_the_known_values(d):
    rng = np.random.default_rng(d)
    spectra = np.stack([gaussian_eigenvalues(50, d, rng)[::-1] for _ in range(200)])
    known, found = GOLDEN["gaussian_rows"], sp.statistics_by_blocks(spectra, d, "fix-finger", "paper")
    assert np.isclose(found["alpha_hill_half"].mean(), known["half"][str(d)], atol=0.15)  # printed to 0.1, sd 0.4/√200
    mean, sd = known["released"][str(d)]
    released = sp.statistics_by_blocks(spectra, d, "fix-finger", "released")["alpha_hill"]
    assert abs(released.mean() - mean) < 4 * sd / np.sqrt(100)  # two means of 200 draws
    assert abs(released.std() - sd) < 0.25 * sd
    mean, sd = known["fix_finger_100_bins"][str(d)]
    assert abs(found["alpha_hill"].mean() - mean) < sd
    assert found["alpha_hill"].std() < sd / 3, "smoothing the density is there to make k steady"


def peak_of_100_bins(eigenvalues):
    """The density exponent as AlphaPruning computes it.

    λ_min lies up to 1.5 times the lower edge of the fullest of 100 bins of log10 λ, where the Kolmogorov-Smirnov
    distance is least. The lower bound, a logarithm, is compared with raw eigenvalues, so there is none.
    """
    lam = np.sort(eigenvalues)
    counts, edges = np.histogram(np.log10(lam), bins=100)
    peak = 10 ** edges[counts.argmax()]
    fits = []
    for i in range(len(lam) - 1):
        if np.log10(0.95 * peak) <= lam[i] <= 1.5 * peak:
            tail = lam[i:]
            alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
            gap = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
            fits.append((gap, alpha))
    return min(fits)[1]


@pytest.mark.parametrize("d", WIDTHS)
def test_known_fix_finger_values_are_density_exponents(d):
    """The values known for a 100-bin peak are one more than Eq. 6, and chosen by a further search."""
    rng = np.random.default_rng(d)
    found = [peak_of_100_bins(gaussian_eigenvalues(50, d, rng)) for _ in range(200)]
    mean, sd = GOLDEN["gaussian_rows"]["fix_finger_100_bins"][str(d)]
    assert abs(np.mean(found) - mean) < 4 * sd / np.sqrt(100)  # two means of 200 draws


@pytest.mark.parametrize("n", [500, 50])
def test_weightwatcher_and_powerlaw_fit_one_more_than_eq_6(n):
    """They report the exponent of the density, Eq. 6 that of the distribution: α = 1 + α_Hill at the same tail."""
    known, eigenvalues = GOLDEN["fits"][str(n)], bent_spectrum(n)
    assert np.isclose(1 + alpha_hill(eigenvalues, known["n_tail"]), known["alpha"], rtol=1e-9)
    found = sp.density_exponents(np.sort(eigenvalues)[None, ::-1].copy())[0]
    assert np.isclose(found, known["alpha"], rtol=1e-9)
    assert abs(alpha_hill(eigenvalues, known["n_tail"]) - 2.5) < 0.2  # what bent_spectrum planted


def test_degenerate_spectra():
    for k in ("fix-finger", "fraction", "half", 3):
        assert alpha_hill(np.full(20, 0.3), k) == np.inf  # no tail at all
        # zeros and what rounding makes of them are left out, and n is what remains
        padded = np.concatenate([np.arange(1.0, 21), np.zeros(5), [-1e-18]])
        assert alpha_hill(padded, k) == alpha_hill(np.arange(1.0, 21), k)
    assert np.isclose(alpha_hill([2.0, 1.0], "fraction"), 2 / np.log(2))  # never fewer than two
    mostly_equal = np.array([1.0] * 12 + [2.0, 3.0, 5.0])
    assert np.isclose(alpha_hill(mostly_equal), eq_6(mostly_equal, 15))  # the peak is where they are equal


@pytest.mark.parametrize(
    ("eigenvalues", "k", "message"),
    [
        ([1.0, 2.0, np.nan], "half", "aren't the eigenvalues"),
        ([1.0, 2.0, np.inf], "half", "aren't the eigenvalues"),
        ([1.0, 2.0, -0.1], "half", "aren't the eigenvalues"),
        ([1.0], "half", "a tail needs two"),
        ([], "half", "a tail needs two"),
        ([1.0, 0.0, 0.0], "half", "1 are above 0"),
        ([1.0, 2.0, 3.0], 1, "from 2 to 3"),
        ([1.0, 2.0, 3.0], 4, "from 2 to 3"),
        ([1.0, 2.0, 3.0], "elbow", "fix-finger, fraction, half"),
    ],
)
def test_what_has_no_tail_is_refused(eigenvalues, k, message):
    with pytest.raises(InvalidConfig, match=message):
        alpha_hill(eigenvalues, k)


# --- all statistics -----------------------------------------------------------------------------------------------


def of(W, definitions="paper"):
    matrices = products(torch.as_tensor(W), np.arange(len(W))[None], definitions)
    return sp.statistics_by_blocks(spectra_of(matrices), W.shape[1], "fix-finger", definitions)


@given(st.integers(0, 10**6), st.sampled_from(["paper", "released"]))
@settings(max_examples=20, deadline=None)
def test_rotations_and_the_order_of_rows_do_not_matter(seed, definitions):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(12, 20)) * rng.exponential(size=12)[:, None]
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    changed = [W[rng.permutation(12)]]
    if definitions == "paper":
        changed.append(W @ rotation)  # Pearson's means are those of the given coordinates
    for other in changed:
        for name, value in of(W, definitions).items():
            assert np.isclose(of(other, definitions)[name], value, rtol=1e-6), name  # the least eigenvalue's rounding


def test_stable_rank_and_entropy_span_their_range():
    equal, one = of(2 * np.eye(8, 30)), of(np.outer(np.arange(1, 9), np.ones(30)) + 1e-3 * np.eye(8, 30))
    assert np.isclose(equal["stable_rank"], 8)
    assert np.isclose(equal["spectral_entropy"], 1)
    assert np.isclose(one["stable_rank"], 1, atol=1e-7)  # the other eigenvalues are 1e-10 of the largest
    assert abs(one["spectral_entropy"]) < 1e-7


def test_alpha_hat_is_the_density_exponent_times_log10_of_the_norm():
    W = np.random.default_rng(0).normal(size=(40, 100))
    lam = np.linalg.eigvalsh(W @ W.T)  # without 1/d, as WeightWatcher
    alpha = sp.density_exponents(lam[None, ::-1].copy())[0]
    assert np.isclose(of(W)["pl_alpha_hat"], alpha * np.log10(lam.max()), rtol=1e-9)


def test_marchenko_pastur_edge_agrees_with_simulation():
    for size, d, sigma in ((200, 400, 1.0), (100, 1600, 0.3)):
        W = sigma * np.random.default_rng(0).normal(size=(20, size, d))
        largest = np.linalg.eigvalsh(W @ W.swapaxes(1, 2) / d)[:, -1].mean()
        edge = marchenko_pastur_edge(size, d, sigma**2)
        assert 0.97 * edge < largest < edge  # finite matrices stay below by a Tracy-Widom shift of order n^(−2/3)
        directions = spectra_of(random_directions(size, d, 20, np.random.default_rng(1)))[:, 0].mean()
        assert np.isclose(sigma**2 * directions, largest, rtol=0.01)  # lengths of rows vary by 1/√(2d)


# --- groups against nulls -----------------------------------------------------------------------------------------

SIZE, N, D = 12, 600, 40


def groups(seed=0, n_draws=200, n=N):
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=n)
    return neuron_groups(
        delta, np.abs(delta), size=SIZE, n_draws=n_draws, covariate=rng.random(n), matched_on="x", rng=rng
    )


def slow_statistics(W, definitions, k):
    """One group, in numpy and loops."""
    n, d = W.shape
    Xi = W @ W.T / d if definitions == "paper" else np.corrcoef(W)
    lam = np.linalg.eigvalsh(Xi)[::-1]
    share = lam / lam.sum()
    out = {"stable_rank": lam.sum() / lam[0], "largest_eigenvalue": lam[0]}
    out["spectral_entropy"] = -sum(p * np.log(p) for p in share) / np.log(n)
    if definitions == "paper":
        out["alpha_hill"], out["alpha_hill_fix_finger"] = eq_6(lam, k), eq_6(lam, smoothed_peak(lam))
        out["alpha_hill_fraction"], out["alpha_hill_half"] = eq_6(lam, 2), eq_6(lam, n // 2)
        out["n_tail"] = k
    else:
        out["n_tail"] = n // 10
        out["alpha_hill"] = 1 / np.mean([np.log(lam[i] / lam[n // 10]) for i in range(n // 10)])
    return out


@pytest.mark.parametrize("definitions", ["paper", "released"])
def test_spectrum_agrees_with_slow_code(definitions):
    rng = np.random.default_rng(0)
    weights = {
        "W_in": rng.normal(size=(N, D)),
        "W_out": rng.normal(size=(N, D)) * rng.exponential(size=N)[:, None] + 0.3,
        "W_gate": rng.normal(size=(N, 2 * D)),
    }
    drawn = groups(n_draws=201)
    found = spectrum(weights, drawn, k=5, definitions=definitions)
    matched = {"boosting": drawn.matched_random[:201], "suppressing": drawn.matched_random[201:]}
    for matrix, W in weights.items():
        uniform = [slow_statistics(W[group], definitions, 5) for group in drawn.random]
        for group, halves in matched.items():
            values = slow_statistics(W[getattr(drawn, group)], definitions, 5)
            like = [slow_statistics(W[members], definitions, 5) for members in halves]
            for name, value in values.items():
                for null, draws in (("uniform", uniform), ("matched", like)):
                    record = found.against[matrix, name, group, null]
                    expected = [draw[name] for draw in draws]
                    # eigenvalues to 1e-14, in a logarithm of a ratio near 1
                    assert np.isclose(record.value, value, rtol=1e-8), name
                    assert np.isclose(record.null_mean, np.mean(expected), rtol=1e-8), name
                    assert record.n_draws == len(expected)
        for name in uniform[0]:
            mean = np.mean([draw[name] for draw in uniform])
            assert np.isclose(found.against[matrix, name, "random", "marchenko-pastur"].value, mean, rtol=1e-8), name
        assert found.eigenvalues[matrix, "boosting"].shape == (SIZE,)
    assert found.definitions == definitions
    assert found.k == (5 if definitions == "paper" else "released")


def test_rows_are_json_and_name_matrix_and_null():
    rng = np.random.default_rng(0)
    found = spectrum({"W_in": rng.normal(size=(N, D)), "W_out": rng.normal(size=(N, D))}, groups())
    rows = json.loads(json.dumps(found.rows(), allow_nan=False))
    places = {(row["matrix"], row["statistic"], row["group"], row["null"]) for row in rows}
    assert places == set(found.against)
    assert len(rows) == 2 * 8 * (2 * 3 + 1)  # statistics; two groups against three nulls, random against one
    constant = [row for row in rows if row["statistic"] == "alpha_hill"]
    assert all(row["effect_size"] is not None for row in constant)
    fixed = spectrum({"W_in": rng.normal(size=(N, D))}, groups(), k="half").rows()
    assert {row["effect_size"] for row in fixed if row["statistic"] == "n_tail"} == {None}  # the rule fixes k


def test_a_seed_repeats_and_storage_does_not_matter():
    W = torch.from_numpy(np.random.default_rng(0).normal(size=(N, D))).to(torch.bfloat16)
    drawn = groups()
    first = spectrum({"W_in": W}, drawn, rng=np.random.default_rng(1))
    for same in (W.float(), W.double().numpy(), torch.nn.Parameter(W)):
        assert spectrum({"W_in": same}, drawn, rng=np.random.default_rng(1)).against == first.against
    assert spectrum({"W_in": W}, drawn, rng=np.random.default_rng(2)).against != first.against


def test_too_few_draws_are_refused():
    W = np.random.default_rng(0).normal(size=(N, D))
    drawn = groups()
    with pytest.raises(InvalidConfig, match="98 null draws"):
        spectrum({"W_in": W}, replace(drawn, random=drawn.random[:98], matched_random=None))
    with pytest.raises(InvalidConfig, match="98 null draws"):
        spectrum({"W_in": W}, replace(drawn, matched_random=drawn.matched_random[:196]))  # half of them for each group


def test_groups_wider_than_the_matrix_have_defined_values():
    found = spectrum({"W_in": np.random.default_rng(0).normal(size=(N, 8))}, groups())  # 12 neurons in 8 dimensions
    assert all(np.isfinite(record.value) for record in found.against.values())
    assert (found.eigenvalues["W_in", "boosting"] > 0).sum() == 8


@pytest.mark.slow
def test_a_planted_tail_is_found():
    """Shared directions of strengths j^(−1/2): a heavy tail of the boosting group in W_out alone."""
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn = groups(seed)
        weights = {name: rng.normal(size=(N, D)) for name in ("W_in", "W_out")}
        strength = 3 / np.sqrt(np.arange(1, 5))
        shared = rng.normal(size=(4, D))
        weights["W_out"][drawn.boosting] += (rng.normal(size=(SIZE, 4)) * strength) @ shared / 2
        against = spectrum(weights, drawn).against
        nulls = ("uniform", "matched", "marchenko-pastur")
        hits += all(against["W_out", "alpha_hill", "boosting", null].p_below <= 0.05 for null in nulls)
    assert hits >= 18


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is():
    """False positives of every statistic and null at 5 %, over 1,000 groups of Gaussian rows.

    Matched draws are uniform here, too: that members and draws are exchangeable is for maths.groups to see to.
    """
    rejected = {}
    for seed in range(500):
        rng = np.random.default_rng(10_000 + seed)
        shuffled = rng.permutation(N)
        drawn = NeuronGroups(
            boosting=shuffled[:SIZE],
            suppressing=shuffled[SIZE : 2 * SIZE],
            random=random_groups(shuffled[2 * SIZE :], SIZE, 119, rng),  # 3 of 120 on either side are 5 %
            matched_random=random_groups(shuffled[2 * SIZE :], SIZE, 238, rng),  # halves of 119
            matched_on=None,
        )
        found = spectrum({"W": rng.normal(size=(N, D))}, drawn, rng=rng)
        for (_, statistic, group, null), record in found.against.items():
            if group != "random":
                rejected.setdefault((statistic, null), []).append(record.p <= 0.05)
    rates = {place: np.mean(hits) for place, hits in rejected.items()}
    for (statistic, null), rate in rates.items():
        low = 0 if statistic == "n_tail" else 0.03  # a count has ties, and ties only make p larger
        assert low <= rate <= 0.07, (statistic, null, rate)
