"""The places and locks of a run folder: which checkpoints are finished, and who may write.

Locks belong to living processes: a run's lock to the process that writes its tables, a step's lock to the one that
computes it. Files that a killed process left half-written are removed by the next one that holds the lock.
Domain: file systems whose `flock` is that of POSIX. Oracle: tests/study/test_crash.py.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rareneuron.errors import RunFolderError
from rareneuron.runs.files import as_record, explaining, read_json, read_record, remove, write_json
from rareneuron.runs.layout import (
    FIGURES,
    FORMAT,
    LOCK,
    MANIFEST,
    PARTIAL,
    STEP_RECORD,
    STEPS,
    TABLES,
    UNITS,
    UNKNOWN_STEP_NAME,
    is_step,
)
from rareneuron.runs.records import Manifest, StepRecord, as_json
from rareneuron.runs.untrusted import INNER_FOLDERS, refuse_link

PATIENCE = 20.0  # seconds to wait until a process that was just killed has ended, on this machine or another


class RunStore:
    """Paths of a run folder, and the lock that one process at a time holds while it writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        """The path of `run.json`."""
        return self.root / MANIFEST

    def step(self, name: str) -> Path:
        """Return the folder of one checkpoint's results; it exists only when complete."""
        return self.root / STEPS / name

    def pieces(self, name: str) -> Path:
        """Return the folder where pieces of a checkpoint are kept until it is finished."""
        return self.root / UNITS / name

    def read_manifest(self) -> Manifest:
        """Return `run.json`. Raises where its format isn't the one that this version knows."""
        found = read_json(self.manifest)
        if found["format"] != FORMAT:
            raise RunFolderError(
                f"{self.manifest} is of format {found['format']!r}, and this version of rareneuron knows format "
                f"{FORMAT}, so it would misread the run. Open it with the version that made it, or run the study "
                "again in another folder with --out."
            )
        return as_record(found, self.manifest, Manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write `run.json`."""
        write_json(self.manifest, as_json(manifest))

    def read_step(self, name: str) -> StepRecord:
        """Return what `step.json` says of a finished checkpoint."""
        return read_record(self.step(name) / STEP_RECORD, StepRecord)

    def finished_steps(self) -> list[str]:
        """Return the names of finished checkpoints, by step; anything else in the folder is ignored."""
        names = [path.parent.name for path in self.root.glob(f"{STEPS}/*/{STEP_RECORD}") if is_step(path.parent.name)]
        return sorted(names, key=lambda name: (name == UNKNOWN_STEP_NAME, int(name) if name.isdecimal() else 0))

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder for writing; where another process holds it, refuse, or wait as long as necessary."""
        with explaining(self.root, "making the run folder"):
            self.root.mkdir(parents=True, exist_ok=True)
        whose = f"Another process is working on {self.root}. Wait until it has finished, or choose another folder"
        with held(self.root / LOCK, -1.0 if wait else 0.0, f"{whose} with --out."):
            self.refuse_links()
            self.remove_partials()
            yield

    @contextmanager
    def step_locked(self, name: str) -> Iterator[None]:
        """Hold one checkpoint while it is computed; a process that was just killed gets time to end."""
        whose = f"Another process is computing step {name} of {self.root}. Run the same command again when it has"
        lock = self.step(name).with_name(f".{name}.lock")
        with explaining(lock, "locking"):
            lock.parent.mkdir(exist_ok=True)  # without parents: a run folder that was removed isn't made again
        with held(lock, PATIENCE, f"{whose} finished."):
            self.refuse_links()
            for path in self.partials_of_step(name):
                remove(path)
            yield

    def refuse_links(self) -> None:
        """Refuse symbolic links among the run's folders, before anything in them is written or removed."""
        for inner in INNER_FOLDERS:
            refuse_link(self.root / inner)
        for inner in (STEPS, UNITS):
            for path in (self.root / inner).glob("*"):
                refuse_link(path)

    def partials_of_step(self, name: str) -> list[Path]:
        """Return the files of a checkpoint that a killed process left half-written."""
        folder = self.step(name)
        return [
            *folder.parent.glob(f".{name}.*{PARTIAL}"),
            *folder.glob(f".*{PARTIAL}"),
            *self.pieces(name).glob(f".*{PARTIAL}"),
        ]

    def remove_partials(self) -> None:
        """Remove files that a killed process left half-written, but not those that a living process is writing."""
        for pattern in (f".*{PARTIAL}", f"{FIGURES}/.*{PARTIAL}", f"{TABLES}/.*{PARTIAL}"):
            for path in self.root.glob(pattern):
                if not is_living(path):
                    remove(path)
        steps = self.root / STEPS
        names = {path.name.split(".")[1] for path in steps.glob(f".*{PARTIAL}")}
        names |= {path.parent.name for inner in (STEPS, UNITS) for path in self.root.glob(f"{inner}/*/.*{PARTIAL}")}
        for name in names:
            with suppress(RunFolderError), held(steps / f".{name}.lock", 0.0, "being computed"):
                for path in self.partials_of_step(name):
                    remove(path)


def is_living(partial: Path) -> bool:
    """Return whether another process of this machine is writing a file: reports are written without the lock.

    A file with our own PID is stale: a dead process in a container of the same host name left it.
    """
    writer = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+){re.escape(PARTIAL)}$", partial.name)
    if os.name != "posix" or writer is None or int(writer[1]) == os.getpid():  # on Windows 0 would be Ctrl-C
        return False
    try:
        os.kill(int(writer[1]), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def held(path: Path, timeout: float, refusal: str) -> Iterator[None]:
    """Hold a lock that the operating system frees when its process dies; a negative timeout waits for ever."""
    refuse_link(path)  # filelock would truncate the file that it leads to, or raise an error of the system
    lock = FileLock(path)
    with explaining(path, "locking"):
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise RunFolderError(refusal) from error
    try:
        yield
    finally:
        lock.release()
