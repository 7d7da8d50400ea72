"""Computes checkpoints in local worker processes, with the same results as in one process.

A task is a small JSON object (settings and checkpoint). Workers read tokens from the run folder and write their results
there, so little is sent, and a lost task is simply given out again. Workers end with the process that started them,
however it ends. Domain: the same bits where each has the same number of threads.
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
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.runs.layout import step_folder
from rareneuron.study.workers.tasks import TRIES


def process_answers(tasks: Sequence[dict[str, Any]], n_workers: int) -> Generator[dict[str, Any], None, None]:
    """Yield the answers of local processes; after the first error, running tasks finish, and no more are given out."""
    n_workers = min(n_workers, len(tasks))
    tasks = [task | {"config": worker_share(task["config"], n_workers)} for task in tasks]
    idle: SimpleQueue[Worker] = SimpleQueue()
    with workers(n_workers) as started, ThreadPoolExecutor(n_workers) as pool:
        for worker in started:
            idle.put(worker)

        def answer_to(task: dict[str, Any]) -> dict[str, Any]:
            worker = idle.get()
            try:
                return worker.answer(task)
            finally:
                idle.put(worker)

        try:
            for future in as_completed([pool.submit(answer_to, task) for task in tasks]):
                answer = future.result()
                if "error" in answer:
                    pool.shutdown(cancel_futures=True)
                yield answer
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)  # first: a thread that loses its worker takes another task
            if not isinstance(error, Exception):  # Ctrl-C, or the caller stopped reading answers
                for worker in started:
                    worker.end()
            raise


def worker_share(settings: dict[str, Any], n_workers: int) -> dict[str, Any]:
    """Return settings with one worker's share of the memory."""
    return settings | {"memory": settings["memory"] / n_workers}


class Worker:
    """A process that answers tasks. It is started again if it dies, until another thread ends it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.is_ended = False
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()  # for both: no process is started after the end

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a task; if the process dies over it, another one tries."""
        for _ in range(TRIES):
            line, code = self._exchange(self._running_process(), json.dumps(task))
            if line:
                return json.loads(line)
            with self.lock:
                self.process = None
                is_ended = self.is_ended
            step = step_folder(Checkpoint(**task["checkpoint"]).step)
            if not is_ended:
                tqdm.write(f"rareneuron: the worker at step {step} died ({cause_of_death(code)})", file=sys.stderr)
        raise WorkerLost(
            f"Workers died {TRIES} times over step {step}, the last of {cause_of_death(code)}. Finished checkpoints "
            "are kept. A signal 9 that nobody sent means that memory ran out: take fewer --workers or a smaller "
            "--memory, and run the same command again."
        )

    def _running_process(self) -> "subprocess.Popen[str]":
        """Return the process, and start it if there is none."""
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
        """Return the answer to a line, or an empty one with the exit status if the process has ended."""
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
        """Kill the process, whatever it is doing."""
        with self.lock:
            self.is_ended = True
            process = self.process
        if process is not None:
            process.kill()
            process.wait()


def close(process: "subprocess.Popen[str]") -> None:
    """Wait until a process has ended, and close its pipes."""
    with suppress(BrokenPipeError), process:  # the last line sent may still be in the pipe
        pass


def cause_of_death(code: int) -> str:
    """Return an exit status in words."""
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"


@contextmanager
def workers(n: int) -> Iterator[list[Worker]]:
    """Give n workers that share this machine's cores and take its GPUs in turn; end them afterwards."""
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
    """Return the GPUs that may be used, as the environment names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
