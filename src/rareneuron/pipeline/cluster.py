"""A Ray cluster computes checkpoints: stateless tasks, given out again where a process or a node dies.

All nodes see the run folder under the same path and have the same packages; what travels is a few words each way. Where
no address is given a cluster is started here, on the loopback interface, with a token of its own; a cluster elsewhere
is only spoken to with a token, unless RAY_AUTH_MODE=disabled says otherwise. Ray's statistics of use are off here.
Oracle: tests/pipeline/test_ray.py, a node killed in mid-study.
"""

import logging
import os
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rareneuron.errors import InvalidConfig, WorkerLost
from rareneuron.models.hub import is_local
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.executors import TRIES, do_task
from rareneuron.pipeline.plan import absolute

LOOPBACK = "127.0.0.1"
# Read when ray is imported. At 0, Ray binds to and speaks with the loopback interface; otherwise 127.0.0.1 becomes the
# machine's address in the network.
NOT_BEYOND = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PATHS = ("model", "data", "counts", "out")


def by_ray(tasks: Sequence[dict[str, Any]], config: StudyConfig) -> Iterator[dict[str, Any]]:
    """Tasks given to a cluster, `workers` at a time; after an error those at work finish, and no more are given out."""
    with connected(config.address) as ray:
        remote = ray.remote(do_task).options(
            max_retries=TRIES, scheduling_strategy="SPREAD", **resources(config, ray.nodes())
        )
        waiting = deque(anywhere(task, str(config.run_folder)) for task in tasks)
        running: dict[Any, Any] = {}
        failed = None
        while waiting or running:
            while waiting and len(running) < config.workers:
                task = waiting.popleft()
                running[remote.remote(task)] = task["checkpoint"]["step"]
            (done,), _ = ray.wait(list(running), num_returns=1)
            step = running.pop(done)
            try:
                answer = ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                raise WorkerLost(
                    f"Step {step} was lost on the cluster {TRIES + 1} times, at last with {type(error).__name__}. "
                    "Finished checkpoints are kept. Look at the nodes' memory, and run the same command again."
                ) from error
            if "error" in answer:
                waiting.clear()
                failed = failed or answer
            else:
                yield answer
        if failed is not None:
            yield failed


def anywhere(task: dict[str, Any], out: str) -> dict[str, Any]:
    """A task whose paths don't depend on where it is done, and whose device is the one that Ray gives it."""
    settings, checkpoint = task["config"] | {"out": out}, task["checkpoint"]
    there = {k: absolute(settings[k]) for k in PATHS if settings[k] is not None and os.path.exists(settings[k])}
    if is_local(checkpoint["source"]):
        checkpoint = checkpoint | {"source": absolute(checkpoint["source"])}
    device = "cuda" if settings["device"].startswith("cuda") else settings["device"]
    return task | {"config": settings | there | {"device": device}, "checkpoint": checkpoint}


def resources(config: StudyConfig, nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """A task's part of the cluster: a GPU where it has some and may use them, and as many cores as its share is."""
    of_nodes = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(of_node.get("CPU", 0)) for of_node in of_nodes]
    has_gpus = any(of_node.get("GPU", 0) >= 1 for of_node in of_nodes)
    wants = config.device.startswith("cuda") or (config.device == "auto" and has_gpus)
    return {
        "num_cpus": max(1, min(sum(cores) // config.workers, min((n for n in cores if n), default=1))),
        "num_gpus": 1 if wants else 0,
    }


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, speaking to the cluster at an address, or to one of its own that ends with it."""
    with variables(secured(address, os.environ)):
        try:
            import ray
        except ImportError as error:
            raise InvalidConfig(
                "--executor ray needs the package ray, which isn't installed. Run `pip install 'rareneuron[ray]'`, or "
                "use --workers N alone for several processes of this machine."
            ) from error
        own: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": LOOPBACK}
        try:
            ray.init(address=address or "local", log_to_driver=True, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InvalidConfig(
                f"No Ray cluster can be used at {address or 'this machine'}: {error}. Check --address, and the token "
                "(RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH), which must be the cluster's."
            ) from error
        try:
            found = ray.util.get_node_ip_address()
            if address is None and found != LOOPBACK:
                raise InvalidConfig(
                    f"Ray would be reachable from outside at {found}: it was imported before this study began, with "
                    "other settings. Start the study in a process of its own, or give a cluster's --address."
                )
            yield ray
        finally:
            ray.shutdown()


def secured(address: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of the environment that Ray reads: a token by default, no statistics of use sent anywhere."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    if is_loopback(address):
        wanted[NOT_BEYOND] = "0"
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & given.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {name: value for name, value in wanted.items() if name not in given}


def is_loopback(address: str | None) -> bool:
    """Whether a cluster is this machine's alone, as one started here is."""
    return address is None or address.rpartition(":")[0] in (LOOPBACK, "localhost", "[::1]")


@contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while: Ray and the processes that it starts read them there."""
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
