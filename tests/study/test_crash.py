"""Whatever kills a study, fills its disk or damages its files, the same command ends as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import RunFolderError
from rareneuron.measure import checkpoint as checkpoint_module
from rareneuron.measure import pieces as pieces_module
from rareneuron.measure.engines import closed_form as closed_form_module
from rareneuron.runs import files as files_module
from rareneuron.runs import store as store_module
from rareneuron.runs.files import read_json, read_tensors, write_json
from rareneuron.runs.store import RunStore
from rareneuron.study.plan import plan_study
from rareneuron.study.study import run_study
from tests.runs.test_run_folder import flip
from tests.study.kills import contents, in_three_pieces
from tests.tiny_series import study_config

N_KILLS = 12
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def script(code, *arguments, **options):
    """What a fresh process prints after RESULT."""
    command = [sys.executable, *code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("RESULT ")[2])


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_bits(config):
    found = script(
        ["-m", "tests.study.kills"],
        json.dumps(asdict(config(steps=(0, 10)))),
        0,
        N_KILLS,
        cwd=Path(__file__).parents[2],
    )
    assert found["kills"] == N_KILLS
    assert len(found["whole"]) > 30
    for ended in found["killed"]:
        assert ended == found["whole"]


def test_the_comparison_sees_one_bit(finished, copied):
    assert contents(copied) == contents(finished)
    flip(copied / "steps" / "2" / "rank_curve.parquet")
    assert contents(copied) != contents(finished)


# --- damage costs the step that is damaged


@pytest.fixture(scope="module")
def finished(series, text_file, tmp_path_factory):
    """A finished run to copy and to damage."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return run_study(study_config(series, text_file, out=str(out))).path


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


DAMAGED = ["effects.parquet", "rank_curve.parquet", "context_sums.safetensors", "groups.json", "step.json"]


def test_damaged_steps_alone_are_computed_again(finished, copied, config, monkeypatch, capsys):
    """One file of each of two steps, and a third of a step that is left alone."""
    flip(copied / "steps" / "2" / "groups.json")
    (copied / "steps" / "10" / "context_sums.safetensors").write_bytes(b"")
    computed, original = [], checkpoint_module.measure_checkpoint
    monkeypatch.setattr(
        checkpoint_module,
        "measure_checkpoint",
        lambda work: computed.append(work.checkpoint.step) or original(work),
    )
    run_study(config())
    assert computed == [10, 2]
    said = capsys.readouterr().err
    assert "groups.json is damaged" in said
    assert "context_sums.safetensors is damaged" in said
    assert contents(copied) == contents(finished)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("how", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_plan_sees_damage(copied, config, name, how):
    assert not plan_study(config()).open
    how(copied / "steps" / "2" / name)
    plan = plan_study(config())
    assert [checkpoint.step for checkpoint in plan.open] == [2]
    assert (name == "step.json" and not plan.damaged) or name in plan.damaged[0]


def test_a_folder_removed_in_mid_study_is_said_and_not_half_made_again(config, tmp_path, monkeypatch):
    original = checkpoint_module.layer_effects

    def removed(*given, **options):
        shutil.rmtree(tmp_path / "run")
        return original(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "layer_effects", removed)
        with pytest.raises(RunFolderError, match=r"was removed .* Run the same command again"):
            run_study(config(steps=(10,)))
    assert not (tmp_path / "run").exists()
    assert run_study(config(steps=(10,))).steps == [10]


def test_a_folder_that_another_study_took_meanwhile_is_left(config, tmp_path, monkeypatch):
    original, others = checkpoint_module.layer_effects, []

    def replaced(*given, **options):
        if not others:
            shutil.rmtree(tmp_path / "run")
            others.append(None)
            others[0] = contents(run_study(config(steps=(0,), seed=1)).path)
        return original(*given, **options)

    monkeypatch.setattr(checkpoint_module, "layer_effects", replaced)
    with pytest.raises(RunFolderError, match="seed"):
        run_study(config(steps=(10,)))
    assert contents(tmp_path / "run") == others[0]


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_json(folder / "a.json", {"text": "x" * 9_000}),
        lambda folder: files_module.write_tensors(folder / "a.safetensors", {"a": np.zeros(9_000)}),
        lambda folder: files_module.write_table(folder / "a.parquet", pd.DataFrame({"a": np.arange(9_000) ** 2})),
    ],
    ids=["json", "tensors", "table"],
)
def test_a_disk_that_takes_no_more_is_said(tmp_path, write):
    """The system itself refuses, as a full disk does, in each library's own way; here by a limit on file sizes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, before[1]))
    try:
        with pytest.raises(RunFolderError, match="Finished steps are kept"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


# --- locks

HOLD = """
import sys, time
from pathlib import Path
from rareneuron.runs.store import RunStore
store = RunStore(Path(sys.argv[1]))
with store.locked() if sys.argv[2] == "run" else store.step_locked("10"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("what", ["run", "step"])
def test_a_lock_is_held_by_the_living_alone(copied, config, monkeypatch, what):
    monkeypatch.setattr(store_module, "PATIENCE", 0.1)
    shutil.rmtree(copied / "steps" / "10")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, copied, what], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="Another process is"):
            run_study(config())
        assert not (copied / "steps" / "10").exists()
        holder.send_signal(signal.SIGKILL)
    assert run_study(config()).steps == [0, 2, 10]


def test_what_a_living_process_writes_is_left_and_a_dead_ones_removed(copied):
    store = RunStore(copied)
    for name in ("2", "10"):
        (copied / "steps" / f".{name}.elsewhere-7.partial").mkdir()
        (copied / "steps" / name / ".phases.json.elsewhere-7.partial").write_text("{")
    with store.step_locked("2"):
        (copied / "steps" / ".2.elsewhere-8.partial").mkdir()
        with store.locked():
            assert [p.name for p in copied.rglob("*.partial")] == [".2.elsewhere-8.partial"]
    with store.locked():
        assert not list(copied.rglob("*.partial"))


def test_the_plan_is_made_under_the_lock(config, monkeypatch):
    """What another process finished while this one waited is not computed again."""
    seen, original = [], store_module.RunStore.locked

    def locked(store, **options):
        seen.append("lock")
        return original(store, **options)

    monkeypatch.setattr(store_module.RunStore, "locked", locked)
    monkeypatch.setattr("rareneuron.study.study.plan_study", lambda c: seen.append("plan") or plan_study(c))
    run_study(config(steps=(0,)))
    assert seen == ["lock", "plan"]


def test_json_carries_a_checksum(tmp_path):
    path = tmp_path / "some.json"
    content = {"a": [1, 2.5e-300, None], "b": {"ü": "x"}}
    write_json(path, content)
    assert read_json(path) == content
    for old, new in (("2.5e-300", "2.5e-301"), ('"x"', '"y"'), ("sha256", "sha255")):
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(RunFolderError, match=r"some\.json is damaged"):
            read_json(path)
        write_json(path, content)


# --- pieces of contexts


@pytest.fixture
def in_pieces(monkeypatch):
    """As of a checkpoint that takes hours: cut into pieces, whose captured tokens are kept too."""
    monkeypatch.setattr(checkpoint_module, "cut_contexts", in_three_pieces)


@pytest.fixture
def computed(monkeypatch):
    """Blocks that an engine worked on, and contexts that went through the model."""
    seen = {"blocks": 0, "contexts": 0}
    engine, capture = closed_form_module.ClosedForm.blocks, pieces_module.capture

    def blocks(*given):
        for block in engine(*given):
            seen["blocks"] += 1
            yield block

    def captured(adapter, selection, layer, **how):
        seen["contexts"] += len(selection.windows)
        return capture(adapter, selection, layer, **how)

    monkeypatch.setattr(closed_form_module.ClosedForm, "blocks", blocks)
    monkeypatch.setattr(pieces_module, "capture", captured)
    return seen


@pytest.mark.parametrize("holds", [True, False])
def test_a_checkpoint_killed_in_mid_work_loses_one_piece(config, tmp_path, in_pieces, computed, monkeypatch, holds):
    if not holds:
        monkeypatch.setattr(checkpoint_module, "HELD", 0)
    whole = contents(run_study(config(steps=(10,), out=str(tmp_path / "whole"))).path)
    n_contexts = len(read_tensors(tmp_path / "whole" / "contexts.safetensors")["windows"])
    assert computed == {"blocks": 3, "contexts": n_contexts}
    assert not list(tmp_path.rglob("units/*"))
    original, written = files_module.write_tensors, []

    def dies(path, *given):
        original(path, *given)
        written.append(path)
        if len(written) == 5:  # three pieces' tokens and two pieces' sums
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pieces_module, "write_tensors", dies)
        with pytest.raises(KeyboardInterrupt):
            run_study(config(steps=(10,)))
    assert len(list((tmp_path / "run" / "units" / "10").iterdir())) == 5
    computed.update(blocks=0, contexts=0)
    run = run_study(config(steps=(10,)))
    assert contents(run.path) == whole
    assert computed == {"blocks": 1, "contexts": 0}
    assert not list(tmp_path.rglob("units/*"))
    assert run.step_record().timings["capture"] > 0


def test_a_damaged_piece_alone_is_computed_again(config, tmp_path, in_pieces, computed, monkeypatch, capsys):
    whole = contents(run_study(config(steps=(10,), out=str(tmp_path / "whole"))).path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "compare_groups", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_study(config(steps=(10,)))
    kept = sorted((tmp_path / "run" / "units" / "10").iterdir())
    assert len(kept) == 6
    of_capture = {path for path in kept if "resid" in read_tensors(path)}
    for path in (min(of_capture), min(set(kept) - of_capture)):
        flip(path)
    computed.update(blocks=0, contexts=0)
    assert contents(run_study(config(steps=(10,))).path) == whole
    assert computed["blocks"] == 1
    assert 0 < computed["contexts"] < len(read_tensors(tmp_path / "whole" / "contexts.safetensors")["windows"])
    assert capsys.readouterr().err.count("is damaged") == 2


def test_pieces_add_up_to_the_whole(config, tmp_path, monkeypatch):
    one = run_study(config(steps=(10,), out=str(tmp_path / "one"))).effects()
    assert not list(tmp_path.rglob("units/*"))
    monkeypatch.setattr(pieces_module, "PIECE_WORK", {"cpu": 1e6})
    monkeypatch.setattr(closed_form_module, "TOKENS_AT_ONCE", 16)
    cut, original = [], pieces_module.cut_contexts
    monkeypatch.setattr(checkpoint_module, "cut_contexts", lambda *given: cut.append(original(*given)) or cut[-1])
    many = run_study(config(steps=(10,), out=str(tmp_path / "many"))).effects()
    (pieces, are_kept) = cut[0]
    assert len(pieces) > 4
    assert are_kept
    assert [i for piece in pieces for i in piece] == list(range(pieces[-1].stop))
    for name in one.select_dtypes(float):  # float32 forward passes and effects of other batches
        # A share is a difference of two such numbers, over one of them.
        atol = 5e-6 if "_share" in name else 5e-7
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=atol, err_msg=name)


def test_another_seed_or_other_weights_find_no_piece(tmp_path):
    def path(**identity):
        store = pieces_module.PieceStore(tmp_path, {"weights": "a", "seed": 0} | identity)
        return store.path("effects", range(3), "means")

    assert path() == path()
    assert len({path(), path(weights="b"), path(seed=1)}) == 3
