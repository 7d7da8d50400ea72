"""Download ahead, then study with the network off: a series on a Hub of its own, through the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from rareneuron.cli import cli
from rareneuron.embedded import SERIES
from rareneuron.errors import InvalidConfig, ModelNotFound, UnusableCounts
from rareneuron.measure.weights import weights_record
from rareneuron.models.adapter import load_model
from rareneuron.runs.files import write_json
from rareneuron.runs.layout import WEIGHTS
from rareneuron.runs.store import RunStore
from rareneuron.study.fetch import fetch
from rareneuron.study.plan import plan_study
from rareneuron.study.study import run_study
from rareneuron.study.suspicions import examine_series, study_warnings
from tests.models.hub_server import Fault, Hub, corrupts, says, serving
from tests.models.test_hub import closed_port, reach

FEW = (0, 8, 4096)


def published(folder: Path, series: Path, steps=None) -> dict[str, Path]:
    """A series as branches `step<N>`, each with the tokenizer, and the last as `main`."""
    branches = {}
    for step in series.glob("step*") if steps is None else [series / f"step{n}" for n in steps]:
        branches[step.name] = shutil.copytree(step, folder / step.name)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(series / name, branches[step.name] / name)
    branches["main"] = branches[max(branches, key=lambda name: int(name.removeprefix("step")))]
    return branches


@pytest.fixture
def hub(series, tmp_path, monkeypatch):
    """The tiny series of the suite."""
    hub = Hub({"lab/tiny": published(tmp_path / "server", series)})
    monkeypatch.setattr("rareneuron.models.hub.PATIENCE", (0.0,))
    with serving(hub) as address:
        reach(monkeypatch, address, tmp_path / "cache")
        yield hub


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def test_what_is_fetched_is_whole_and_is_not_fetched_again(hub, tmp_path):
    found = fetch("lab/tiny", steps="all")
    assert [f.step for f in found] == [0, 2, 10]
    for f in found:
        served = hub.repositories["lab/tiny"][f"step{f.step}"]
        assert (f.folder / "model.safetensors").read_bytes() == (served / "model.safetensors").read_bytes()
        assert f.n_bytes == (served / "model.safetensors").stat().st_size
        assert f.folder.is_relative_to(tmp_path / "cache")
    before = len(hub.served)
    assert fetch("lab/tiny", steps=(0, 10)) == (found[0], found[2])
    assert len(hub.served) == before
    (one,) = fetch("lab/tiny@step2")
    assert one == found[1]
    assert fetch("lab/tiny")[0].step is None


def test_one_checkpoint_that_cannot_be_had_does_not_stop_the_others(hub):
    commit = fetch("lab/tiny@step2", None)[0].commit
    hub.faults = [Fault("revision/step0", says(500))]
    with pytest.raises(ModelNotFound, match=r"1 of 3 checkpoints could not.*lab/tiny@step0: The Hub is in trouble"):
        fetch("lab/tiny", steps="all")
    hub.faults = []
    before = len(hub.served)
    assert [f.commit for f in fetch("lab/tiny", steps="all")][1] == commit
    assert hub.served[before:].count("model.safetensors") == 1


def test_where_there_are_no_others_none_are_spoken_of(hub):
    done = invoke("fetch", "nope/nothing")
    assert done.exit_code == 2
    assert "no model of that name on the Hub" in done.stderr
    assert "others" not in done.stderr
    hub.faults = [Fault("revision/step", says(500))]
    with pytest.raises(
        ModelNotFound, match=r"^None of the 3 checkpoints could be fetched\. The same command tries again"
    ):
        fetch("lab/tiny", steps="all")


def test_a_folder_has_nothing_to_fetch(series):
    with pytest.raises(InvalidConfig, match="nothing to fetch"):
        fetch(str(series))


def test_counts_are_compared_while_there_is_a_network(hub, tmp_path, tokenizer):
    np.save(tmp_path / "fit.npy", np.arange(len(tokenizer)))
    np.save(tmp_path / "other.npy", np.arange(len(tokenizer) + 99))
    assert fetch("lab/tiny@step0", counts=tmp_path / "fit.npy")
    with pytest.raises(UnusableCounts, match="of another tokenizer"):
        fetch("lab/tiny@step0", counts=tmp_path / "other.npy")


def test_a_fetched_study_runs_with_the_network_off(hub, config, tmp_path, monkeypatch):
    done = invoke("fetch", "lab/tiny", "--steps", "0,10", "--json")
    assert done.exit_code == 0, done.output
    commits = {str(row["step"]): row["commit"] for row in json.loads(done.stdout)}
    reach(monkeypatch, closed_port(), tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    run = run_study(config(model="lab/tiny", steps=(0, 10), n_random=200))
    assert {name: record.model.commit for name, record in run.manifest.checkpoints.items()} == commits
    assert plan_study(config(model="lab/tiny", steps="all", n_random=200)).open == []
    with pytest.raises(ModelNotFound, match=r"no checkpoint of step 2\. It has 0, 10"):
        plan_study(config(model="lab/tiny", steps=(0, 2, 10), n_random=200))
    assert len(hub.requests) == before


def test_the_command_says_what_went_wrong(hub):
    hub.faults = [Fault("GET /cdn/", corrupts)]
    done = invoke("fetch", "lab/tiny@step0")
    assert done.exit_code == 2
    assert "model.safetensors of lab/tiny at revision 'step0'" in done.stderr
    assert "the hash differs" in done.stderr
    hub.faults = []
    done = invoke("fetch", "lab/tiny@step0")
    assert done.exit_code == 0
    assert "1 checkpoints" in done.stdout
    assert "HF_HUB_OFFLINE=1" in done.stdout


@pytest.mark.slow
def test_the_environment_decides_where_files_come_from_and_go(tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are read when a process starts, so in real processes.

    The embedded series is served as a private repository; its study offline is that of the shipped folder.
    """
    hub = Hub({"lab/series": published(tmp_path / "server", SERIES, FEW)}, private={"lab/series": "hf_secret"})
    steps = ",".join(map(str, FEW))

    def run(*arguments, **env):
        unset = {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT"}
        env = {k: v for k, v in os.environ.items() if k not in unset} | {"NO_PROXY": "127.0.0.1"} | env
        command = [sys.executable, "-m", "rareneuron", *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)

    with serving(hub) as address:
        there = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
        done = run("fetch", "lab/series", "--steps", steps, "--json", **there)
        assert done.returncode == 0, done.stderr
        assert [row["step"] for row in json.loads(done.stdout)] == list(FEW)
        assert "hf_secret" not in done.stdout + done.stderr
        n = len(hub.requests)
    for row in json.loads(done.stdout):
        assert Path(row["folder"]).is_relative_to(tmp_path / "home" / "hub")
    offline = there | {"HF_HUB_OFFLINE": "1"}  # the server has gone
    done = run("study", "lab/series", "--steps", "all", "--dry-run", "--json", "--data", __file__, **offline)
    assert done.returncode == 2, "a .py file is no corpus"
    (tmp_path / "text.txt").write_text("The model is small.\n" * 500)
    done = run(
        "study", "lab/series", "--steps", "all", "--dry-run", "--json", "--data", tmp_path / "text.txt", **offline
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["open"] == ["4096", "8", "0"]
    assert "taken for all of them" in done.stderr
    done = run("checkpoints", "lab/series", "--audit", "--json", "--data", tmp_path / "text.txt", **offline)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["suspicions"] == []
    assert len(hub.requests) == n


def spoil(folder):
    """NaN at step 2, and step 10 again under step 0."""
    weights = load_file(folder / "step2" / "model.safetensors")
    weights[min(weights)][0] = np.nan
    save_file(weights, folder / "step2" / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "step10" / "model.safetensors", folder / "step0" / "model.safetensors")


def test_the_audit_through_the_command_line(series, text_file, tmp_path):
    shutil.copytree(series, tmp_path / "model")
    sound = invoke("checkpoints", tmp_path / "model", "--audit", "--data", text_file)
    assert sound.exit_code == 0, sound.output
    assert "identical" not in sound.stdout
    spoil(tmp_path / "model")
    done = invoke("checkpoints", tmp_path / "model", "--audit", "--data", text_file)
    assert done.exit_code == 0, done.output
    assert "Steps 0 and 10 have identical weights: one of them is not what its name says." in done.stdout
    assert "Step 2 can't be used: " in done.stdout
    assert "NaN or infinite" in done.stdout
    found = json.loads(invoke("checkpoints", tmp_path / "model", "--audit", "--data", text_file, "--json").stdout)
    assert [c["step"] for c in found["checkpoints"]] == [0, 2, 10]
    assert found["checkpoints"][1]["loss"] is None
    assert {s["kind"] for s in found["suspicions"]} >= {"unreadable", "identical", "non-finite"}


def test_a_list_says_which_checkpoints_have_no_weights_that_could_be_read(series, tmp_path):
    shutil.copytree(series, tmp_path / "model")
    (tmp_path / "model" / "step2" / "model.safetensors").rename(tmp_path / "model" / "step2" / "pytorch_model.bin")
    done = invoke("checkpoints", tmp_path / "model")
    assert done.exit_code == 0
    assert "step2 has its weights only as pickles (pytorch_model.bin)" in done.stdout
    assert done.stdout.count("pickles") == 1
    rows = json.loads(invoke("checkpoints", tmp_path / "model", "--json").stdout)
    assert [("error" in row) for row in rows] == [False, True, False]
    done = invoke("checkpoints", tmp_path / "model" / "step2")
    assert done.exit_code == 2
    assert "convert once: `AutoModelForCausalLM" in done.stderr
    (tmp_path / "model" / "step2" / "pytorch_model.bin").unlink()
    assert "Only weights in safetensors files" in invoke("checkpoints", tmp_path / "model" / "step2").stderr


def test_an_audit_is_decided_by_its_seed(series, text_file):
    model, data = str(series / "step10"), str(text_file)
    losses = [examine_series(model, data=data, seed=seed).checkpoints[0].loss for seed in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_what_a_study_says_of_its_checkpoints(series, tmp_path):
    store = RunStore(tmp_path / "run")

    def step(name, sha, rare, common=None, weights=None):
        model = {"source": "lab/tiny", "weights_sha256": sha}
        record = {"step": None, "model": model, "engine": "patching", "loss_rare": rare, "loss_common": common}
        write_json(store.step(name) / "step.json", record)
        if weights is not None:
            write_json(store.step(name) / WEIGHTS, weights_record(load_model(series / weights)))

    for name, sha, rare in (("0", "a", 9.7), ("2", "a", 9.7), ("10", "b", 9.9), ("final", "c", 1.0)):
        step(name, sha, rare)
    expected = [
        "Steps 0 and 2 have identical weights: one of them is not what its name says.",
        "The loss rises at the last step, from 9.700 at 2 to 9.900.",
    ]
    assert study_warnings(store) == expected
    step("10", "b", 9.9, 4.0)  # common targets decide where there are any
    step("0", "a", 9.7, 5.0, weights="step0")
    step("2", "b", 9.7, 4.5, weights="step10")
    assert study_warnings(store) == []
    shutil.copytree(series / "step10", tmp_path / "mixed")
    weights, others = (load_file(series / name / "model.safetensors") for name in ("step10", "step0"))
    matrix = next(name for name in weights if name.endswith("dense_h_to_4h.weight"))
    save_file(weights | {matrix: others[matrix]}, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    write_json(store.step("2") / WEIGHTS, weights_record(load_model(tmp_path / "mixed")))
    (said,) = study_warnings(store)
    assert said == f"1 matrix is the same at steps 0, 2 (`{matrix}`) and not at others: files may be mixed up."
