"""Margins without groups: by the definition in float64, and a planted neuron beside a control without one."""

import numpy as np
import pandas as pd
import pytest
import torch

from rareneuron.maths.margins import AblatedReadout, States
from rareneuron.maths.readout import Readout
from rareneuron.use.scores import Measure, Scores, summary

D, N, VOCAB = 12, 60, 30


def readout(rng, softcap=None, norm="layer"):
    def drawn(*shape):
        return torch.from_numpy(rng.normal(size=shape))

    bias = drawn(D) if norm == "layer" else None
    return Readout(norm=norm, weight=1 + 0.1 * drawn(D), bias=bias, eps=1e-5, W_U=drawn(VOCAB, D), softcap=softcap)


def case(rng, n=40):
    resid, act, W_out = (torch.from_numpy(rng.normal(size=shape)) for shape in ((n, D), (n, N), (N, D)))
    target = torch.from_numpy(rng.integers(0, VOCAB, n))
    other = (target + torch.from_numpy(rng.integers(1, VOCAB, n))) % VOCAB
    return States(resid=resid, act=act, target=target), other, 0.5 * W_out


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_changes_are_those_of_the_definition(norm, softcap):
    rng = np.random.default_rng(0)
    of = readout(rng, softcap, norm)
    states, other, W_out = case(rng)
    value = torch.from_numpy(rng.normal(size=N))
    groups = np.stack([rng.choice(N, 7, replace=False) for _ in range(40)])
    end = AblatedReadout(of, W_out, value)
    before = of(states.resid).log_softmax(-1)
    row = torch.arange(len(states))
    margin = (before[row, states.target] - before[row, other]).numpy()
    assert end.clean_margin(states, other) == pytest.approx(margin, abs=1e-5)
    assert end.clean_logp(states) == pytest.approx(before[row, states.target].numpy(), abs=1e-5)
    margins, logps = end.margin_changes(states, other, groups), end.logp_changes(states, groups)
    for k, group in enumerate(groups):
        moved = states.resid + (value - states.act)[:, group] @ W_out[group]
        after = of(moved).log_softmax(-1)
        expected = (after[row, states.target] - after[row, other]).numpy() - margin
        assert np.abs(expected).max() > 0.1, "the case is too tame"
        assert margins[k] == pytest.approx(expected, abs=2e-6)
        assert logps[k] == pytest.approx((after - before)[row, states.target].numpy(), abs=2e-5)


def planted(rng, n=400, n_documents=80):
    """Neuron 0 alone says which of the words 0 and 1 is right; all others are noise, and the rest of the stream too."""
    of = Readout(norm="rms", weight=None, bias=None, eps=1e-5, W_U=torch.eye(VOCAB, D, dtype=torch.float64))
    W_out = torch.from_numpy(0.05 * rng.normal(size=(N, D)))
    W_out[0] = 0
    W_out[0, 0], W_out[0, 1] = 1.0, -1.0
    target = rng.integers(0, 2, n)
    act = torch.from_numpy(rng.normal(size=(n, N)))
    act[:, 0] = torch.from_numpy(1.0 - 2.0 * target)
    resid = torch.from_numpy(rng.normal(size=(n, D))) + act @ W_out
    states = States(resid=resid, act=act, target=torch.from_numpy(target))
    document = rng.integers(0, n_documents, n)
    return of, W_out, states, torch.from_numpy(1 - target), document


def scored(of, W_out, states, other, document, rng):
    """The change without a group of ten that holds neuron 0, beside 200 groups that don't."""
    end = AblatedReadout(of, W_out, torch.zeros(N, dtype=torch.float64))
    group = np.arange(10)[None]
    random = np.stack([rng.choice(np.arange(10, N), 10, replace=False) for _ in range(200)])
    clean = end.clean_margin(states, other)

    def right(values):
        return (values > 0).astype(float)

    without, drawn = (
        clean + end.margin_changes(states, other, group)[0],
        clean + end.margin_changes(states, other, random),
    )
    measures = {
        "margin": Measure(clean=clean, without={"boosting": without}, random={"uniform": drawn}),
        "accuracy": Measure(clean=right(clean), without={"boosting": right(without)}, random={"uniform": right(drawn)}),
    }
    kind = np.zeros(len(clean), np.int64)
    table = summary(Scores(task="swap", document=document, kinds=("rare",), kind=kind, measures=measures))
    return table.set_index("measure")


def test_a_neuron_that_alone_carries_the_words_is_found():
    rng = np.random.default_rng(0)
    found = scored(*planted(rng), rng)
    assert found.loc["accuracy", "clean"] > 0.7
    assert found.loc["margin", "change"] < -found.loc["margin", "detectable"]
    assert found.loc["margin", "null_p"] == 1 / 201
    assert found.loc["margin", "p"] < 1e-6
    assert found.loc["accuracy", "clean"] + found.loc["accuracy", "change"] == pytest.approx(0.5, abs=0.06)


def test_shuffled_pairs_show_nothing(through):
    """Where a coin decides which word counts as the original, half are right, and no group makes a difference."""
    rows = []
    for seed in through(range(40)):
        rng = np.random.default_rng(seed)
        of, W_out, states, other, document = planted(rng, n=200)
        flipped = torch.from_numpy(rng.random(len(states)) < 0.5)
        target = torch.where(flipped, other, states.target)
        mixed = States(resid=states.resid, act=states.act, target=target)
        found = scored(of, W_out, mixed, torch.where(flipped, states.target, other), document, rng)
        rows.append(
            {
                "accuracy": found.loc["accuracy", "clean"],
                "inside": found.loc["margin", "change_low"] < 0 < found.loc["margin", "change_high"],
                "p": found.loc["margin", "p"],
            }
        )
    table = pd.DataFrame(rows)
    assert table["accuracy"].mean() == pytest.approx(0.5, abs=0.02)
    assert table["inside"].mean() > 0.85
    assert (table["p"] <= 0.05).mean() < 0.2
