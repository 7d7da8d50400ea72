"""The run folder: what a study leaves behind, every file written whole or not at all.

A file is written beside its place under a temporary name, flushed, and renamed over it; a folder likewise. So a
reader never sees half a result, and a study killed at any moment leaves only finished work and `*.partial`
names, which the next start removes. Tables are Parquet, tensors safetensors, the rest JSON: nothing is pickled.
Every file carries a checksum, which reading compares, so a damaged one is refused and gives no wrong number; a finished
step lists those of its files. Locks belong to living processes: the run's to who writes its tables, a step's to who
computes it. Domain: file systems whose `flock` and `rename` are those of POSIX. Oracle: tests/pipeline/test_crash.py.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rareneuron.errors import RunFolderError
from rareneuron.pipeline.confined import INNER_FOLDERS, refuse_link, too_large, unpacks_too_large
from rareneuron.pipeline.kinds import wrong_kind

FORMAT = 1  # of the run folder
PARTIAL = ".partial"
MANIFEST, STEPS, UNITS, TRAJECTORY = "run.json", "steps", "units", "trajectory.parquet"
CHECKSUM = "sha256"  # of a JSON file's other content, its last entry
REFITTED = ("phases.json", "phases.safetensors")  # of a step: fitted again by themselves, so not in its list of files
PATIENCE = 20.0  # seconds for a process that was just killed to be gone, on this machine or another
UNKNOWN_STEP_NAME = "final"  # the folder of a checkpoint whose optimiser step is unknown


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turns the operating system's refusals into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"The disk is full: {doing} {path} failed. Finished steps are kept. Free some space and run the same "
                "command again, or choose another disk with --out (a file: -o)."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunFolderError(
                f"No permission: {doing} {path} failed ({os.strerror(error.errno)}). Make the folder writable, or "
                "choose another with --out (a file: -o)."
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            what = "a link to nothing" if path.is_symlink() and not path.exists() else "something that isn't a folder"
            raise RunFolderError(
                f"{doing} {path} failed: {what} lies there ({os.strerror(error.errno)}). Choose "
                "another place with --out (a file: -o)."
            ) from error
        raise RunFolderError(
            f"{doing} {path} failed ({os.strerror(error.errno) if error.errno else error}). Finished steps are kept. "
            "Mend that and run the same command again, or choose another place with --out (a file: -o)."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it takes the place of `path`, on failure it is removed.

    A folder in its place is removed first: it is an unfinished one, or it would not be written.
    """
    if {STEPS, UNITS} & {path.parent.name, path.parent.parent.name} or (path.parent.parent / MANIFEST).is_file():
        refuse_link(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")  # is_living reads that
    with explained(path, "writing"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.exists():
                flush(temporary)
            if temporary.is_dir():
                remove(path)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            remove(temporary)


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names: a rename is lost with the power otherwise."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders, and its file system writes names by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder that may not exist; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """With a checksum. NaN is refused: JSON has none, and a result that isn't a number should be said in words."""
    sealed = {**content, CHECKSUM: text_digest(content)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def text_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of content as JSON; what was read gives what was written, since Python's floats read back exactly."""
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A Parquet file of plain columns, without the index."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Arrays by name, as safetensors; the same arrays give the same bytes."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # One entry, as safetensors writes several in any order.
        record = json.dumps({"sha256": digest(tensors), **(metadata or {})})
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask leaves; safetensors would write for the owner alone
        try:
            save_file(tensors, temporary, {"record": record})
            temporary.chmod(mode)
        except SafetensorError as error:  # hides the system's number in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and contents of arrays."""
    out = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        out.update(f"{name} {array.dtype} {array.shape}\n".encode())
        out.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return out.hexdigest()


class Record(dict[str, Any]):
    """What a file of a run holds, by name. A name that it lacks is an error that says which file."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise RunFolderError(
            f"{self.path} has no {name!r}: it is damaged, or another version of rareneuron wrote it. "
            f"{remedy(self.path)}"
        )


def remedy(path: Path) -> str:
    """How to get a file of a run back."""
    if path.parent.parent.name == STEPS and path.name not in REFITTED:
        return "Run the same study again: only that checkpoint is computed again."
    if path.name == MANIFEST:
        return "Restore it, or start over in another folder with --out: what the run was can't be told without it."
    return "Run the same study again: what is missing is made again, and finished checkpoints are kept."


def damaged(path: Path, why: object) -> RunFolderError:
    """The error for a file that is there and cannot be trusted."""
    return RunFolderError(f"{path} is damaged and cannot be read ({why}). {remedy(path)}")


CHANGED = "its content is not that which its checksum was made of"


def refuse_missing(path: Path) -> None:
    """A file that isn't there, or leads elsewhere, or is larger than such a file can be."""
    refuse_link(path)
    if not path.is_file():
        raise RunFolderError(f"{path} is missing, so that part of the study can't be read. {remedy(path)}")
    if (why := too_large(path)) is not None:
        raise damaged(path, why)


def read_json(path: Path) -> Record:
    """A JSON object, or an error that names the file; objects inside it are records too."""
    refuse_missing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda found: Record(found, path))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, Record):
        raise damaged(path, f"it should hold a JSON object and holds a {type(content).__name__}")
    recorded = content.pop(CHECKSUM, None)
    if recorded is None:
        raise damaged(path, "it has no checksum, or comes from a version that wrote none")
    try:
        changed = recorded != text_digest(content)
    except ValueError as error:  # NaN, which no run writes
        raise damaged(path, error) from error
    if changed:
        raise damaged(path, CHANGED)
    if (why := wrong_kind(path.name, content, FORMAT)) is not None:
        raise damaged(path, why)
    return content


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet table, or an error that names the file."""
    refuse_missing(path)
    try:
        if (why := unpacks_too_large(path)) is not None:
            raise damaged(path, why)
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def read_tensors(path: Path) -> Record:
    """All arrays of a safetensors file, or an error that names the file."""
    refuse_missing(path)
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            recorded = json.loads((file.metadata() or {}).get("record", "{}")).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    if digest(tensors) != recorded:
        raise damaged(path, CHANGED)
    return Record(tensors, path)


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a step that can't be made again from the others."""
    return {path.name: file_sum(path) for path in sorted(folder.iterdir()) if path.name not in REFITTED}


def file_sum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path) -> RunFolderError | None:
    """What is wrong with a finished step, every byte of it read; None where it is whole."""
    try:
        for name, recorded in read_json(folder / "step.json")["files"].items():
            path = folder / Path(name).name
            refuse_missing(path)
            if file_sum(path) != recorded:
                raise damaged(path, CHANGED)
    except RunFolderError as error:
        return error
    except OSError as error:
        return damaged(folder, error)
    return None


class RunStore:
    """Paths of a run folder, and the lock that one process at a time holds while it writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        """`run.json`: config, provenance, stage states, timings, audit."""
        return self.root / MANIFEST

    def step(self, name: str) -> Path:
        """The folder of one checkpoint's results; it exists only when complete."""
        return self.root / STEPS / name

    def units(self, name: str) -> Path:
        """Where shards of a checkpoint are kept until it is finished."""
        return self.root / UNITS / name

    def read_manifest(self) -> Record:
        """`run.json`, of the format that this version knows."""
        manifest = read_json(self.manifest)
        if manifest["format"] != FORMAT:
            raise RunFolderError(
                f"{self.manifest} is of format {manifest['format']!r}, and this version of rareneuron knows format "
                f"{FORMAT}, so it would misread the run. Open it with the version that made it, or run the study "
                "again in another folder with --out."
            )
        return manifest

    def finished_steps(self) -> list[str]:
        """Names of finished checkpoints, by step; whatever else lies in the folder is none of ours."""
        names = [path.parent.name for path in self.root.glob(f"{STEPS}/*/step.json") if is_step(path.parent.name)]
        return sorted(names, key=lambda name: (name == UNKNOWN_STEP_NAME, int(name) if name.isdecimal() else 0))

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder for writing; where another process does, refuse, or wait for as long as it takes."""
        with explained(self.root, "making the run folder"):
            self.root.mkdir(parents=True, exist_ok=True)
        whose = f"Another process is working on {self.root}. Wait until it has finished, or choose another folder"
        with held(self.root / ".lock", -1.0 if wait else 0.0, f"{whose} with --out."):
            self.refuse_links()
            self.remove_partials()
            yield

    @contextmanager
    def step_locked(self, name: str) -> Iterator[None]:
        """Hold one checkpoint, which is being computed; a process that was just killed has time to be gone."""
        whose = f"Another process is computing step {name} of {self.root}. Run the same command again when it has"
        lock = self.step(name).with_name(f".{name}.lock")
        with explained(lock, "locking"):
            lock.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was removed stays removed
        with held(lock, PATIENCE, f"{whose} finished."):
            self.refuse_links()
            for path in self.partials_of_step(name):
                remove(path)
            yield

    def refuse_links(self) -> None:
        """Ways out of the run among its folders, before anything in them is written or removed."""
        for inner in INNER_FOLDERS:
            refuse_link(self.root / inner)
        for inner in (STEPS, UNITS):
            for path in (self.root / inner).glob("*"):
                refuse_link(path)

    def partials_of_step(self, name: str) -> list[Path]:
        """What a killed process left half-written of a checkpoint."""
        folder = self.step(name)
        return [
            *folder.parent.glob(f".{name}.*{PARTIAL}"),
            *folder.glob(f".*{PARTIAL}"),
            *self.units(name).glob(f".*{PARTIAL}"),
        ]

    def remove_partials(self) -> None:
        """Remove what a killed process left half-written, but not what a living one is at: a step, a report."""
        for pattern in (f".*{PARTIAL}", f"figures/.*{PARTIAL}", f"tables/.*{PARTIAL}"):
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
    """Whether another process of this machine is writing it: reports are written without the lock.

    This process writes nothing yet; where one died with its number in a container of its name, the file is that one's.
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
    """A lock that the operating system frees when its process dies; a negative timeout waits for ever."""
    refuse_link(path)  # filelock would truncate what it leads to, or refuse in the system's words
    lock = FileLock(path)
    with explained(path, "locking"):
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise RunFolderError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: a number as we write it, or `final`."""
    return name == UNKNOWN_STEP_NAME or re.fullmatch("0|[1-9][0-9]*", name) is not None
