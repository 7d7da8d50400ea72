"""A study on a real Ray cluster of two nodes, one of which is killed while both are at work; and on one of its own."""

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rareneuron.errors import InvalidConfig, RunFolderError, WorkerLost
from rareneuron.study.plan import plan_study
from rareneuron.study.workers import ray as cluster
from rareneuron.study.workers.tasks import refuse_failed, task_of
from tests.study.kills import contents
from tests.study.test_workers import started
from tests.tiny_series import study_config

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'rareneuron[ray]' (SKIPS.md)"
)
# In processes of their own: what Ray starts and sets outlives a test. The head has no cores: tasks go to the nodes.
ON_TWO_NODES = """
import json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from rareneuron.runs.config import StudyConfig
from rareneuron.study.study import run_study

settings = json.loads(sys.argv[1])
on_loopback = {"node_ip_address": "127.0.0.1"}
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **on_loopback})
nodes = [made.add_node(num_cpus=1, **on_loopback) for _ in range(2)]
steps, killed = Path(settings["out"]) / "steps", []

def kill_one():
    while len(list(steps.glob(".*.lock"))) < 2:  # both nodes are at work
        time.sleep(0.01)
    killed.append(len(list(steps.glob("[0-9]*"))))
    made.remove_node(nodes[0], allow_graceful=False)

threading.Thread(target=kill_one, daemon=True).start()
run_study(StudyConfig(**settings | {"address": made.address}), progress=False)
print("RESULT", json.dumps({"finished_when_killed": killed, "nodes": len(made.worker_nodes)}))
made.shutdown()
"""
# What listens is looked at from within, when the cluster is up.
OF_ITS_OWN = """
import json, os, subprocess, sys
from contextlib import contextmanager
import psutil
from rareneuron.study.workers import ray as cluster
from rareneuron.runs.config import StudyConfig
from rareneuron.study.study import run_study

seen, ray_connection = {}, cluster.ray_connection

@contextmanager
def watched(address):
    with ray_connection(address) as ray:
        me = psutil.Process()
        open_to = {c.laddr.ip for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")
                   if c.status == "LISTEN"}
        # With another token the same cluster must not answer: Ray tries for half a minute, while the study runs.
        code = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"
        address = ray.get_runtime_context().gcs_address
        asking = [
            subprocess.Popen([sys.executable, "-c", code, address], env=os.environ | {"RAY_AUTH_TOKEN": token},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for token in (os.environ["RAY_AUTH_TOKEN"], 64 * "0")
        ]
        yield ray
        seen.update(open_to=sorted(open_to), answers=[process.wait(timeout=120) for process in asking])

cluster.ray_connection = watched
run_study(StudyConfig(**json.loads(sys.argv[1])), progress=False)
print("RESULT", json.dumps(seen | {"left": [name for name in os.environ if name.startswith("RAY_AUTH")]}))
"""


def script(code, config, **environment):
    settings = {k: v for k, v in vars(config).items() if v is not None}
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
        timeout=500,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.rpartition("RESULT ")[2].splitlines()[0])


@pytest.fixture(scope="module")
def whole(series, text_file, tmp_path_factory):
    """The same study in turn, in a process with as many threads as a task has."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with started(study_config(series, text_file, out=str(out))) as process:
            assert process.wait() == 0
    return contents(out)


@needs_ray
@pytest.mark.slow
def test_a_node_killed_in_mid_study_changes_nothing(config, whole):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    found = script(
        ON_TWO_NODES,
        config(executor="ray", workers=2),
        **token,
        RAY_USAGE_STATS_ENABLED="0",
        **{cluster.NOT_BEYOND: "0"},
    )
    assert found["finished_when_killed"] in ([0], [1])  # of three
    assert found["nodes"] == 1
    assert contents(Path(config().out)) == whole


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_its_own_is_reached_from_here_alone_and_with_its_token(config, whole):
    found = script(OF_ITS_OWN, config(executor="ray", workers=1, address="local"))  # as without an address
    assert {address.removeprefix("::ffff:") for address in found["open_to"]} == {"127.0.0.1"}
    right, wrong = found["answers"]
    assert right == 0
    assert wrong != 0
    assert found["left"] == []
    assert contents(Path(config().out)) == whole


# --- without a cluster


@pytest.mark.slow
@needs_ray
def test_without_a_token_the_token_is_named(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray would find one
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InvalidConfig, match=r"No Ray cluster .*RAY_AUTH_TOKEN_PATH\), which must be the cluster's"):
            cluster.ray_connection(address).__enter__()


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch, scheme):
    monkeypatch.setenv("RAY_AUTH_TOKEN", 64 * "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        cluster.refuse_silent(address)  # somebody does
    began = time.monotonic()
    with pytest.raises(InvalidConfig, match=rf"Nothing answers at {address}: .*refused.*ray start --head"):
        cluster.ray_connection(address).__enter__()
    assert time.monotonic() - began < 2 * cluster.PATIENCE


def test_addresses_that_can_be_tried():
    assert cluster.host_and_port("head:6379") == ("head", 6379)
    assert cluster.host_and_port("ray://10.0.0.1:10001") == ("10.0.0.1", 10001)
    assert cluster.host_and_port("[::1]:6379") == ("::1", 6379)
    for address in (None, "auto", "local", "head", "head:", "head:99999", "head:port", "other://head:1"):
        assert cluster.host_and_port(address) is None
        cluster.refuse_silent(address)
    with pytest.raises(InvalidConfig, match="Nothing answers"):
        cluster.refuse_silent(f"{64 * 'a'}:1")  # no name of a host


def task_error(cause):
    from ray.exceptions import RayTaskError

    return RayTaskError("do_task", "Traceback: in the task", cause).as_instanceof_cause()


def ray_errors():
    from ray import exceptions

    return {
        "memory": exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nAnd more."),
        "crash": exceptions.WorkerCrashedError(),
        "node": exceptions.NodeDiedError("gone"),
        "raylet": exceptions.LocalRayletDiedError(),
        "object": exceptions.ObjectLostError("ab" * 14, None, ""),
        "environment": exceptions.RuntimeEnvSetupError("no pip"),
        "nowhere": exceptions.TaskUnschedulableError("no node"),
        "fault": task_error(KeyError("seed")),
        "own": task_error(RunFolderError("run.json is gone.")),
    }


@needs_ray
@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("memory", WorkerLost, r"with OutOfMemoryError: .* low on memory\. Finished .*the nodes' memory"),
        ("crash", WorkerLost, r"Step 0 was lost .*4 tries, with WorkerCrashedError.*the nodes' memory"),
        ("node", WorkerLost, "with NodeDiedError"),
        ("raylet", WorkerLost, "with LocalRayletDiedError"),
        ("object", WorkerLost, "with ObjectLostError"),
        ("environment", WorkerLost, "with RuntimeEnvSetupError"),
        ("nowhere", WorkerLost, "with TaskUnschedulableError.*no node"),
        ("fault", WorkerLost, r"Step 0 failed .*with KeyError: 'seed'\. .*same packages"),
        ("own", RunFolderError, r"^run\.json is gone\.$"),
    ],
)
def test_what_ray_raises_is_a_failure_and_those_at_work_finish(config, monkeypatch, capsys, name, wanted, message):
    import ray.exceptions

    given, error = [], ray_errors()[name]

    def get(step):
        if step == 0:
            raise error
        return {"step": str(step)}

    def remote(task):
        given.append(task["checkpoint"]["step"])
        return given[-1]

    fake = SimpleNamespace(
        remote=lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote)),
        nodes=list,
        wait=lambda running, num_returns: ([running[0]], running[1:]),
        get=get,
        exceptions=ray.exceptions,
    )

    @contextmanager
    def ray_connection(_):
        yield fake

    monkeypatch.setattr(cluster, "ray_connection", ray_connection)
    asked = config(executor="ray", workers=2)
    tasks = [task_of(asked, c, is_last=False) for c in sorted(plan_study(asked).open, key=lambda c: c.step)]
    one, failed = cluster.ray_answers(tasks, asked)  # of three, of which two at work
    assert one == {"step": "2"}
    assert given == [0, 2]
    with pytest.raises(wanted, match=message):
        refuse_failed(failed)
    said = capsys.readouterr().err
    assert {"environment": "no pip", "fault": "Traceback: in the task", "memory": "And more."}.get(name, "") in said
    assert bool(said) == (name != "own")


# --- without Ray


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidConfig, match=r"rareneuron\[ray\].*--workers"), cluster.ray_connection(None):
        pass


def test_a_token_is_the_default():
    own = cluster.ray_environment(None, {})
    assert own["RAY_AUTH_MODE"] == "token"
    assert len(own["RAY_AUTH_TOKEN"]) == 64
    assert own["RAY_AUTH_TOKEN"] != cluster.ray_environment(None, {})["RAY_AUTH_TOKEN"]
    assert own["RAY_USAGE_STATS_ENABLED"] == own[cluster.NOT_BEYOND] == "0"
    assert cluster.ray_environment("head:6379", {}) == {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    assert "RAY_AUTH_MODE" not in cluster.ray_environment("head:6379", {"RAY_AUTH_MODE": "disabled"})
    assert "RAY_AUTH_TOKEN" not in cluster.ray_environment(None, {"RAY_AUTH_TOKEN_PATH": "mine"})


def test_a_task_gets_a_share_of_cores_and_a_gpu_where_there_are_some(config):
    def node(alive=True, **has):
        return {"Alive": alive, "Resources": has}

    def share(nodes, **settings):
        return cluster.resources(config(**settings), nodes)

    nodes = [node(CPU=8.0), node(CPU=4.0), node(alive=False, CPU=64.0, GPU=8.0)]
    assert share(nodes, workers=2) == {"num_cpus": 4, "num_gpus": 0}  # no more than a node has
    assert share(nodes, workers=6) == {"num_cpus": 2, "num_gpus": 0}
    assert share(nodes, workers=99)["num_cpus"] == 1
    assert share([*nodes, node(CPU=4.0, GPU=1.0)])["num_gpus"] == 1
    assert share([node(CPU=4.0, GPU=1.0)], device="cpu")["num_gpus"] == 0
    assert share(nodes, device="cuda:1")["num_gpus"] == 1


def test_a_task_means_the_same_everywhere(config, series, tmp_path, monkeypatch):
    monkeypatch.chdir(series.parent)
    given = config(model=series.name, out="run")
    checkpoint = plan_study(given).open[0]
    given = replace(given, device="cuda:1")
    task = cluster.portable_task(task_of(given, checkpoint, is_last=True), str(tmp_path / "out"))
    assert task["config"]["model"] == str(series.resolve())
    assert task["config"]["device"] == "cuda"
    assert task["checkpoint"]["source"] == str(series.resolve() / "step10")
    assert json.loads(json.dumps(task)) == task
