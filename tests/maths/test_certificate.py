"""Intervals hold on heavy-tailed residuals, where those of a few random contexts don't."""

import numpy as np
import pytest
from scipy.stats import t

from rareneuron.maths.certificate import (
    LEAST_CELLS,
    Estimated,
    cells_allowed,
    certify,
    in_doubt,
    pooled_mean,
    shared_part,
    undecided_units,
)

CONTEXTS, UNITS, PER_CONTEXT = 40, 600, 8


def heavy_case(seed):
    """Estimates whose errors scale with them, share a factor within a unit, and are heavy-tailed."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 1.2, UNITS)) * np.exp(rng.normal(0, 0.8, (CONTEXTS, UNITS)))
    signed = size * rng.uniform(-1, 1, size.shape)
    scale = 0.03 * size * np.exp(rng.normal(0, 0.7, size.shape))
    own = rng.standard_t(3, UNITS)
    errors = scale * (0.5 * own + rng.standard_t(2.5, (2, *size.shape)) - 0.3)
    sums = {"absolute": size, "signed": signed, "kl": scale * np.exp(rng.normal(0, 0.5, size.shape))}
    return sums, np.stack([size, signed]) + errors


def certified(seed, share=0.03, **options):
    sums, exact = heavy_case(seed)
    asked = np.zeros(exact.shape[1:], int)

    def patch(units, contexts):
        np.add.at(asked, (contexts, units), 1)
        return exact[:, contexts, units]

    n_cells = round(share * asked.size)
    kinds = [Estimated(sums=sums, n_tokens=CONTEXTS * PER_CONTEXT)]
    found = certify(kinds, patch, np.random.default_rng(seed), n_cells=n_cells, **options)
    return found, exact.sum(1) / (CONTEXTS * PER_CONTEXT), asked


def naive_coverage(seed, n_contexts=3):
    """Coverage of the t interval of the difference in a few random contexts."""
    sums, exact = heavy_case(seed)
    rows = np.random.default_rng(seed).permutation(CONTEXTS)[:n_contexts]
    residual = exact[0] - sums["absolute"]
    half = t.ppf(0.975, n_contexts - 1) * residual[rows].std(0, ddof=1) / np.sqrt(n_contexts)
    return (np.abs(residual[rows].mean(0) - residual.mean(0)) <= half).mean()


def test_intervals_cover_where_naive_ones_do_not():
    covered, largest = [], []
    for seed in range(12):
        found, truth, _ = certified(seed)
        inside = np.abs(found.estimate - truth) <= found.half_width
        covered.append(inside.mean(1))
        largest.append(inside[0, np.argsort(-truth[0])[:100]].mean())
    assert np.all(np.mean(covered, 0) > 0.94)
    assert np.mean(largest) > 0.93
    half, error = found.half_width[0], np.abs(found.estimate[0] - truth[0])
    assert np.median(half / np.maximum(error, 1e-12)) < 8, "intervals that hold everything say nothing"
    # The negative control: as many cells spent on three random contexts cover less.
    assert np.mean([naive_coverage(seed, n_contexts=3) for seed in range(12)]) < 0.94


def test_verified_estimates_are_nearer_and_name_who_is_undecided():
    found, truth, _ = certified(3, share=0.1)
    sums, _ = heavy_case(3)
    before = np.abs(sums["absolute"].sum(0) / (CONTEXTS * PER_CONTEXT) - truth[0])
    top = np.argsort(-truth[0])[:80]
    assert np.square(np.abs(found.estimate[0] - truth[0])[top]).mean() < 0.5 * np.square(before[top]).mean()
    wrong = set(np.argsort(-found.estimate[0])[:50]) - set(np.argsort(-truth[0])[:50])
    assert wrong <= set(found.undecided.tolist())


def test_the_budget_is_kept_and_no_cell_is_patched_twice():
    found, _, asked = certified(0, share=0.02)
    assert asked.max() == 1
    assert asked.sum() == found.known.sum() == round(0.02 * asked.size)


def test_a_share_of_few_cells_is_raised_to_what_a_pilot_needs():
    assert cells_allowed(0.02, 100_000) == 2_000
    assert cells_allowed(0.0005, 31_755) == LEAST_CELLS, "SmolLM2's heads in 145 contexts"
    assert cells_allowed(0.02, 100) == 100, "there are no more"


def units_of_layers(seed, n_units=219, n_contexts=145, n_layers=30):
    """As heads of SmolLM2: few units, each layer with errors of a size of its own."""
    rng = np.random.default_rng(seed)
    layer = np.sort(rng.integers(0, n_layers, n_units))
    size = np.exp(rng.normal(-2, 0.7, n_units)) * np.exp(rng.normal(0, 0.8, (n_contexts, n_units)))
    signed = size * rng.uniform(-1, 1, size.shape)
    scale = 0.1 * size * np.exp(rng.normal(0, 0.7, size.shape)) * np.exp(rng.normal(0, 0.5, n_layers))[layer]
    errors = scale * (0.5 * rng.standard_t(3, n_units) + rng.standard_t(2.5, (2, *size.shape)) - 0.3)
    sums = {"absolute": size, "signed": signed, "kl": scale * np.exp(rng.normal(0, 0.5, size.shape))}
    return sums, np.stack([size, signed]) + errors, layer


@pytest.mark.slow
def test_the_fewest_cells_serve_few_units_of_many_layers_and_a_handful_does_not():
    covered = {LEAST_CELLS: [], 16: []}
    for seed in range(15):
        sums, exact, layer = units_of_layers(seed)

        def patch(units, contexts, exact=exact):
            return exact[:, contexts, units]

        for n_cells, inside in covered.items():
            given = [Estimated(sums=sums, n_tokens=200)]
            found = certify(given, patch, np.random.default_rng(seed), n_cells=n_cells, rank=10, layer=layer)
            inside.append(np.abs(found.estimate - exact.sum(1) / 200) <= found.half_width)
    assert np.mean(covered[LEAST_CELLS]) > 0.94
    assert np.mean(covered[16]) < 0.92


def test_flagged_units_are_exact_and_outside_the_budget():
    flagged = np.zeros(UNITS, bool)
    flagged[[3, 77]] = True
    found, truth, asked = certified(0, share=0.02, flagged=flagged)
    assert found.exact[flagged].all()
    assert asked[:, flagged].min() == 1
    np.testing.assert_allclose(found.estimate[:, flagged], truth[:, flagged])
    assert not found.half_width[:, flagged].any()
    assert asked[:, ~flagged].sum() == round(0.02 * asked.size)


def test_a_budget_for_every_cell_gives_the_truth_without_intervals():
    found, truth, _ = certified(0, share=1.0)
    assert found.exact.all()
    np.testing.assert_allclose(found.estimate, truth)
    assert not found.half_width.any()
    assert not len(found.undecided)


def test_the_same_generator_gives_the_same_certificate():
    first, again = certified(5)[0], certified(5)[0]
    assert np.array_equal(first.estimate, again.estimate)
    assert np.array_equal(first.known, again.known)


@pytest.mark.parametrize("rank", [1, 50])
@pytest.mark.parametrize("n_units", [1, 2, 5])
def test_few_units_are_served(n_units, rank):
    """As many as a layer has heads, or fewer."""
    sums, exact = heavy_case(0)
    sums, exact = {name: value[:, :n_units] for name, value in sums.items()}, exact[..., :n_units]
    found = certify(
        [Estimated(sums=sums, n_tokens=320)],
        lambda units, contexts: exact[:, contexts, units],
        np.random.default_rng(0),
        n_cells=20,
        rank=rank,
    )
    assert np.isfinite(found.estimate).all()
    assert np.isfinite(found.half_width).all()


def test_estimates_without_error_are_confirmed():
    sums, _ = heavy_case(0)
    exact = np.stack([sums["absolute"], sums["signed"]])
    found = certify(
        [Estimated(sums=sums, n_tokens=320)],
        lambda units, contexts: exact[:, contexts, units],
        np.random.default_rng(0),
        n_cells=500,
    )
    np.testing.assert_allclose(found.estimate, exact.sum(1) / 320)
    assert found.half_width.max() < 1e-12


def test_a_mean_that_is_noise_is_not_used():
    w = np.ones(400)
    noise = np.random.default_rng(0).standard_normal(400)
    assert abs(pooled_mean(noise - noise.mean() + 1e-3, w)[0]) < 1e-4
    assert pooled_mean(noise + 1, w)[0] == pytest.approx(1 + noise.mean(), rel=0.01)


def test_the_shared_part_is_found():
    rng = np.random.default_rng(0)
    cells = np.zeros((40, 300), bool)
    cells[:6] = True
    own, single = rng.standard_normal(300), rng.standard_normal((40, 300))
    assert shared_part(np.where(cells, single, 0), cells) < 0.06
    assert shared_part(np.where(cells, np.sqrt(0.5) * (own + single), 0), cells) == pytest.approx(0.55, abs=0.1)


def test_a_unit_is_undecided_where_its_interval_holds_the_border():
    estimate, half = np.array([5.0, 3.0, 2.0, 0.1]), np.array([0.1, 0.6, 0.2, 0.0])
    assert undecided_units(estimate, half, 2).tolist() == [1]
    assert undecided_units(estimate, half, 4).tolist() == []


def test_cells_serve_every_kind_of_token():
    """Rare tokens decide which cells are patched; common ones have exact values there, and intervals too."""
    sums, exact = heavy_case(1)
    others, exact_others = heavy_case(2)
    both = np.concatenate([exact, exact_others])
    kinds = [Estimated(sums=sums, n_tokens=320), Estimated(sums=others, n_tokens=160)]
    found = certify(kinds, lambda unit, context: both[:, context, unit], np.random.default_rng(0), n_cells=800)
    truth = np.concatenate([exact.sum(1) / 320, exact_others.sum(1) / 160])
    assert (np.abs(found.estimate - truth) <= found.half_width).mean(1).min() > 0.9
    np.testing.assert_allclose(found.by_context[:, found.known], both[:, found.known])
    np.testing.assert_allclose(found.by_context.sum(1) / [[320], [320], [160], [160]], found.estimate)
    alone = certify(kinds[:1], lambda unit, context: exact[:, context, unit], np.random.default_rng(0), n_cells=800)
    assert np.array_equal(alone.estimate, found.estimate[:2])


def test_patching_ends_where_more_of_it_decides_nothing():
    """Errors far below what contexts leave open are enough; with no such bound the whole budget is spent."""
    _, _, all_of_it = certified(0, share=0.2, enough=np.zeros(UNITS))
    _, _, little = certified(0, share=0.2, enough=np.full(UNITS, 10.0))
    assert little.sum() < 0.7 * all_of_it.sum()
    covered = []
    for seed in range(12):
        found, truth, _ = certified(seed, share=0.2, enough=np.abs(certified(seed)[1][0]) * 0.05)
        covered.append((np.abs(found.estimate - truth) <= found.half_width).mean(1))
    assert np.all(np.mean(covered, 0) > 0.94)


def test_a_unit_is_in_doubt_if_it_moves_far_and_may_be_large():
    size, move = np.array([[9.0, 8.0, 4.5, 1.0, 3.0]]), np.array([[0.1, 0.5, 0.5, 0.5, 0.1]])
    assert in_doubt(size, move, 1.0, rank=2).tolist() == [False, True, True, False, False]
    assert in_doubt(size, move, np.full(5, 10.0), rank=2).tolist() == [False] * 5
    assert in_doubt(size, move, 1.0, rank=50).tolist() == [False, True, True, True, False]


def test_errors_of_layers_may_differ_in_size():
    """Half of the units err ten times as much: told so, intervals hold in both halves."""
    covered = {told: [] for told in (True, False)}
    for seed in range(12):
        sums, exact = heavy_case(seed)
        layer = np.arange(UNITS) % 2
        estimate = np.stack([sums["absolute"], sums["signed"]])
        exact = estimate + (exact - estimate) * np.where(layer, 10.0, 1.0)
        for told, inside in covered.items():
            found = certify(
                [Estimated(sums=sums, n_tokens=320)],
                lambda units, contexts, exact=exact: exact[:, contexts, units],
                np.random.default_rng(seed),
                n_cells=round(0.05 * exact[0].size),
                layer=layer if told else None,
            )
            held = np.abs(found.estimate[0] - exact[0].sum(0) / 320) <= found.half_width[0]
            inside.append([held[layer == 0].mean(), held[layer == 1].mean()])
    assert np.all(np.mean(covered[True], 0) > 0.93)
    assert np.mean(covered[False], 0)[1] < np.mean(covered[True], 0)[1]
