"""The rare-word swap: every way of scoring agrees with hooks on the whole model, and a planted neuron is found."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import rareneuron as rn
from rareneuron.conclude.evidence import write_claims
from rareneuron.conclude.hypotheses import OF_TASKS
from rareneuron.data.swaps import SwapPairs
from rareneuron.errors import InvalidConfig, MissingText, NotMeasured, RunFolderError, Unavailable
from rareneuron.maths.margins import AblatedReadout
from rareneuron.models.adapter import adapt
from rareneuron.models.families import FAMILIES
from rareneuron.present.figures.tasks import FIGURE
from rareneuron.present.findings import findings
from rareneuron.present.sections.tasks import tasks_section
from rareneuron.runs.evaluations import read_evaluation
from rareneuron.study.study import run_study
from rareneuron.use import evaluate as evaluating
from rareneuron.use.model import run_model
from rareneuron.use.swap import by_readout, by_running, made_pairs, run_scores, swap_scores, swap_text
from tests.models.conftest import tiny_model
from tests.tiny_series import WORDS, study_config

VOCAB, LENGTH = 20, 12
ATOL = {"llama": 1e-6, "gemma": 5e-6}  # transformers computes RMSNorm in float32 whatever the model's dtype


def random_pairs(rng, n_contexts=5, n_items=14, vocab=VOCAB, n_following=2):
    windows = rng.integers(0, vocab, (n_contexts, LENGTH)).astype(np.int32)
    context = rng.integers(0, n_contexts, n_items)
    position = rng.integers(2, LENGTH - 2 - n_following, n_items)
    original = windows[context, position + 1].astype(np.int64)
    swap = (original + rng.integers(1, vocab, n_items)) % vocab
    return SwapPairs(
        windows=windows,
        context=context,
        position=position,
        document=context.astype(np.int64),
        original=original,
        swap=swap,
        rare=rng.random(n_items) < 0.5,
        n_places=n_items,
        n_alone=0,
        n_documents=n_contexts,
    )


@pytest.mark.parametrize("n_following", [0, 2])
@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "llama", "gemma2", "olmo2", "qwen2"])
def test_readouts_agree_with_hooks_on_the_whole_model(name, n_following):
    """Each item by itself, in float64: the words' own log p, and both sentences behind the word."""
    assert name in FAMILIES
    adapter = adapt(tiny_model(name, dtype=torch.float64))
    rng = np.random.default_rng(0)
    pairs = random_pairs(rng, n_following=n_following)
    groups = {"boosting": rng.choice(adapter.d_mlp, (1, 5), replace=False)}
    random = {"uniform": np.stack([rng.choice(adapter.d_mlp, 5, replace=False) for _ in range(3)])}
    layer = adapter.n_layers - 1
    end = AblatedReadout(adapter.readout(), adapter.W_out, torch.zeros(adapter.d_mlp))
    found = by_readout(adapter, layer, end, pairs, groups, random, n_following)
    clean, logp = slowly(adapter, pairs, n_following)
    atol = 1e-4 if n_following else 5e-5  # distributions of `JointAblation` are in float32
    assert found["margin"].clean == pytest.approx(clean, abs=atol)
    assert found["log p"].clean == pytest.approx(logp, abs=atol)
    for members, got in [
        (groups["boosting"][0], found["margin"].without["boosting"]),
        *zip(random["uniform"], found["margin"].random["uniform"], strict=True),
    ]:
        names = [f"{layer}.{i}" for i in members]
        with rn.ablated(adapter.model, units=names, to="zero"):
            margin, _ = slowly(adapter, pairs, n_following)
        assert np.abs(margin - clean).max() > 1e-2, "the case is too tame"
        assert got - found["margin"].clean == pytest.approx(margin - clean, abs=max(2e-5, ATOL.get(name, 0)))


def slowly(adapter, pairs, n_following):
    """One item, one sentence at a time: log p of the word and of what follows, from the model's own logits."""
    margin, own = [], []
    for i in range(len(pairs)):
        total = []
        for word in (pairs.original[i], pairs.swap[i]):
            sentence = torch.from_numpy(pairs.windows[pairs.context[i]].astype(np.int64))
            t = pairs.position[i]
            sentence[t + 1] = word
            sentence = sentence[: t + 2 + n_following]
            with torch.inference_mode():
                logp = adapter.model(sentence[None]).logits[0].double().log_softmax(-1)
            total.append(sum(logp[k - 1, sentence[k]].item() for k in range(t + 1, len(sentence))))
            if word == pairs.original[i]:
                own.append(logp[t, word].item())
        margin.append(total[0] - total[1])
    return np.array(margin), np.array(own)


@pytest.mark.parametrize("n_following", [0, 2])
def test_running_the_model_agrees_with_one_sentence_at_a_time(n_following):
    adapter = adapt(tiny_model("gpt_neox", dtype=torch.float64))
    pairs = random_pairs(np.random.default_rng(1), n_contexts=20)
    assert run_scores(adapter, pairs, n_following) == pytest.approx(np.stack(slowly(adapter, pairs, n_following)))


# --- a study


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Texts of their own, one a line."""
    rng = np.random.default_rng(3)
    p = 1 / np.arange(1, len(WORDS) + 1)
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    lines = (json.dumps({"text": " ".join(rng.choice(WORDS, 40, p=p / p.sum())) + "."}) for _ in range(300))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("swap") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=120, out=out))


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    return rn.open_run(tmp_path / "run")


def test_both_ways_give_the_same_scores_of_a_run(run, documents):
    adapter, text = run_model(run), swap_text(run, documents, None)
    pairs = made_pairs(run, adapter, text, n_items=40, n_following=1, max_tokens=10**6, seed=0)
    named, random = evaluating.compared_groups(run, ("boosting",), 3, None)
    scores, how = swap_scores(run, adapter, pairs, named, random, n_following=1)
    assert "readouts" in how
    slow = by_running(run, adapter, pairs, named, random, n_following=1, to="mean", step=None)
    for measure in ("margin", "log p"):
        fast = scores.measures[measure]
        assert fast.clean == pytest.approx(slow[measure].clean, abs=1e-4)
        assert fast.without["boosting"] == pytest.approx(slow[measure].without["boosting"], abs=1e-4)
        assert fast.random.keys() == slow[measure].random.keys()
    assert scores.measures["margin"].random["uniform"] == pytest.approx(slow["margin"].random["uniform"], abs=1e-4)


def test_a_result_is_kept_and_read_back(copy, documents):
    assert copy.evaluations() == []
    with pytest.raises(NotMeasured, match="has no evaluation 'swap'"):
        copy.evaluation()
    found = rn.evaluate_swap(copy, data=documents, n_items=60, n_random=120)
    assert copy.evaluations() == ["swap"]
    pd.testing.assert_frame_equal(copy.evaluation(), found.table)
    items = copy.evaluation_items()
    margin = (
        items.loc[items["words"] == "rare", "margin_without_boosting"] - items.loc[items["words"] == "rare", "margin"]
    )
    row = found.table.query(
        "words == 'rare' and measure == 'margin' and group == 'boosting' and null == 'uniform'"
    ).iloc[0]
    assert row["change"] == pytest.approx(margin.mean())
    draws = read_evaluation(copy.path).draws.query("words == 'rare' and measure == 'margin' and null == 'uniform'")
    assert row["null_p"] == (1 + (draws["change"] <= row["change"]).sum()) / (1 + len(draws))
    assert len(draws) == row["null_groups"] == 120
    again = rn.evaluate_swap(copy, data=documents, n_items=60, n_random=120)
    pd.testing.assert_frame_equal(again.items, found.items)


def test_the_claim_is_asked_of_evaluated_runs_alone(copy, documents):
    name = OF_TASKS[0].name
    before = write_claims(copy)
    assert name not in [claim.name for claim in before.claims]
    assert "evaluation" not in json.loads((copy.path / "claims.json").read_text())
    rn.evaluate_swap(copy, data=documents, n_items=80, n_random=5)
    few = {claim.name: claim for claim in write_claims(copy).claims}[name]
    assert few.verdict == "inconclusive"
    assert "--random 1000" in few.sentence
    rn.evaluate_swap(copy, data=documents, n_items=80, n_random=150)
    claims = {claim.name: claim for claim in write_claims(copy).claims}
    assert claims[name].tests, claims[name].sentence
    assert [test.null for test in claims[name].tests][:2] == ["uniform random groups", "matched random groups"]
    assert claims[name].verdict != "supported", "a random model"
    others = {claim.name: claim.p for claim in before.claims}
    assert {n: claim.p for n, claim in claims.items() if n != name} == others, "the others keep their p"
    assert {claim.name for claim in copy.claims().claims} == set(claims)
    stamp = (copy.path / "claims.json").stat().st_mtime_ns
    write_claims(copy)
    assert (copy.path / "claims.json").stat().st_mtime_ns == stamp


def test_the_report_shows_it(copy, documents):
    assert FIGURE.reason(FIGURE.frame(copy)) is not None
    assert tasks_section(findings(copy)) is None
    rn.evaluate_swap(copy, data=documents, n_items=60, n_random=30)
    frame = FIGURE.frame(copy)
    assert FIGURE.reason(frame) is None
    assert set(frame["measure"]) == {"margin", "accuracy", "log p"}
    FIGURE.drawn(frame)
    section = tasks_section(findings(copy))
    assert [block.kind for block in section.blocks] == ["paragraph", "illustration", "table"]
    assert "A fall that would be found in 80 %" in section.blocks[0].text
    assert len(section.blocks[2].rows) == 3 * 2 * 3


def test_the_command_prints_a_table_and_json(copy, documents, invoke):
    done = invoke("evaluate", copy.path, "--data", documents, "--items", 40, "--random", 20)
    assert done.exit_code == 0, done.output
    assert "A fall that would be found in 80 % of cases" in done.stdout
    lines = done.stdout.splitlines()
    said = next(i for i, line in enumerate(lines) if "80 %" in line)
    assert said < next(i for i, line in enumerate(lines) if "boosting" in line), "before any result"
    done = invoke(
        "evaluate", copy.path, "--data", documents, "--items", 40, "--random", 20, "--groups", "boosting", "--json"
    )
    rows = json.loads(done.stdout)
    assert {row["group"] for row in rows} == {"boosting"}
    assert invoke("evaluate", copy.path, "--groups", "best").exit_code == 2


def test_the_own_text_is_used_without_what_was_analysed(series, documents, tmp_path):
    settings = study_config(series, documents, steps=(10,), n_tokens=60, out=str(tmp_path / "run"))
    own = run_study(settings)
    found = rn.evaluate_swap(own, n_items=30, n_random=2)
    assert 0 < found.record.n_documents_left < 300
    changed = tmp_path / "documents.jsonl"
    changed.write_text(documents.read_text(encoding="utf-8").replace("time", "year"), encoding="utf-8")
    moved = replace(own.manifest, resolved=own.manifest.resolved | {"data": str(changed)})
    other = rn.open_run(own.path)
    other.__dict__["manifest"] = moved
    with pytest.raises(MissingText, match="has changed since it was studied"):
        rn.evaluate_swap(other, n_items=30, n_random=2)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"groups": ["best"]}, InvalidConfig, "no group 'best'"),
        ({"groups": []}, InvalidConfig, "No group was named"),
        ({"to": "resample"}, InvalidConfig, "Use mean or zero"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_is_written(run, documents, given, error, words):
    with pytest.raises(error, match=words):
        rn.evaluate_swap(run, data=documents, **given)
    assert run.evaluations() == []


def test_matched_groups_that_are_the_group_itself_are_warned_of():
    named = {"boosting": np.arange(10)[None]}
    own, others = np.tile(np.arange(10), (5, 1)), np.tile(np.arange(20, 30), (5, 1))
    (warning,) = evaluating.shared_members(named, {"uniform": own, "matched-boosting": np.hstack([own, others[:, :2]])})
    assert "boosting one, 83 % are its own" in warning
    assert evaluating.shared_members(named, {"matched-boosting": np.hstack([own[:, :4], others[:, :6]])}) == ()
    assert evaluating.shared_members(named, {"uniform": own}) == ()


def test_damage_is_named(copy, documents):
    rn.evaluate_swap(copy, data=documents, n_items=30, n_random=2)
    path = copy.path / "evaluations" / "swap" / "summary.parquet"
    pd.read_parquet(path).drop(columns="change").to_parquet(path)
    with pytest.raises(RunFolderError, match="lacks the columns change"):
        copy.evaluation()
    with pytest.raises(InvalidConfig, match="no plain name"):
        copy.evaluation("../swap")


def test_layers_without_a_closed_form_are_scored_by_running(copy, documents, monkeypatch):
    reason = Unavailable("Behind this layer are others.")
    monkeypatch.setattr("rareneuron.models.adapter.Adapter.readout_behind", lambda self, layer=-1: reason)
    found = rn.evaluate_swap(copy, data=documents, n_items=12)
    assert "running the model" in found.record.scored
    assert found.record.n_random == evaluating.RANDOM_RUNS
    assert found.table["change"].abs().max() > 0
