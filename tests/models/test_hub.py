"""The hub path for real: a server on localhost, the ordinary client, a cache in a temporary folder."""

import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download

from rareneuron.errors import ModelNotFound
from rareneuron.models.adapter import load_model
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder, list_checkpoints, pin
from rareneuron.models.hub import model_folder
from rareneuron.study.counts import count_corpus

from .conftest import tiny_model, tiny_tokenizer
from .hub_server import Hub, commit_of, serving


@pytest.fixture
def hub(tmp_path, monkeypatch):
    branches = {}
    for branch, seed in {"main": 9, "step0": 0, "step128": 1, "step16": 2, "experiment": 3}.items():
        branches[branch] = tmp_path / "server" / branch
        tiny_model("gpt_neox", seed=seed, dtype=torch.float32).save_pretrained(branches[branch])
        tiny_tokenizer().save_pretrained(branches[branch])
        (branches[branch] / "pytorch_model.bin").write_bytes(b"pickled")
        (branches[branch] / "modeling_custom.py").write_text("raise SystemExit")
        (branches[branch] / "onnx").mkdir()
        (branches[branch] / "onnx" / "config.json").write_text("{}")
    hub = Hub({"lab/tiny": branches, "lab/gated": branches}, gated=frozenset({"lab/gated"}))
    with serving(hub) as address:
        reach(monkeypatch, address, tmp_path / "cache")
        yield hub


def reach(monkeypatch, address: str, cache: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    # huggingface_hub 0.x copied the template when it was imported
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_revision_is_loaded_and_its_commit_kept(hub):
    adapter = load_model("lab/tiny", "step16")
    expected = tiny_model("gpt_neox", seed=2, dtype=torch.float32)
    assert torch.equal(adapter.W_in, expected.gpt_neox.layers[1].mlp.dense_h_to_4h.weight)
    assert adapter.tokenizer.bos_token_id == 0
    commit = commit_of(hub.repositories["lab/tiny"]["step16"])
    wanted = {"source": "lab/tiny", "revision": "step16", "commit": commit}
    assert {key: adapter.provenance[key] for key in wanted} == wanted
    assert load_model("lab/tiny@step16").provenance == adapter.provenance
    assert load_model("lab/tiny", commit).provenance["commit"] == commit


def test_only_weights_config_and_tokenizer_are_downloaded(hub):
    load_model("lab/tiny")
    assert "model.safetensors" in hub.served
    assert not [name for name in hub.served if name.endswith((".bin", ".py")) or "/" in name]


def test_counting_downloads_no_weights(hub, tmp_path):
    (tmp_path / "c.txt").write_text("the cat sat on the mat " * 50)
    total, _, _ = count_corpus("lab/tiny", str(tmp_path / "c.txt"), tmp_path / "u.npy", "text", 1_000, 8)
    assert total > 0
    assert "tokenizer.json" in hub.served
    assert not [name for name in hub.served if name.endswith(".safetensors")]
    load_model("lab/tiny")  # what is in the cache already doesn't stand in the way of the weights
    assert "model.safetensors" in hub.served


def test_a_local_folder_has_no_revisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / "g1").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"m/g1 is a local path, and revision 'main'.*Leave the revision out"):
        model_folder("m/g1@main")
    (tmp_path / "m" / "g1@main").mkdir()
    assert model_folder("m/g1@main").folder == Path("m/g1@main")


def test_an_empty_name_is_not_the_working_folder():
    with pytest.raises(ModelNotFound, match="name of the model is empty"):
        model_folder("")


def test_what_is_in_the_cache_needs_no_hub(hub, monkeypatch, tmp_path):
    online = load_model("lab/tiny@step0")
    reach(monkeypatch, closed_port(), tmp_path / "cache")
    assert load_model("lab/tiny@step0").provenance == online.provenance
    with pytest.raises(ModelNotFound, match=r"step128.*can't be reached.*local folder.*HF_HOME"):
        load_model("lab/tiny@step128")


def test_steps_come_from_branches(hub):
    steps = list_checkpoints("lab/tiny", steps="all")
    commits = {branch: commit_of(folder) for branch, folder in hub.repositories["lab/tiny"].items()}
    assert steps == [
        Checkpoint(step=s, source="lab/tiny", revision=f"step{s}", commit=commits[f"step{s}"]) for s in (0, 16, 128)
    ]
    assert [c.step for c in list_checkpoints("lab/tiny", steps=[128, 0])] == [0, 128]
    with pytest.raises(ModelNotFound, match=r"no checkpoint of step 1, 64\. It has 0, 16, 128"):
        list_checkpoints("lab/tiny", steps=[64, 0, 1])


def test_a_checkpoint_stays_at_its_commit_when_the_branch_moves(hub):
    """A study of days loads what it was planned with; the branch as it is now would be another model."""
    first, second, _ = list_checkpoints("lab/tiny", steps="all")
    (unasked,) = list_checkpoints("lab/tiny@step16")
    assert unasked.commit is None
    assert pin(unasked, checkpoint_folder(unasked, weights=False)) == second
    weights = checkpoint_folder(first).folder / "model.safetensors"
    before = weights.read_bytes()
    hub.repositories["lab/tiny"]["step0"] = hub.repositories["lab/tiny"]["experiment"]
    assert (checkpoint_folder(first).folder / "model.safetensors").read_bytes() == before
    assert checkpoint_folder(first).commit == first.commit
    moved = checkpoint_folder(list_checkpoints("lab/tiny", steps=[0])[0])
    assert moved.commit == commit_of(hub.repositories["lab/tiny"]["experiment"])
    assert (moved.folder / "model.safetensors").read_bytes() != before


def test_without_steps_a_hub_model_is_one_checkpoint():
    assert list_checkpoints("lab/tiny") == [Checkpoint(step=None, source="lab/tiny")]
    one = [Checkpoint(step=16, source="lab/tiny", revision="step16")]
    assert list_checkpoints("lab/tiny", "step16") == list_checkpoints("lab/tiny@step16") == one
    assert list_checkpoints("lab/tiny@refs/pr/1")[0].revision == "refs/pr/1"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lab/absent", r"no folder lab/absent here and no model of that name.*spelling"),
        ("lab/tiny@step7", r"no revision 'step7'.*rareneuron checkpoints lab/tiny"),
        ("lab/gated", r"gated.*terms"),
        ("not an id", r"neither an existing folder nor a valid Hub id"),
    ],
)
def test_what_the_hub_does_not_have(hub, model, message):
    with pytest.raises(ModelNotFound, match=message):
        load_model(model)


def test_an_absent_model_has_no_steps(hub):
    with pytest.raises(ModelNotFound, match="no model of that name"):
        list_checkpoints("lab/absent", steps="all")


def test_an_unreachable_hub(monkeypatch, tmp_path):
    reach(monkeypatch, closed_port(), tmp_path)
    with pytest.raises(ModelNotFound, match=r"can't be reached.*local folder.*HF_HOME"):
        load_model("lab/tiny")
    with pytest.raises(ModelNotFound, match=r"Fetching lab/tiny.*failed"):
        list_checkpoints("lab/tiny", steps="all")


def test_offline_mode(monkeypatch, tmp_path):
    # huggingface_hub 0.x copied the template when it was imported
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert constants.HF_HUB_OFFLINE, "the suite runs offline"
    with pytest.raises(ModelNotFound, match=r"can't be reached.*HF_HUB_OFFLINE"):
        load_model("lab/tiny")
    with pytest.raises(ModelNotFound, match="lab/tiny"):
        list_checkpoints("lab/tiny", steps="all")


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
