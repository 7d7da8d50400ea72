"""Tasks of lm-evaluation-harness: a stand-in shows what it is given, and the real one gives the model's scores."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch

import rareneuron as rn
from rareneuron.errors import InvalidConfig
from rareneuron.present.findings import findings
from rareneuron.present.sections.tasks import tasks_section
from rareneuron.study.study import run_study
from rareneuron.use import harness as harness_module
from rareneuron.use.harness import LIKELIHOOD, likelihood, numbers
from rareneuron.use.model import run_model
from tests.tiny_series import WORDS, study_config

TASK = """task: next_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{before}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def documents(n=12):
    rng = np.random.default_rng(0)
    return [
        {
            "before": " ".join(rng.choice(WORDS, 6)),
            "choices": [f" {word}" for word in rng.choice(WORDS, 3, replace=False)],
            "label": int(rng.integers(0, 3)),
        }
        for _ in range(n)
    ]


@pytest.fixture
def task_folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    items = folder / "items.jsonl"
    items.write_text("\n".join(json.dumps(of) for of in documents()), encoding="utf-8")
    (folder / "next_word.yaml").write_text(TASK.format(items=items), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("harness") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=80, out=out))


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    return rn.open_run(tmp_path / "run")


def choices_by_hand(adapter):
    """Log-likelihoods of every choice of every item, one sentence at a time."""
    out = []
    for document in documents():
        row = []
        before = adapter.tokenizer.encode(document["before"], add_special_tokens=False)
        for choice in document["choices"]:
            ids = before + adapter.tokenizer.encode(choice, add_special_tokens=False)
            with torch.inference_mode():
                log_p = adapter.model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
            row.append(sum(log_p[k - 1, ids[k]].item() for k in range(len(before), len(ids))))
        out.append(row)
    return np.array(out)


def by_hand(adapter):
    """Accuracy and margin of every item."""
    values = choices_by_hand(adapter)
    label = np.array([document["label"] for document in documents()])
    right = values[np.arange(len(values)), label]
    values[np.arange(len(values)), label] = -np.inf
    return (right > values.max(1)).astype(float), right - values.max(1)


def stand_in(monkeypatch, calls):
    """A harness of a few lines: it scores `documents` with the model that it is given, and logs as lm_eval does."""

    class Model:
        def __init__(self, *, pretrained, tokenizer, batch_size):
            self.model, self.tokenizer = pretrained, tokenizer
            calls.append({"adapter": self, "batch_size": batch_size})

    class Manager:
        def __init__(self, include_path=None, include_defaults=True):
            self.all_tasks = ["next_word"] if include_path else ["arc"] if include_defaults else []

    def simple_evaluate(*, model, tasks, **settings):
        calls[-1] |= settings | {"tasks": tasks}
        values = choices_by_hand(model)
        rows = [
            {
                "doc_id": k,
                "doc_hash": str(document),
                "filter": "none",
                "metrics": ["acc", "told"],
                "acc": float(values[k].argmax() == document["label"]),
                "told": "yes",
                "target": document["label"],
                "filtered_resps": [(value, False) for value in values[k]],
            }
            for k, document in enumerate(documents())
        ]
        return {"samples": {"next_word": rows[::-1]}}

    modules = {
        "lm_eval": types.SimpleNamespace(simple_evaluate=simple_evaluate),
        "lm_eval.models": types.SimpleNamespace(),
        "lm_eval.models.huggingface": types.SimpleNamespace(HFLM=Model),
        "lm_eval.tasks": types.SimpleNamespace(TaskManager=Manager),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness_module, "version", lambda name: "stand-in")


def check(run, found):
    """Scores are those of running the model by hand, with and without the group."""
    adapter, items = run_model(run), found.items
    accuracy, margin = by_hand(adapter)
    assert items["acc"].to_numpy() == pytest.approx(accuracy)
    assert items[LIKELIHOOD].to_numpy() == pytest.approx(margin, abs=1e-4)
    with rn.ablated(adapter.model, run, group="boosting"):
        accuracy, without = by_hand(adapter)
    assert np.abs(without - margin).max() > 1e-3, "the case is too tame"
    assert items["acc_without_boosting"].to_numpy() == pytest.approx(accuracy)
    assert items[f"{LIKELIHOOD}_without_boosting"].to_numpy() == pytest.approx(without, abs=1e-4)
    row = found.table[found.table["measure"] == LIKELIHOOD].iloc[0]
    assert row["change"] == pytest.approx((without - margin).mean(), abs=1e-4)
    with rn.ablated(adapter.model, run, group="random", seed=1):
        drawn = by_hand(adapter)[1]
    draws = found.draws.query("null == 'uniform' and draw == 1").set_index("measure")["change"]
    assert draws[LIKELIHOOD] == pytest.approx((drawn - margin).mean(), abs=1e-4)


def test_each_condition_has_its_own_adapter_and_no_cache(run, task_folder, monkeypatch):
    calls = []
    stand_in(monkeypatch, calls)
    found = rn.evaluate_tasks(
        run, ["next_word"], task_folder=task_folder, groups=["boosting"], n_random=2, batch_size=3, limit=12
    )
    assert len({id(call["adapter"]) for call in calls}) == len(calls) == 1 + 1 + 2 * 2
    for call in calls:
        assert call["batch_size"] == 3
        assert call["use_cache"] is None
        assert call["cache_requests"] is False
        assert call["limit"] == 12
        assert call["tasks"] == ["next_word"]
    check(run, found)
    assert run.evaluations() == ["next_word"]
    assert found.record.program == "lm_eval stand-in"
    section = tasks_section(findings(run))
    assert [block.kind for block in section.blocks] == ["paragraph", "table"]
    assert "next_word, acc: " in section.blocks[0].text


def test_the_harness_itself_gives_the_models_scores(run, task_folder, monkeypatch, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval isn't installed (tests/SKIPS.md)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    found = rn.evaluate_tasks(run, ["next_word"], task_folder=task_folder, groups=["boosting"], n_random=2)
    check(run, found)


def test_the_command_scores_tasks_and_the_swap(run, task_folder, monkeypatch, invoke):
    stand_in(monkeypatch, [])
    words = ("evaluate", run.path, "--tasks", "next_word", "--task-folder", task_folder, "--random", 1)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "next_word by lm_eval stand-in" in done.stdout
    rows = json.loads(invoke(*words, "--json", "--groups", "boosting").stdout)
    assert {row["task"] for row in rows} == {"next_word"}


def test_without_the_harness_it_is_said_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'rareneuron\[eval\]'"):
        rn.evaluate_tasks(run, ["arc"])
    assert run.evaluations() == []


def test_unknown_tasks_and_folders_are_refused(run, task_folder, monkeypatch, tmp_path):
    stand_in(monkeypatch, [])
    with pytest.raises(InvalidConfig, match="knows no task never"):
        rn.evaluate_tasks(run, ["next_word", "never"], task_folder=task_folder)
    with pytest.raises(InvalidConfig, match="There is no folder"):
        rn.evaluate_tasks(run, ["arc"], task_folder=tmp_path / "nowhere")


def test_other_items_in_another_condition_are_refused(run, task_folder, monkeypatch):
    calls = []
    stand_in(monkeypatch, calls)
    real = sys.modules["lm_eval"].simple_evaluate

    def other(**settings):
        found = real(**settings)
        found["samples"]["next_word"][0]["doc_hash"] = str(len(calls))
        return found

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", other)
    with pytest.raises(InvalidConfig, match="other items to two conditions"):
        rn.evaluate_tasks(run, ["next_word"], task_folder=task_folder, groups=["boosting"], n_random=0)


def test_numbers_of_items():
    row = {"metrics": ["acc", "pair"], "acc": 1, "pair": (1, 2), "filtered_resps": [(-2.5, True)], "target": " word"}
    found = numbers([row, row])
    assert found["acc"].tolist() == [1, 1]
    assert found[LIKELIHOOD].tolist() == [-2.5, -2.5]
    assert "pair" not in found
    assert likelihood(row | {"filtered_resps": ["generated text"]}) is None
    assert likelihood(row | {"filtered_resps": [(-1, True), (-2, True)], "target": " word"}) is None
    assert likelihood(row | {"filtered_resps": [(-1, True), (-3, True)], "target": 1}) == -2
