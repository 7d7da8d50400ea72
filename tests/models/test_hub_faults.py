"""What goes wrong on the way from the Hub: waited for, made good, or said; and never a file that isn't what it says."""

import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from packaging.version import Version

from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.models import hub as hub_module
from rareneuron.models.adapter import load_model
from rareneuron.models.checkpoints import list_checkpoints
from rareneuron.models.hub import model_folder, wrong_files

from .conftest import tiny_model, tiny_tokenizer
from .hub_server import Fault, Hub, corrupts, drops, etag, limits, says, serving, truncates
from .test_hub import closed_port, reach

pytestmark = pytest.mark.slow  # a server that fails, and what waits for it

WEIGHTS = r"GET /cdn/.*safetensors"
# Before 2.0 the client takes the names of files from what it is told of a revision, and asks for no listing.
LISTING = "/tree/" if Version(huggingface_hub.__version__) >= Version("2") else "revision/step16"


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    folders = {}
    for branch, seed in {"main": 9, "step0": 0, "step16": 1}.items():
        folders[branch] = tmp_path_factory.mktemp(branch)
        tiny_model("gpt2", seed=seed, dtype=torch.float32).save_pretrained(folders[branch])
        tiny_tokenizer().save_pretrained(folders[branch])
    return folders


@pytest.fixture
def slept(monkeypatch):
    """Nobody waits in these tests; how long they would have is kept."""
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def hub(branches, tmp_path, monkeypatch, slept):
    hub = Hub({"lab/tiny": branches, "lab/closed": branches}, private={"lab/closed": "hf_right"})
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub_module.warn_of_cache.cache_clear()
    with serving(hub) as address:
        reach(monkeypatch, address, tmp_path / "cache")
        yield hub


def is_whole(folder: Path, branch: Path) -> bool:
    return all((folder / p.name).read_bytes() == p.read_bytes() for p in branch.iterdir() if p.suffix != ".md")


PASSING = {
    "429 of the weights": (WEIGHTS, says(429), 2),
    "429 with its own wait": ("revision/step16", says(429, Retry_After="7"), 1),
    "500 of the weights": (WEIGHTS, says(500), 2),
    "503 of the revision": ("revision/step16", says(503), 2),
    "500 of the listing": (LISTING, says(500), 1),
    "500 of a size": ("HEAD .*config.json", says(500), 1),
    "connection dropped": (WEIGHTS, drops(1000), 2),
    "connection dropped at once": (WEIGHTS, drops(0), 3),
    "a file cut short": (WEIGHTS, truncates(100), 1),
    "a small file cut short": ("GET .*/config.json", truncates(10), 1),
    "a wrong byte": (WEIGHTS, corrupts, 1),
    "a wrong byte in the config": ("GET .*/config.json", corrupts, 1),
}


@pytest.mark.parametrize("name", PASSING)
def test_trouble_that_passes_is_waited_for(hub, branches, slept, name):
    pattern, spoil, times = PASSING[name]
    hub.faults = [Fault(pattern, spoil, times)]
    folder = model_folder("lab/tiny@step16").folder
    assert hub.faults[0].times == 0, "the fault must have happened"
    assert is_whole(folder, branches["step16"])
    assert wrong_files(folder, ["*"]) == []
    assert sum(slept) < 60
    if name == "429 with its own wait":
        assert max(slept) >= 7


def test_a_dropped_download_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # 10 MiB, more than these weights have
    hub.faults = [Fault(WEIGHTS, drops(1000), 1)]
    model_folder("lab/tiny@step16")
    assert hub.ranges == ["bytes=1000-"]


LASTING = {
    "429": (WEIGHTS, says(429), ModelNotFound, r"asked too often.*status 429.*same command continues"),
    "500": (WEIGHTS, says(500), ModelNotFound, r"in trouble \(status 500\).*same command continues"),
    "503 of everything": ("", says(503), ModelNotFound, r"in trouble \(status 503\).*Try again later"),
    "drops": (WEIGHTS, drops(0), ModelNotFound, r"Fetching lab/tiny.*failed.*same command continues"),
    "cut short": (WEIGHTS, truncates(100), ModelNotFound, r"Fetching lab/tiny.*Consistency check.*Try again later"),
    "a wrong byte": (
        WEIGHTS,
        corrupts,
        BrokenCheckpoint,
        r"model\.safetensors of lab/tiny.*hash differs.*Fetch it again",
    ),
    "a wrong config": ("GET .*/config.json", corrupts, BrokenCheckpoint, r"config\.json of lab/tiny.*hash differs"),
    "a forbidden file": (WEIGHTS, says(403), ModelNotFound, r"refuses.*status 403.*hf auth login"),
}


@pytest.mark.parametrize("name", LASTING)
def test_trouble_that_lasts_is_said_in_one_paragraph_and_can_be_continued(hub, branches, name):
    pattern, spoil, error, message = LASTING[name]
    hub.faults = [Fault(pattern, spoil)]
    with pytest.raises(error, match=message) as raised:
        load_model("lab/tiny@step16")
    assert "\n" not in str(raised.value)
    assert len(hub.requests) < 200, "a Hub in trouble is not asked without end"
    hub.faults = []
    before = list(hub.served)
    assert is_whole(model_folder("lab/tiny@step16").folder, branches["step16"])
    if pattern == WEIGHTS:  # the rest had arrived
        assert hub.served[len(before) :] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "asked"),
    [(limits(0, 55), 56), (limits(0, 300), 301), (limits(7, 290, status=503), 0)],
    ids=["55 s", "a whole window", "none asked for: requests are left"],
)
def test_a_limit_is_waited_out(hub, slept, spoil, asked):
    hub.faults = [Fault("refs$", spoil, 1)]
    assert [c.step for c in list_checkpoints("lab/tiny", steps="all")] == [0, 16]
    assert hub.faults[0].times == 0
    assert slept == [max(asked, hub_module.PATIENCE[0])]


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, slept):
    for asks in (says(429, Retry_After="3600"), limits(0, 3600)):
        hub.faults = [Fault("refs$", asks)]
        with pytest.raises(ModelNotFound, match="asked too often"):
            list_checkpoints("lab/tiny", steps="all")
    assert sum(slept) < 60


def test_a_file_damaged_in_the_cache_is_fetched_again_or_refused(hub, branches, monkeypatch, tmp_path):
    folder = model_folder("lab/tiny@step16").folder
    blob = (folder / "model.safetensors").resolve()
    content = blob.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-50]):
        blob.write_bytes(damaged)
        assert wrong_files(folder, ["*"]) == ["model.safetensors"]
        assert is_whole(model_folder("lab/tiny@step16").folder, branches["step16"])
    blob.write_bytes(content[:-50])
    reach(monkeypatch, closed_port(), tmp_path / "cache")
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors of lab/tiny.*hash differs.*network on"):
        model_folder("lab/tiny@step16")


def test_a_private_model_opens_with_its_token_which_stays_at_the_hub(hub, monkeypatch):
    with pytest.raises(ModelNotFound, match=r"or it is private.*hf auth login.*HF_TOKEN"):
        model_folder("lab/closed")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelNotFound, match=r"refuses.*status 401.*mend HF_TOKEN") as raised:
        model_folder("lab/closed")
    assert "hf_wrong" not in str(raised.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert (model_folder("lab/closed").folder / "model.safetensors").is_file()
    assert [c.step for c in list_checkpoints("lab/closed", steps="all")] == [0, 16]
    assert hub.tokens == {"hf_wrong", "hf_right"}
    assert "model.safetensors" in hub.served
    assert hub.tokens_elsewhere == set(), "the server of the weights is another one"


def test_steps_in_the_cache_are_known_without_a_hub(hub, monkeypatch, tmp_path, caplog):
    model_folder("lab/tiny@step16")
    model_folder("lab/tiny@step0", weights=False)  # its config alone doesn't make it a checkpoint
    for offline in (False, True):
        reach(monkeypatch, closed_port(), tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert [c.step for c in list_checkpoints("lab/tiny", steps="all")] == [16]
        with pytest.raises(ModelNotFound, match=r"no checkpoint of step 0\. It has 16"):
            list_checkpoints("lab/tiny", steps=[0, 16])
    assert [r.getMessage() for r in caplog.records if r.name.startswith("rareneuron")] == [
        "The Hub can't be reached: the branches of lab/tiny in its cache (1) are taken for all of them."
    ]
    with pytest.raises(ModelNotFound):
        list_checkpoints("lab/closed", steps="all")


def test_a_hub_that_says_no_is_not_answered_from_the_cache(hub, branches):
    """A repository that was removed or closed has no steps, whatever is left here."""
    model_folder("lab/tiny@step16")
    del hub.repositories["lab/tiny"]
    with pytest.raises(ModelNotFound, match="no model of that name"):
        list_checkpoints("lab/tiny", steps="all")


def test_the_server_names_files_as_git_does(branches):
    """`git hash-object` of an empty and of a known file."""
    (branches["main"] / "probe.json").write_bytes(b"hello\n")
    assert etag(branches["main"] / "probe.json") == "ce013625030ba8dba906f756967f9e9ca394464a"
    (branches["main"] / "probe.json").unlink()
