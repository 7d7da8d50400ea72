"""Kinds of neurons: planted ones are found, an untrained layer has none, and every number against slow code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rareneuron.maths import neuron_kinds
from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.clustered import clustered_ratio
from rareneuron.maths.frequency import log_frequency
from rareneuron.maths.known_kinds import KINDS
from rareneuron.maths.neuron_kinds import discovery, kinds_of, null_space, written
from rareneuron.maths.readout import Readout
from rareneuron.maths.significance import t_quantile

D, VOCAB, NEURONS, TOKENS = 64, 1_000, 200, 240
N_SEEDS = 5


def layer(seed, norm="layer"):
    """A readout that hears one direction hardly at all and one along frequency, and neurons that write anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    f = torch.from_numpy(log_frequency(1 / np.arange(1.0, VOCAB + 1)))
    axes = torch.linalg.qr(torch.cat([torch.ones(D, 1, dtype=torch.float64), normal(D, 3)], 1)).Q.T[1:]
    W_U = normal(VOCAB, D)
    W_U -= 0.97 * torch.outer(W_U @ axes[0], axes[0])
    W_U[500:510] = 3 * W_U[500] + 0.3 * W_U[500:510]  # ten types that are nearly one
    W_U += torch.outer(f / 2 - W_U @ axes[2], axes[2])
    readout = Readout(norm=norm, weight=None, bias=None, eps=1e-5, W_U=W_U / 4, b_U=f)
    resid = normal(TOKENS, D)
    shift = 0.05 * normal(TOKENS, NEURONS)
    target = torch.multinomial(readout(resid).softmax(-1), 1, generator=generator)[:, 0]
    return readout, resid, shift, target, normal(NEURONS, D), f, axes


def planted(seed, norm="layer"):
    """The same with one neuron of each kind: their places are those of `KINDS`."""
    readout, resid, shift, target, W_out, f, axes = layer(seed, norm)
    size = W_out.norm(dim=1).mean()
    W_out[0] = size * axes[0]
    shift[:, 0] *= 100  # so far that it moves the norm's scale
    W_out[1] = size * axes[2]
    few = readout.W_U[500:510].sum(0)
    W_out[2], W_out[3] = (sign * size * few / few.norm() for sign in (1, -1))
    many = torch.where(torch.arange(VOCAB) % 2 == 0, 1.0, -1.0).double() @ readout.W_U
    readout = replace(readout, W_U=readout.W_U + torch.outer(torch.arange(VOCAB) % 2 * 1.0, many / many.norm()) * 1.5)
    W_out[4] = size * many / many.norm()
    W_out[2:4] -= torch.outer(W_out[2:4] @ W_out[4], W_out[4]) / size**2
    return readout, resid, shift, target, W_out, f


def judged(readout, resid, shift, target, W_out, f):
    effects = AblationEngine(readout, W_out, log_frequency=f).effects(resid, shift, target)
    low = []
    for part in (effects.direct_delta_loss, effects.parts.beyond_frequency):
        sums = [x.abs().double().unflatten(0, (-1, 4)).sum(1).numpy() for x in (part, effects.delta_loss)]
        ratio, error = clustered_ratio(*sums)
        low.append(1 - ratio - error * t_quantile(len(sums[0])))
    found = written(readout, W_out, f, torch.ones(len(W_out)), VOCAB)
    return found, kinds_of(found, *low)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_planted_neurons_of_every_kind_are_found(norm):
    found = np.array([judged(*planted(seed, norm))[1][: len(KINDS)] == np.array(KINDS) for seed in range(N_SEEDS)])
    assert found.mean() >= 0.9, dict(zip(KINDS, found.mean(0), strict=True))
    assert found.any(0).all()


def test_an_untrained_layer_has_none():
    kinds = np.concatenate([judged(*layer(seed)[:6])[1] for seed in range(N_SEEDS)])
    assert (kinds != "").mean() <= 0.05


def test_without_an_effect_that_goes_that_way_a_direction_alone_is_no_kind():
    """Negative control: what is written decides nothing where the share says otherwise."""
    found, kinds = judged(*planted(0))
    assert kinds[0] == "entropy"
    assert kinds[1] == "token-frequency"
    nowhere = np.zeros(NEURONS)
    assert set(kinds_of(found, nowhere, nowhere)[:2]).isdisjoint({"entropy", "token-frequency"})


def test_numbers_agree_with_slow_code():
    readout, _, _, _, W_out, f, _ = layer(3)
    found = written(readout, W_out, f, torch.ones(NEURONS), VOCAB)
    A = (readout.W_U - readout.W_U.mean(0)).numpy()
    centring = np.eye(D) - 1 / D
    directions = np.linalg.svd(A @ centring)[2]
    quiet = directions[-2:-1]  # the last is (1, …, 1), which centring takes away; k is ⌈0.64⌉ = 1
    f = f.numpy()
    for i in range(0, NEURONS, 50):
        w = centring @ W_out[i].numpy()
        logits = A @ w
        assert found.null_space_share[i] == pytest.approx((quiet @ w) @ (quiet @ w) / (w @ w), rel=1e-9)
        cosine = logits @ f / np.linalg.norm(logits) / np.linalg.norm(f)
        assert found.frequency_cosine[i] == pytest.approx(cosine, rel=1e-9)
        cosines = np.array([row @ w / np.linalg.norm(row) / np.linalg.norm(w) for row in readout.W_U.numpy()])
        x = cosines - cosines.mean()
        variance = (x**2).mean()
        assert found.unembedding_variance[i] == pytest.approx(variance, rel=1e-5)
        assert found.unembedding_skew[i] == pytest.approx((x**3).mean() / variance**1.5, abs=1e-4)
        assert found.unembedding_kurtosis[i] == pytest.approx((x**4).mean() / variance**2, rel=1e-4)


def test_random_directions_have_uniform_p_values_in_the_null_space():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(500, D, generator=generator, dtype=torch.float64)
    w = torch.randn(20_000, D, generator=generator, dtype=torch.float64)
    for layer_norm in (True, False):
        _, p = null_space(A.T @ A, w - w.mean(1, keepdim=True) if layer_norm else w, layer_norm=layer_norm)
        assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20_000)


def test_signs_that_a_gate_leaves_open_change_no_kind():
    """Flipping a neuron's row of W_out with its activation, and so the sign of its mean, gives the same numbers."""
    readout, _, _, _, W_out, f, _ = layer(1)
    sign = torch.where(torch.arange(NEURONS) % 3 == 0, -1.0, 1.0)
    one = written(readout, W_out, f, torch.ones(NEURONS), VOCAB)
    other = written(readout, sign[:, None] * W_out, f, sign, VOCAB)
    for name, value in vars(one).items():
        np.testing.assert_allclose(getattr(other, name), value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_dead_neuron_and_unknown_frequencies_are_of_no_kind():
    readout, _, _, _, W_out, _, _ = layer(2)
    W_out[7] = 0
    found = written(readout, W_out, None, torch.ones(NEURONS), VOCAB)
    assert np.isnan(found.null_space_share[7])
    assert found.null_space_q[7] == 1
    assert np.isnan(found.frequency_cosine).all()
    assert (found.frequency_q == 1).all()
    assert kinds_of(found, np.ones(NEURONS), None)[7] == ""


def test_corrected_p_values_are_those_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.02, np.nan, 0.5])
    slow = [min(0.01 * 4, 0.02 * 4 / 2, 0.5 * 4 / 3, 1.0), min(0.02 * 4 / 2, 0.5 * 4 / 3, 1.0), 1.0, 0.5 * 4 / 3]
    np.testing.assert_allclose(discovery(p), slow)


def test_cosines_in_pieces_are_those_in_one_go(monkeypatch):
    readout, _, _, _, W_out, f, _ = layer(0)
    whole = written(readout, W_out, f, torch.ones(NEURONS), VOCAB)
    monkeypatch.setattr(neuron_kinds, "ENTRIES_AT_ONCE", 7 * VOCAB)
    pieces = written(readout, W_out, f, torch.ones(NEURONS), VOCAB)
    np.testing.assert_allclose(pieces.unembedding_kurtosis, whole.unembedding_kurtosis, rtol=1e-5)
