"""Files of a run: written whole or not at all, and read back only as they were written.

A file is written beside its place under a temporary name, flushed, and renamed over it; a folder likewise. So a
reader never sees half a result, and a study killed at any moment leaves only finished work and `*.partial` names.
Tables are Parquet, tensors safetensors, the rest JSON: nothing is pickled. Every file carries a checksum, which reading
compares, so a damaged one is refused and gives no wrong number; a finished step lists those of its files.
Domain: file systems whose `rename` is that of POSIX. Oracle: tests/study/test_crash.py.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rareneuron.errors import RunFolderError
from rareneuron.runs.layout import CHECKSUM, MANIFEST, PARTIAL, REFITTED, STEP_RECORD, STEPS, UNITS
from rareneuron.runs.records import Misfit, Missing, StepRecord, from_json
from rareneuron.runs.untrusted import refuse_link, too_large, unpacks_too_large

R = TypeVar("R")


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
        raise lacking(self.path, name)


def lacking(path: Path, name: str) -> RunFolderError:
    """Return the error for a name that a file lacks."""
    return RunFolderError(
        f"{path} has no {name!r}: it is damaged, or another version of rareneuron wrote it. {remedy(path)}"
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
    return content


def read_record(path: Path, kind: type[R]) -> R:
    """Return what a JSON file holds as a record, or an error that names the file."""
    return as_record(read_json(path), path, kind)


def as_record(content: Mapping[str, Any], path: Path, kind: type[R]) -> R:
    """Return the content of a file as a record; a value of another kind is damage."""
    try:
        return from_json(kind, content)
    except Missing as error:
        raise lacking(path, str(error)) from error
    except Misfit as error:
        raise damaged(path, error) from error


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
        for name, recorded in read_record(folder / STEP_RECORD, StepRecord).files.items():
            path = folder / Path(name).name
            refuse_missing(path)
            if file_sum(path) != recorded:
                raise damaged(path, CHANGED)
    except RunFolderError as error:
        return error
    except OSError as error:
        return damaged(folder, error)
    return None
