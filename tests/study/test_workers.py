"""Several processes, several commands, several folders: the study is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rareneuron.errors import InvalidConfig, RunFolderError, UnsupportedModel, WorkerLost
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import open_run
from rareneuron.study.merge import merge_runs, missing_steps
from rareneuron.study.plan import plan_study
from rareneuron.study.study import run_study
from rareneuron.study.workers import processes
from rareneuron.study.workers.tasks import do_task, refuse_failed, task_of
from tests.study.kills import contents
from tests.tiny_series import study_config

psutil = pytest.importorskip("psutil")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many here as each worker gets: the bits of a matrix product depend on it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(one_thread, series, text_file, tmp_path_factory):
    """What one process gives."""
    out = str(tmp_path_factory.mktemp("whole") / "run")
    return contents(run_study(study_config(series, text_file, out=out)).path)


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives_even_if_one_dies(config, whole, monkeypatch, capsys):
    original, killed = processes.Worker._exchange, []

    def exchange(process, line):
        if not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return original(process, line)

    monkeypatch.setattr(processes.Worker, "_exchange", staticmethod(exchange))
    run = run_study(config(workers=2))
    assert contents(run.path) == whole
    assert killed
    assert "died (signal 9" in capsys.readouterr().err
    assert not psutil.Process().children()


def test_a_worker_that_dies_again_and_again_is_said(config, monkeypatch):
    never_begun = object.__new__(subprocess.Popen)
    monkeypatch.setattr(processes.Worker, "_exchange", staticmethod(lambda process, line: ("", -9)))
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: never_begun)
    with pytest.raises(WorkerLost, match=r"died 3 times over step .*--workers"):
        list(processes.process_answers([task_of(config(), c, is_last=False) for c in plan_study(config()).open], 2))


def test_ctrl_c_ends_the_workers_and_begins_none(config, monkeypatch):
    begun, sleep, popen = [], [sys.executable, "-S", "-c", "import time; time.sleep(8)"], subprocess.Popen
    two_at_work = threading.Event()

    def begin(_, **pipes):
        begun.append(popen(sleep, **pipes))
        if len(begun) == 2:
            two_at_work.set()
        return begun[-1]

    def interrupt():
        two_at_work.wait()
        time.sleep(0.2)  # both have their tasks
        os.kill(os.getpid(), signal.SIGINT)

    tasks = [task_of(config(), c, is_last=False) for c in plan_study(config()).open * 2]
    monkeypatch.setattr(processes.subprocess, "Popen", begin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(processes.process_answers(tasks, 2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in begun] == [-signal.SIGKILL] * 2


def test_a_worker_that_is_ended_begins_no_process(config, monkeypatch):
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was begun"))
    worker = processes.Worker({})
    worker.end()
    with pytest.raises(WorkerLost, match="interrupted"):
        worker.answer({"checkpoint": {"step": 0, "source": "model"}})


def test_what_a_worker_runs_into_is_raised_here(config, series):
    checkpoint = plan_study(config()).open[0]
    answer = do_task(task_of(config(), checkpoint, is_last=False))  # there is not a run folder
    with pytest.raises(RunFolderError, match=r"run\.json"):
        refuse_failed(json.loads(json.dumps(answer)))
    with pytest.raises(UnsupportedModel, match="no such"):
        refuse_failed({"step": "0", "error": "UnsupportedModel", "message": "no such"})


STUDY = """
import json, sys
from rareneuron.runs.config import StudyConfig
from rareneuron.study.study import run_study
settings = json.loads(sys.argv[1])
run_study(StudyConfig(**settings), progress=False)
"""


def started(config):
    settings = {k: v for k, v in vars(config).items() if v is not None}
    return subprocess.Popen([sys.executable, "-c", STUDY, json.dumps(settings)])


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(config, whole):
    with started(config(workers=2)) as process:
        steps = Path(config().out) / "steps"
        while not list(steps.glob(".*.lock")):  # a worker has begun
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children()
        process.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert contents(run_study(config()).path) == whole


@pytest.mark.slow
def test_shards_at_the_same_time_and_their_end_give_what_one_command_gives(config, whole):
    shards = [started(config(shard=f"{i}/2")) for i in (1, 2)]
    for shard in shards:
        with shard:
            assert shard.wait() == 0
    path = Path(config().out)
    assert not (path / "claims.json").exists()
    assert not missing_steps(open_run(path))
    assert contents(merge_runs(path).path) == whole
    assert contents(run_study(config()).path) == whole  # nothing is left to do


def test_shards_of_other_folders_are_taken_in(config, whole, tmp_path):
    for i in (1, 2):
        run_study(config(shard=f"{i}/2", out=str(tmp_path / f"part{i}")))
    first = merge_runs(tmp_path / "all", [tmp_path / "part1"])
    assert missing_steps(first) == ["2"]
    parts = {p: p.read_bytes() for p in tmp_path.glob("part*/**/*") if p.is_file() and "lock" not in p.name}
    merged = merge_runs(tmp_path / "all", [tmp_path / "part2", tmp_path / "part1"])
    assert contents(merged.path) == whole
    assert {p: p.read_bytes() for p in parts} == parts
    assert run_study(config(out=str(tmp_path / "all"))).steps == [0, 2, 10]


@pytest.mark.slow
def test_the_units_of_every_layer_are_the_same_whoever_computes_them(series, text_file, tmp_path):
    def run(name, **how):
        settings = {"steps": (2, 10), "n_tokens": 60, "layers": "all", "units": "both", "verify": 0.05}
        return run_study(study_config(series, text_file, **settings, **how, out=str(tmp_path / name)))

    alone = contents(run("alone").path)
    assert sum(name.endswith("layers.parquet") for name in alone) == 2, "no units were measured"
    assert contents(run("workers", workers=2).path) == alone
    parts = [run(f"part{i}", shard=f"{i}/2").path for i in (1, 2)]
    assert contents(merge_runs(tmp_path / "merged", parts).path) == alone


def test_what_is_not_of_one_study_is_not_merged(config, tmp_path):
    a = run_study(config(steps=(0,), out=str(tmp_path / "a"))).path
    b = run_study(config(steps=(0,), seed=1, out=str(tmp_path / "b"))).path
    before = contents(a)
    with pytest.raises(RunFolderError, match="differ in seed, tokens"):
        merge_runs(a, [b])
    c = tmp_path / "c"
    shutil.copytree(a, c)
    record = read_json(c / "steps" / "0" / "step.json")
    write_json(c / "steps" / "0" / "step.json", record | {"model": record["model"] | {"weights_sha256": "0" * 64}})
    with pytest.raises(RunFolderError, match="other weights"):
        merge_runs(a, [c])
    (c / "steps" / "0" / "effects.parquet").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"effects\.parquet is damaged"):
        merge_runs(a, [c])
    assert contents(a) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="holds no run"):
        merge_runs(tmp_path / "other", [a])
    with pytest.raises(RunFolderError, match="not a run folder"):
        merge_runs(tmp_path / "nowhere")


def test_shards_share_out_every_checkpoint(config):
    for n in (1, 2, 3, 5):
        shares = [[c.step for c in plan_study(config(shard=f"{i}/{n}")).open] for i in range(1, n + 1)]
        assert sorted(step for share in shares for step in share) == [0, 2, 10]
        assert shares[0][0] == 10


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0"])
def test_a_shard_that_is_none_is_refused(config, shard):
    with pytest.raises(InvalidConfig, match="--shard 1/8"):
        config(shard=shard)


def test_an_address_without_ray_is_refused(config):
    with pytest.raises(InvalidConfig, match="--executor ray"):
        config(address="127.0.0.1:6379")


def test_who_computes_is_no_part_of_what_a_run_is(config):
    identity = config().identity()
    assert config(executor="ray", workers=3, address="a:1", shard="1/2").identity() == identity
    assert not {"executor", "workers", "address", "shard"} & identity.keys()


def test_workers_share_memory_and_cores(monkeypatch):
    import torch

    assert processes.worker_share({"memory": 4, "seed": 0}, 8) == {"memory": 0.5, "seed": 0}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(processes, "visible_gpus", lambda: ["3", "5"])
    with processes.workers(3) as found:
        assert [w.environment["OMP_NUM_THREADS"] for w in found] == ["2"] * 3
        assert [w.environment["CUDA_VISIBLE_DEVICES"] for w in found] == ["3", "5", "3"]
