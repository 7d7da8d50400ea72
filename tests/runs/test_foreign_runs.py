"""A run folder from elsewhere: nothing outside it is read, written or removed; what a living process writes stays."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rareneuron.errors import RunFolderError
from rareneuron.runs.files import replacing, write_tensors
from rareneuron.runs.layout import PARTIAL
from rareneuron.runs.store import RunStore
from rareneuron.study.merge import merge_runs
from rareneuron.study.study import run_study
from tests.runs.test_run_folder import flip
from tests.study.kills import contents
from tests.tiny_series import study_config


@pytest.fixture(scope="module")
def finished(series, text_file, tmp_path_factory):
    """A run to copy and to spoil."""
    out = tmp_path_factory.mktemp("foreign") / "run"
    return run_study(study_config(series, text_file, steps=(0, 2), out=str(out))).path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    """Somebody's work, in folders named as those of a run."""
    for folder in ("2", "steps/2"):
        (tmp_path / "outside" / folder).mkdir(parents=True)
        (tmp_path / "outside" / folder / "thesis.txt").write_text("precious")
        (tmp_path / "outside" / folder / f".x.host-1{PARTIAL}").write_text("not ours")
    (tmp_path / "outside" / f".x.host-1{PARTIAL}").write_text("not ours")
    return tmp_path / "outside"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["units", "units/2", "steps", "steps/2", "tables", "figures", ".lock", "steps/.2.lock"]
)
def test_continuing_it_neither_writes_nor_removes_anything_outside(run, outside, config, name):
    (run / "steps" / "2" / "effects.parquet").unlink()  # there is something to do
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        link.rename(outside / "was")
        (outside / "was" / "thesis.txt").write_text("precious")
    link.unlink(missing_ok=True)
    leads_to = outside / "was" if (outside / "was").exists() else outside
    link.symlink_to(leads_to / "thesis.txt" if name.endswith("lock") else leads_to)
    before = files(outside)
    with pytest.raises(RunFolderError, match="is a link to"):
        run_study(config(steps=(0, 2)))
    assert files(outside) == before


@pytest.mark.parametrize("name", ["tokens.parquet", "contexts.safetensors", "steps/2/effects.parquet"])
def test_merging_it_reads_nothing_through_a_link(run, tmp_path, name):
    shutil.move(run / name, tmp_path / "secret")
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(RunFolderError, match="is a link to"):
        merge_runs(tmp_path / "all", [run])


def test_merging_it_takes_what_is_a_checkpoints_and_no_more(run, finished, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (run / "steps" / "2" / "notes.json").symlink_to(tmp_path / "secret.txt")
    (run / "steps" / "0" / "folder").symlink_to(tmp_path)
    merged = merge_runs(tmp_path / "all", [run])
    assert contents(merged.path) == contents(finished)


def test_merging_one_with_damaged_tokens_names_it_and_goes_on_once_it_is_mended(run, finished, tmp_path):
    flip(run / "contexts.safetensors")
    with pytest.raises(RunFolderError, match=r"run/contexts\.safetensors is damaged"):
        merge_runs(tmp_path / "all", [run])
    assert not (tmp_path / "all" / "run.json").exists()
    shutil.copyfile(finished / "contexts.safetensors", run / "contexts.safetensors")
    merged = merge_runs(tmp_path / "all", [run])
    flip(merged.path / "contexts.safetensors")
    assert contents(merge_runs(merged.path, [run]).path) == contents(finished)


def test_what_a_living_process_is_writing_stays(tmp_path):
    """A report is written without the lock; what a dead process left is removed."""
    store = RunStore(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with replacing(tmp_path / "report.html") as partial:
            partial.write_text("half")
            theirs = partial.with_name(partial.name.replace(f"-{os.getpid()}", f"-{process.pid}"))
            partial.rename(theirs)
            with store.locked():
                assert theirs.read_text() == "half"
            theirs.rename(partial)
        theirs.write_text("half")
        process.communicate(b"\n")
    with store.locked():
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["report.html"]


def test_all_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(2)})
        (tmp_path / "y").touch()
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o640}
