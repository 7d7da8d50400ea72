"""The run folder: what a study leaves behind, every file written whole or not at all.

A file is written beside its place under a temporary name, flushed, and renamed over it; a folder likewise. So a
reader never sees half a result, and a study killed at any moment leaves only finished work and `*.partial`
names, which the next start removes. Tables are Parquet, tensors safetensors, the rest JSON: nothing is pickled.
Tables and tensors carry checksums, which reading compares, so a damaged file is refused and gives no wrong number.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rareneuron.errors import RunFolderError

FORMAT = 1  # of the run folder
PARTIAL = ".partial"
MANIFEST, STEPS, TRAJECTORY = "run.json", "steps", "trajectory.parquet"
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
                "command again, or choose another disk with --out."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunFolderError(
                f"No permission: {doing} {path} failed ({os.strerror(error.errno)}). Make the folder writable, or "
                "choose another with --out."
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise RunFolderError(
                f"{doing} {path} failed: something that isn't a folder lies there ({os.strerror(error.errno)}). Choose "
                "another place with --out."
            ) from error
        raise RunFolderError(
            f"{doing} {path} failed ({os.strerror(error.errno) if error.errno else error}). Finished steps are kept. "
            "Mend that and run the same command again, or choose another place with --out."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it takes the place of `path`, on failure it is removed.

    A folder in its place is removed first: it is an unfinished one, or it would not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with explained(path, "writing"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_file():
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            elif temporary.is_dir():
                remove(path)
            os.replace(temporary, path)
        finally:
            remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder that may not exist."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """NaN is refused: JSON has none, and a result that isn't a number should be said in words."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A Parquet file of plain columns, without the index."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Arrays by name, as safetensors; the same arrays give the same bytes."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # One entry, as safetensors writes several in any order.
        save_file(tensors, temporary, {"record": json.dumps({"sha256": digest(tensors), **(metadata or {})})})


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
    if path.parent.parent.name == STEPS and path.stem != "phases":  # those are fitted again by themselves
        return f"Remove {path.parent} and run the same study again: only that checkpoint is computed again."
    if path.name == MANIFEST:
        return "Restore it, or start over in another folder with --out: what the run was can't be told without it."
    return "Run the same study again: what is missing is made again, and finished checkpoints are kept."


def damaged(path: Path, why: object) -> RunFolderError:
    """The error for a file that is there and cannot be trusted."""
    return RunFolderError(f"{path} is damaged and cannot be read ({why}). {remedy(path)}")


def refuse_missing(path: Path) -> None:
    """A file that isn't there."""
    if not path.is_file():
        raise RunFolderError(f"{path} is missing, so that part of the study can't be read. {remedy(path)}")


def read_json(path: Path) -> Record:
    """A JSON object, or an error that names the file; objects inside it are records too."""
    refuse_missing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda found: Record(found, path))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, Record):
        raise damaged(path, f"it should hold a JSON object and holds a {type(content).__name__}")
    return content


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet table, or an error that names the file."""
    refuse_missing(path)
    try:
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
        raise damaged(path, "its contents are not those that its checksum was made of")
    return Record(tensors, path)


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
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing. The operating system frees the lock of a process that died."""
        with explained(self.root, "making the run folder"):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RunFolderError(
                    f"Another process is working on {self.root}. Wait until it has finished, or choose another folder "
                    "with --out."
                ) from error
        try:
            self.remove_partials()
            yield
        finally:
            lock.release()

    def remove_partials(self) -> None:
        """Remove what a killed process left half-written."""
        for path in [
            *self.root.glob(f".*{PARTIAL}"),
            *self.root.glob(f"{STEPS}/.*{PARTIAL}"),
            *self.root.glob(f"{STEPS}/*/.*{PARTIAL}"),
            *self.root.glob(f"figures/.*{PARTIAL}"),
            *self.root.glob(f"tables/.*{PARTIAL}"),
        ]:
            remove(path)


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: a number as we write it, or `final`."""
    return name == UNKNOWN_STEP_NAME or re.fullmatch("0|[1-9][0-9]*", name) is not None
