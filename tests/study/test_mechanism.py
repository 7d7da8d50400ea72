"""A study takes its effects apart: the numbers against the definitions, and every place where they are shown."""

import json

import numpy as np
import pytest
import torch

from rareneuron.cli import cli
from rareneuron.conclude import mechanism as mechanism_module
from rareneuron.conclude.mechanism import beside_published, mechanisms
from rareneuron.data.counts import of_merges, of_training
from rareneuron.errors import NotMeasured, OutOfRange
from rareneuron.measure.capture import capture
from rareneuron.models.adapter import load_model
from rareneuron.present.blocks import Illustration
from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.findings import findings
from rareneuron.present.sections.mechanism import mechanism_section
from rareneuron.runs.files import read_tensors
from rareneuron.runs.layout import CONTEXTS
from rareneuron.runs.tokens import load_tokens
from rareneuron.study.study import run_study
from rareneuron.study.tokens import frequency_of_types
from tests import oracles
from tests.present.reading import texts
from tests.tiny_series import study_config

SHARES = ("norm_share", "frequency_share", "tilt_share", "words_share")


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("mechanism") / "run"
    return run_study(study_config(series, text_file, steps=(2, 10), n_tokens=60, out=str(out)))


def test_the_table_agrees_with_the_definitions(run, series):
    tokens = load_tokens(run._store)
    adapter = load_model(series / "step10")
    batches = list(capture(adapter, tokens.selection))
    resid, act, target = (
        torch.cat([getattr(b, name) for b in batches]).double() for name in ("resid", "act", "target")
    )
    rare = torch.cat([torch.from_numpy(b.rare) for b in batches])
    table = run.effects(10)
    shift = torch.tensor(table["mean_act"].tolist(), dtype=torch.float64) - act
    few = table.nsmallest(3, "rank")["index"].tolist()
    readout, W_out = adapter.readout().to(torch.float64), adapter.W_out.double()[few]
    f = torch.from_numpy(tokens.log_frequency)
    given = (readout, resid[rare], shift[rare][:, few], target[rare].long(), W_out)
    parts = oracles.effect_parts(*given, f).abs().mean(1)
    whole = oracles.delta_loss(*given).abs().mean(0)
    of_table = table.iloc[few]
    for name, part in zip(("frequency_share", "tilt_share"), parts[:2], strict=True):
        np.testing.assert_allclose(of_table[name], (1 - part / whole).numpy(), rtol=0, atol=2e-3)
    np.testing.assert_allclose(of_table["words_share"], (parts[2] / whole).numpy(), rtol=0, atol=2e-3)
    entropy = first_order_entropy(readout, resid[rare], shift[rare][:, few], W_out)
    np.testing.assert_allclose(of_table["entropy_change"], entropy, rtol=0, atol=1e-5)


def first_order_entropy(readout, resid, shift, W_out):
    """Mean of −Cov_p(δ, log p) over tokens, for each neuron."""
    out = np.zeros(shift.shape)
    for t, x in enumerate(resid):
        log_p = oracles.log_probabilities(readout, x, x)
        p = log_p.exp()
        for i, w in enumerate(W_out):
            moved = x + shift[t, i] * w
            change = oracles.log_probabilities(readout, moved, moved) - log_p
            out[t, i] = -(p * (change - (p * change).sum()) * log_p).sum()
    return out.mean(0)


def test_shares_lie_in_their_intervals_and_follow_from_their_means(run):
    table = run.effects()
    for name in SHARES:
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
    by_mean = 1 - table["beyond_frequency_abs_delta_loss"] / table["abs_delta_loss"]
    np.testing.assert_allclose(table["frequency_share"], by_mean, rtol=0, atol=1e-5)  # sums are kept in float32
    assert run.step_record().audit.parts_error < 1e-4


def test_sums_for_the_claims_are_kept_at_the_last_checkpoint_only(run):
    of_mechanism = {"abs_shift", "direct_abs_delta_loss", "beyond_frequency_abs_delta_loss"}
    assert of_mechanism <= set(run.context_sums(10))
    assert of_mechanism.isdisjoint(run.context_sums(2))
    sums, table = run.context_sums(10), run.effects(10)
    for prefix in ("", "common_"):
        for name in of_mechanism:
            mean = sums[f"{prefix}{name}"].sum(0, dtype=np.float64) / sums[f"{prefix}n_tokens"].sum()
            np.testing.assert_allclose(mean, table[f"{prefix}{name}"], rtol=1e-5, atol=1e-9)


def test_claims_about_mechanisms_are_judged(run):
    claims = {claim.name: claim for claim in run.claims().claims}
    for name in ("frequency-explains", "norm-explains", "rare-beyond-frequency"):
        assert claims[name].verdict in ("supported", "not supported", "inconclusive")
        assert claims[name].sentence


def test_a_run_of_another_engine_says_that_nothing_was_taken_apart(series, text_file, tmp_path):
    options = {"steps": (10,), "engine": "patching", "n_tokens": 30, "out": str(tmp_path / "run")}
    patched = run_study(study_config(series, text_file, **options))
    with pytest.raises(NotMeasured, match="closed form"):
        mechanisms(patched)
    assert mechanism_section(findings(patched)) is None
    assert "closed form" in FIGURES["mechanism"].reason(FIGURES["mechanism"].frame(patched))


def test_the_frequencies_are_those_that_decided_what_is_rare(run, series):
    f = read_tensors(run.path / CONTEXTS)["log_frequency"]
    tokens = run.tokens()
    by_table = np.log(tokens["frequency"].to_numpy())
    of_targets = f[tokens["target"].to_numpy()]
    seen = of_targets != 0
    np.testing.assert_allclose(np.diff(of_targets[seen]), np.diff(by_table[seen]), atol=1e-9)
    tokenizer = load_model(series / "step10").tokenizer
    assert frequency_of_types(of_merges(tokenizer, len(f)), len(tokenizer)) is None
    counts = np.array([5, 0, 1, 1])
    np.testing.assert_array_equal(frequency_of_types(of_training(counts), 4) == 0, [False, True, False, False])
    assert frequency_of_types(of_training(np.array([1, 1, 0])), 3) is None  # all equally frequent


def test_the_command_lists_neurons_with_their_shares(run, invoke):
    shown = invoke("mechanism", run.path, "--top", 3)
    assert shown.exit_code == 0
    assert len(shown.stdout.strip().splitlines()) == 4
    assert "frequency_share" in shown.stdout
    named = invoke("mechanism", run.path, "--neurons", "1.3, 1.0", "--json")
    rows = json.loads(named.stdout)
    assert [row["neuron"] for row in rows] == ["1.3", "1.0"]
    assert {"frequency_share_low", "frequency_share_high", "kind"} <= set(rows[0])
    refused = invoke("mechanism", run.path, "--neurons", "7.1")
    assert refused.exit_code == 2
    assert "no neuron 7.1; its neurons are 1.0 to 1.39" in refused.stderr


def test_published_lists_are_compared_and_those_of_another_model_refused(run, invoke, monkeypatch):
    with pytest.raises(OutOfRange, match=r"no neuron 11\.584"):
        beside_published(run, "gpt2-small")
    table = mechanisms(run)
    kinds = table.set_index("neuron")["kind"]
    monkeypatch.setitem(mechanism_module.PUBLISHED, "gpt2-small", {"entropy": ("1.0", "1.1")})
    found = beside_published(run, "gpt2-small")
    assert found["agrees"].tolist() == [kinds["1.0"] == "entropy", kinds["1.1"] == "entropy"]
    said = invoke("mechanism", run.path, "--published", "gpt2-small").stdout
    assert f"{found['agrees'].sum()} of 2 entropy neurons" in said


def test_the_command_offers_every_published_list():
    (option,) = [option for option in cli.commands["mechanism"].params if option.name == "published"]
    assert set(option.type.choices) == set(mechanism_module.PUBLISHED)


def test_the_report_says_how_neurons_act(run):
    section = mechanism_section(findings(run))
    words = texts(section)
    table = run.effects().sort_values("rank")
    assert f"{100 * table['frequency_share'].median():.0f} % for all" in words
    drawn = [block.title for block in section.blocks if isinstance(block, Illustration)]
    assert drawn == ["How the largest neurons act"]


def test_the_figure_shows_every_share_with_its_interval(run):
    frame = FIGURES["mechanism"].frame(run)
    assert set(frame["mechanism"]) == {"through the norm", "along frequency", "neither way"}
    first = frame[(frame["mechanism"] == "along frequency") & (frame["place"] == 0)].iloc[0]
    largest = run.effects().nsmallest(1, "rank").iloc[0]
    assert (first["neuron"], first["share"]) == (largest["neuron"], largest["frequency_share"])
    axes = figure(run, "mechanism").axes[0]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == list(frame["neuron"].drop_duplicates())
