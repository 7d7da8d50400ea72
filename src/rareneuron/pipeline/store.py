"""The run folder: what a study leaves behind, every file written whole or not at all.

A file is written beside its place under a temporary name, flushed, and renamed over it; a folder likewise. So a
reader never sees half a result, and a study killed at any moment leaves only finished work and `*.partial`
names, which the next start removes. Tables are Parquet, tensors safetensors, the rest JSON: nothing is pickled.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save_file

from rareneuron.errors import RunFolderError

PARTIAL = ".partial"
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
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it takes the place of `path`, on failure it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with explained(path, "writing"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_file():
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
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
        table.to_parquet(temporary, index=False)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Arrays by name, as safetensors."""
    with replacing(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, dict(metadata or {}))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an error that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}), so this run cannot be opened. Remove that file's folder and run the "
            "study again: only what is missing is recomputed."
        ) from error
    if not isinstance(content, dict):
        raise RunFolderError(
            f"{path} should hold a JSON object and holds a {type(content).__name__}. Is it a run folder?"
        )
    return content


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet table, or an error that names the file."""
    if not path.is_file():
        raise RunFolderError(
            f"{path} is missing: that part of the study hasn't run. Run the same study again to fill it."
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        raise RunFolderError(
            f"{path} is damaged ({error}). Remove it with its folder and run the study again: only that is recomputed."
        ) from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file."""
    if not path.is_file():
        raise RunFolderError(
            f"{path} is missing: that part of the study hasn't run. Run the same study again to fill it."
        )
    return load_file(path)


class RunStore:
    """Paths of a run folder, and the lock that one process at a time holds while it writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        """`run.json`: config, provenance, stage states, timings, audit."""
        return self.root / "run.json"

    def step(self, name: str) -> Path:
        """The folder of one checkpoint's results; it exists only when complete."""
        return self.root / "steps" / name

    def finished_steps(self) -> list[str]:
        """Names of finished checkpoints, by step."""
        folder = self.root / "steps"
        names = [p.name for p in folder.iterdir() if not p.name.endswith(PARTIAL)] if folder.is_dir() else []
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
        for path in [*self.root.glob(f".*{PARTIAL}"), *self.root.glob(f"steps/.*{PARTIAL}")]:
            remove(path)
