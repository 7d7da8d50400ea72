"""Computes checkpoints on a Ray cluster: stateless tasks, given out again if a process or a node dies.

All nodes must see the run folder under the same path and have the same packages; only small JSON objects are sent.
Without an address, a cluster is started here, on the loopback interface, with a token of its own. A cluster elsewhere
is only contacted with a token, unless RAY_AUTH_MODE=disabled overrides that. Ray's usage statistics are off.
Oracle: tests/study/test_ray.py, a node killed in mid-study.
"""

import logging
import os
import secrets
import socket
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from rareneuron.errors import InvalidConfig, RareNeuronError
from rareneuron.measure.identity import absolute_path
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.hub import is_local
from rareneuron.models.packaged import PACKAGED
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layout import step_folder
from rareneuron.study.workers.tasks import TRIES, do_task

LOOPBACK = "127.0.0.1"
# Read when ray is imported. At 0, Ray stays on the loopback interface; otherwise it replaces 127.0.0.1 by the machine's
# address in the network.
NOT_BEYOND = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PATIENCE = 5.0  # seconds to wait for a connection to a cluster; Ray itself tries for more than a minute
PATHS = ("model", "data", "counts", "out")


def ray_answers(tasks: Sequence[dict[str, Any]], config: StudyConfig) -> Generator[dict[str, Any], None, None]:
    """Yield the answers of a cluster, with `workers` tasks at a time; after an error, no further task begins."""
    with ray_connection(config.address) as ray:
        remote = ray.remote(do_task).options(
            max_retries=TRIES, scheduling_strategy="SPREAD", **resources(config, ray.nodes())
        )
        waiting = deque(portable_task(task, str(config.run_folder)) for task in tasks)
        running: dict[Any, Any] = {}
        failed = None
        while waiting or running:
            while waiting and len(running) < config.workers:
                task = waiting.popleft()
                running[remote.remote(task)] = step_folder(Checkpoint(**task["checkpoint"]).step)
            (done,), _ = ray.wait(list(running), num_returns=1)
            step = running.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayError as error:
                answer = error_answer(step, error)
            if "error" in answer:
                waiting.clear()
                failed = failed or answer
            else:
                yield answer
        if failed is not None:
            yield failed


def error_answer(step: str, error: Exception) -> dict[str, Any]:
    """Return an error that Ray raised as a worker's answer; its traceback goes to stderr."""
    cause = getattr(error, "cause", None)  # for a RayTaskError, the exception of the task
    if isinstance(cause, RareNeuronError):
        return {"step": step, "error": type(cause).__name__, "message": str(cause)}
    tqdm.write(f"rareneuron: step {step} on the cluster: {error}", file=sys.stderr)
    shown = error if cause is None else cause
    said = (str(shown).strip().splitlines() or [""])[0].rstrip(".")
    what = f"{type(shown).__name__}{said and ': '}{said}. Finished checkpoints are kept."
    if cause is None:
        message = (
            f"Step {step} was lost on the cluster, after up to {TRIES + 1} tries, with {what} Look at the nodes' "
            "memory, and run the same command again."
        )
    else:
        message = (
            f"Step {step} failed on the cluster with {what} Check that every node has the same packages and sees the "
            "run folder under the same path, and run the same command again."
        )
    return {"step": step, "error": "WorkerLost", "message": message}


def portable_task(task: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a task that any node can do: absolute paths, and the device that Ray gives it."""
    settings, checkpoint = task["config"] | {"out": out}, task["checkpoint"]
    there = {k: absolute_path(settings[k]) for k in PATHS if settings[k] is not None and os.path.exists(settings[k])}
    if is_local(checkpoint["source"]) and checkpoint["source"] not in PACKAGED:
        checkpoint = checkpoint | {"source": absolute_path(checkpoint["source"])}
    device = "cuda" if settings["device"].startswith("cuda") else settings["device"]
    return task | {"config": settings | there | {"device": device}, "checkpoint": checkpoint}


def resources(config: StudyConfig, nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what a task asks of the cluster: a GPU, if there are any that it may use, and its share of the cores."""
    of_nodes = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(of_node.get("CPU", 0)) for of_node in of_nodes]
    has_gpus = any(of_node.get("GPU", 0) >= 1 for of_node in of_nodes)
    wants = config.device.startswith("cuda") or (config.device == "auto" and has_gpus)
    return {
        "num_cpus": max(1, min(sum(cores) // config.workers, min((n for n in cores if n), default=1))),
        "num_gpus": 1 if wants else 0,
    }


@contextmanager
def ray_connection(address: str | None) -> Iterator[Any]:
    """Give Ray, connected to the cluster at an address, or to one that is started here and ends afterwards."""
    address = None if address == "local" else address  # Ray's word for a local cluster, which would lack our defaults
    with environment_variables(ray_environment(address, os.environ)):
        try:
            import ray
        except ImportError as error:
            raise InvalidConfig(
                "--executor ray needs the package ray, which isn't installed. Run `pip install 'rareneuron[ray]'`, or "
                "use --workers N alone for several processes of this machine."
            ) from error
        refuse_silent(address)
        own: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": LOOPBACK}
        try:
            ray.init(address=address or "local", log_to_driver=True, logging_level=logging.ERROR, **own)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
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


def refuse_silent(address: str | None) -> None:
    """Refuse an address where nothing answers, within seconds and with the reason."""
    place = host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that can't be encoded
        raise InvalidConfig(
            f"Nothing answers at {address}: {error}. Without the cluster no checkpoint can be computed. Check that it "
            "runs (`ray status` there), that --address is HOST:PORT as its `ray start --head` gave it, and that a "
            "firewall lets this machine through."
        ) from error


def host_and_port(address: str | None) -> tuple[str, int] | None:
    """Return the host and port of an address; None for `auto` and the like, which Ray itself looks up."""
    scheme, _, rest = (address or "").rpartition("://")
    if scheme not in ("", "ray"):
        return None
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:  # Ray's own error says what is wrong
        return None
    return None if host is None or port is None else (host, port)


def ray_environment(address: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables for Ray that aren't set yet: a token, and no usage statistics."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    if is_loopback(address):
        wanted[NOT_BEYOND] = "0"
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & given.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {name: value for name, value in wanted.items() if name not in given}


def is_loopback(address: str | None) -> bool:
    """Return whether a cluster is on this machine's loopback interface, as one started here is."""
    return address is None or address.rpartition(":")[0] in (LOOPBACK, "localhost", "[::1]")


@contextmanager
def environment_variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; Ray and the processes that it starts read them."""
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
