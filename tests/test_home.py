"""`~` is a home wherever a path is given: on the command line, in settings, in Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rareneuron as rn
from rareneuron.data.rarity import load_counts, save_counts
from rareneuron.data.texts import open_corpus
from rareneuron.errors import InvalidConfig, MissingText, ModelNotFound, RunFolderError, UnusableCounts
from rareneuron.links import expanded
from rareneuron.models.hub import model_folder
from rareneuron.present.figure import save_figure
from rareneuron.runs.config import PATHS, StudyConfig
from rareneuron.study.merge import merge_runs


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_settings_hold_the_whole_path(home):
    given = {name: f"~/{name}" for name in PATHS}
    Path(home / "study.toml").write_text("".join(f'{name} = "{path}"\n' for name, path in given.items()))
    whole = {name: str(home / name) for name in PATHS}
    for config in (StudyConfig(**given), StudyConfig.from_toml(Path("~/study.toml"))):
        assert {name: getattr(config, name) for name in PATHS} == whole
    assert StudyConfig(**given).run_folder == home / "out"
    assert StudyConfig(model="org/~name").model == "org/~name"


def test_functions_of_python_expand(home, series, run_folder):
    (home / "a.txt").write_text("text")
    assert list(open_corpus("~/a.txt")) == list(open_corpus(Path("~"))) == ["text"]
    save_counts(np.arange(5), "~/counts.npy")
    assert list(load_counts("~/counts.npy", 5)) == list(range(5))
    shutil.copytree(run_folder, home / "run")
    run = rn.open_run("~/run")
    assert run.path == home / "run"
    assert save_figure(rn.figure(run, "rank-curve"), "~/f.svg") == home / "f.svg"
    shutil.copytree(series / "step0", home / "step0")
    assert model_folder("~/step0").folder == home / "step0"
    assert merge_runs(Path("~/new"), [Path("~/run")]).path == home / "new"


def test_the_command_line_expands(home, invoke, series, text_file, run_folder):
    shutil.copy(text_file, home / "t.txt")
    shutil.copytree(run_folder, home / "run")
    done = invoke("unigrams", series, "~/t.txt", "--output=~/counts.npy", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"] == str(home / "counts.npy")
    for command in (["figure", "~/run", "rank-curve", "-o", "~/c.svg"], ["card", "~/run", "--output=~/card.md"]):
        assert invoke(*command).exit_code == 0
    assert invoke("tables", "~/run", "-o", "~/tables").exit_code == 0
    assert {"counts.npy", "c.svg", "card.md", "tables"} <= {path.name for path in home.iterdir()}
    assert not list(Path().glob("~*"))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: list(open_corpus("~nobody-here/a.txt")), MissingText),
        (lambda: load_counts("~nobody-here/c.npy", 5), UnusableCounts),
        (lambda: rn.open_run("~nobody-here/run"), RunFolderError),
        (lambda: model_folder("~nobody-here/m"), ModelNotFound),
        (lambda: StudyConfig.from_toml(Path("~nobody-here/s.toml")), InvalidConfig),
    ],
    ids=["texts", "counts", "run", "model", "settings"],
)
def test_the_home_of_nobody_is_a_path_that_isnt_there(call, error):
    with pytest.raises(error, match="~nobody-here"):
        call()
    assert expanded("~nobody-here/a") == Path("~nobody-here/a")
