"""Who computes a study's checkpoints: this process, several beside it, or a Ray cluster. The results are the same.

A task is a few words of JSON (settings and checkpoint); workers read tokens from the run folder and write their results
there, so little travels, and a task that was lost is simply given out again. Local workers are processes that end with
the one that started them, whatever ends that. Domain: the same bits where each has the same number of threads.
Oracle: tests/study/test_workers.py and test_ray.py, the same study computed in turn.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import torch
from tqdm import tqdm

from rareneuron.errors import WorkerLost
from rareneuron.measure.identity import step_name
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.study.workers.tasks import TRIES


def by_processes(tasks: Sequence[dict[str, Any]], n_workers: int) -> Generator[dict[str, Any], None, None]:
    """Tasks given to local processes; after the first error those at work finish theirs, and no more are given out."""
    n_workers = min(n_workers, len(tasks))
    tasks = [task | {"config": shared(task["config"], n_workers)} for task in tasks]
    idle: SimpleQueue[Worker] = SimpleQueue()
    with workers(n_workers) as started, ThreadPoolExecutor(n_workers) as pool:
        for worker in started:
            idle.put(worker)

        def answered(task: dict[str, Any]) -> dict[str, Any]:
            worker = idle.get()
            try:
                return worker.answer(task)
            finally:
                idle.put(worker)

        try:
            for future in as_completed([pool.submit(answered, task) for task in tasks]):
                answer = future.result()
                if "error" in answer:
                    pool.shutdown(cancel_futures=True)
                yield answer
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)  # first: whoever loses a worker looks for another task
            if not isinstance(error, Exception):  # Ctrl-C, or nobody asks for more
                for worker in started:
                    worker.end()
            raise


def shared(settings: dict[str, Any], n_workers: int) -> dict[str, Any]:
    """One worker's part of the memory that all may take."""
    return settings | {"memory": settings["memory"] / n_workers}


class Worker:
    """A process that answers tasks, begun again where it dies, until it is ended from another thread."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.is_ended = False
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()  # for both: no process begins once it is ended

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have a task done, by another process if one dies over it."""
        for _ in range(TRIES):
            line, code = self._exchange(self._begun(), json.dumps(task))
            if line:
                return json.loads(line)
            with self.lock:
                self.process = None
                is_ended = self.is_ended
            step = step_name(Checkpoint(**task["checkpoint"]))
            if not is_ended:
                tqdm.write(f"rareneuron: the worker at step {step} died ({died_of(code)})", file=sys.stderr)
        raise WorkerLost(
            f"Workers died {TRIES} times over step {step}, the last of {died_of(code)}. Finished checkpoints are kept. "
            "A signal 9 that nobody sent means that memory ran out: take fewer --workers or a smaller --memory, and "
            "run the same command again."
        )

    def _begun(self) -> "subprocess.Popen[str]":
        """The process, started where there is none."""
        with self.lock:
            if self.is_ended:
                raise WorkerLost("The study was interrupted. Run the same command again to continue.")
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "rareneuron.study.workers.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=self.environment,
                )
            return self.process

    @staticmethod
    def _exchange(process: "subprocess.Popen[str]", line: str) -> tuple[str, int]:
        """The answer; or none, and what the process ended with."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            found = process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            found = ""
        if found.endswith("\n"):
            return found, 0
        close(process)
        return "", process.returncode

    def end(self) -> None:
        """Stop it, whatever it is doing."""
        with self.lock:
            self.is_ended = True
            process = self.process
        if process is not None:
            process.kill()
            process.wait()


def close(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that is gone or going, and close its pipes."""
    with suppress(BrokenPipeError), process:  # what it was told last may still be on its way
        pass


def died_of(code: int) -> str:
    """What an exit status says."""
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"


@contextmanager
def workers(n: int) -> Iterator[list[Worker]]:
    """Workers that share this machine's cores, and its GPUs in turn."""
    threads = str(max(1, torch.get_num_threads() // n))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    gpus = visible_gpus()
    found = [Worker(environment | ({"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} if gpus else {})) for k in range(n)]
    try:
        yield found
    finally:
        for worker in found:
            worker.end()
            process = worker.process  # a thread that Ctrl-C didn't let end may still change it
            if process is not None:
                close(process)


def visible_gpus() -> list[str]:
    """As the environment names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
