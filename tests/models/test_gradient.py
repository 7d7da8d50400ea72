"""Gradients give, for every architecture, what patching tends to as the ablation's shift becomes small."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rareneuron.maths.first_order import SUMS, ContextTotals, by_unit
from rareneuron.models.families import FAMILIES
from rareneuron.models.gradient import batches_by_length, estimates, random_signs, site_means
from rareneuron.models.sites import head_of, site_of

from .conftest import D_MLP

CONTEXT, POSITION = np.array([0, 0, 1, 2, 2]), np.array([1, 4, 3, 0, 2])
STEP = 4e-3  # of the shift; with the five-point rule errors are of the order of its fourth power


def sites_of(case):
    anatomy = case.adapter.anatomy
    return [site_of(anatomy, layer, kind) for layer in (0, 1) for kind in ("neurons", "heads")]


def estimated(case, sites, means, **options):
    """FirstOrder of every site, tokens in the order asked for."""
    found = {}
    anatomy = case.adapter.anatomy
    for batch in estimates(anatomy, head_of(anatomy), sites, case.windows, (CONTEXT, POSITION), means, **options):
        for i, of_site in enumerate(batch.of_site):
            for name, value in vars(of_site).items():
                for row, index in enumerate(batch.index):
                    found.setdefault((i, name), {})[index] = value[row]
    return {key: torch.stack([rows[i] for i in range(len(rows))]) for key, rows in found.items()}


@contextmanager
def shifted(site, unit, step, mean_act):
    """Let a unit go a fraction of the way to its mean, at every position."""
    columns = slice(unit * site.width, (unit + 1) * site.width)

    def move(module, args):
        act = args[0].clone()
        act[..., columns] += step * (mean_act[columns] - act[..., columns])
        return (act, *args[1:])

    handle = site.module.register_forward_pre_hook(move)
    try:
        yield
    finally:
        handle.remove()


def losses(case):
    with torch.inference_mode():
        log_p = case.adapter.model(torch.from_numpy(case.windows)).logits.double().log_softmax(-1)
    return -log_p[CONTEXT, POSITION, case.windows[CONTEXT, POSITION + 1]]


def derivative(case, site, unit, mean_act):
    """Derivative of the loss by the step at zero, by the five-point rule through the whole model."""
    at = {}
    for factor in (-2, -1, 1, 2):
        with shifted(site, unit, factor * STEP, mean_act):
            at[factor] = losses(case)
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_order_is_what_patching_tends_to(name, tiny, in_float64):
    case = tiny(name)
    in_float64(case.adapter.model)
    sites = sites_of(case)
    means = [0.3 + mean.mean for mean in site_means(case.adapter.anatomy, sites, case.windows)]
    found = estimated(case, sites, means, n_draws=0)
    for i, (site, mean) in enumerate(zip(sites, means, strict=True)):
        units = range(0, D_MLP, 6) if site.kind == "neurons" else range(2)
        truth = torch.stack([derivative(case, site, unit, mean) for unit in units], 1)
        assert truth.abs().max() > 0.05, "the case is too tame to tell right from wrong"
        scale = truth.abs().max().item()
        assert_close(found[i, "delta_loss"][:, list(units)], truth, rtol=1e-4, atol=1e-4 * scale)
        # What is seen at the token alone isn't the whole effect of an earlier layer, and is that of the last one.
        last = site.layer == 1
        assert torch.allclose(found[i, "here"], found[i, "delta_loss"], rtol=1e-9) == last


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gemma2"])
def test_a_unit_that_is_at_its_mean_has_exactly_no_effect(name, tiny):
    case = tiny(name)
    sites = sites_of(case)[:1]
    with torch.no_grad():  # the MLP's input projection gives every neuron the same activation everywhere
        for path in (case.adapter.family.mlp_in, case.adapter.family.mlp_gate):
            if path is not None:
                for parameter in case.adapter.anatomy.blocks[0].get_submodule(path).parameters():
                    parameter.zero_()
    means = [torch.zeros(D_MLP, dtype=torch.float64)]
    found = estimated(case, sites, means)
    for name in ("delta_loss", "here", "size", "kl", "move"):
        assert not found[0, name].any()


def test_the_curvature_averages_to_the_leading_term_of_the_kl(tiny):
    """At the last layer, over signs: half the variance of the logits' first-order change, which small shifts reach."""
    case = tiny("gpt_neox")
    site = site_of(case.adapter.anatomy, 1)
    capture = case.adapter.capture(case.windows)
    resid, act = capture.resid[CONTEXT, POSITION], capture.act[CONTEXT, POSITION]
    mean = act.mean(0)
    found = estimated(case, [site], [mean], n_draws=2_000)[0, "kl"]
    readout, step = case.adapter.readout(), 1e-4
    log_p = readout(resid).log_softmax(-1)
    for unit in range(0, D_MLP, 5):
        moved = resid + step * (mean - act)[:, [unit]] * site.W_out[unit]
        kl = (log_p.exp() * (log_p - readout(moved).log_softmax(-1))).sum(-1) / step**2
        assert_close(found[:, unit], kl, rtol=0.15, atol=1e-6)  # of 2,000 draws, whose S² scatter by √2 of it
    assert found.max() > 1e-2


def test_estimates_do_not_depend_on_batches_and_are_repeated_by_a_key(tiny):
    case = tiny("gpt2")
    sites = sites_of(case)
    means = [mean.mean for mean in site_means(case.adapter.anatomy, sites, case.windows)]
    once = estimated(case, sites, means, n_draws=2, key=7)
    again = estimated(case, sites, means, n_draws=2, key=7)
    one_by_one = estimated(case, sites, means, n_draws=2, key=7, row_positions=1)
    other = estimated(case, sites, means, n_draws=2, key=8)
    for key, value in once.items():
        assert torch.equal(value, again[key])
        if key[1] != "move":  # over the positions of the batch
            assert_close(value, one_by_one[key])
    assert not torch.allclose(once[0, "kl"], other[0, "kl"], rtol=0.01)
    assert torch.equal(once[0, "delta_loss"], other[0, "delta_loss"])


def test_parameters_are_left_as_they_were(tiny):
    case = tiny("gpt_neox")
    parameter = next(case.adapter.model.parameters())
    assert parameter.requires_grad
    estimated(case, sites_of(case), [m.mean for m in site_means(case.adapter.anatomy, sites_of(case), case.windows)])
    assert parameter.requires_grad
    assert parameter.grad is None
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in case.adapter.model.modules())


def test_means_over_all_positions_and_over_later_ones(tiny):
    case = tiny("opt")
    sites = sites_of(case)[:1]
    (found,) = site_means(case.adapter.anatomy, sites, case.windows, contexts_per_batch=2)
    capture = case.adapter.capture(case.windows, 0)
    assert_close(found.mean, capture.act.mean((0, 1)))
    assert_close(found.mean_later, capture.act[:, 2:].mean((0, 1)))
    assert found.median_norm == pytest.approx(capture.resid.norm(dim=-1).median().item())


def test_batches_hold_every_token_once_and_little_padding():
    position = np.random.default_rng(0).integers(0, 256, 500)
    batches = list(batches_by_length(position, 2048))
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(500))
    padded = sum(len(batch) * (position[batch].max() + 1) for batch in batches)
    assert padded < 1.1 * (position + 1).sum()


def test_signs_are_fair_and_belong_to_a_place():
    signs = random_signs(np.array([3, 5]), np.array([7, 7]), 2, 10_001, 0)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.02
    assert np.array_equal(signs[:, 1:], random_signs(np.array([5]), np.array([7]), 2, 10_001, 0))
    assert not np.array_equal(signs[0], signs[1])


def test_sums_by_context_are_those_of_tokens_whatever_their_order(tiny):
    case = tiny("gpt_neox")
    anatomy, sites = case.adapter.anatomy, sites_of(case)[:1]
    means = [mean.mean for mean in site_means(anatomy, sites, case.windows)]
    totals = ContextTotals(3, D_MLP)
    tokens = (CONTEXT, POSITION)
    for batch in estimates(anatomy, head_of(anatomy), sites, case.windows, tokens, means, row_positions=8):
        totals.add(batch.of_site[0], CONTEXT[batch.index])
    whole = {name: value for (_, name), value in estimated(case, sites, means).items()}
    estimate = (whole["delta_loss"] + whole["kl"]).numpy()
    for context in range(3):
        rows = context == CONTEXT
        np.testing.assert_allclose(totals.values["signed"][context], estimate[rows].sum(0))
        np.testing.assert_allclose(totals.values["absolute"][context], np.abs(estimate[rows]).sum(0))
    assert list(totals.values) == list(SUMS)
    assert totals.n_tokens.tolist() == [2, 1, 2]
    values = torch.arange(12.0).reshape(1, 2, 6)
    assert torch.equal(by_unit(values, 3), torch.tensor([[[3.0, 12.0], [21.0, 30.0]]]))
