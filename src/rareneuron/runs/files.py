"""Files of a run: written whole or not at all, and read back only as they were written.

A file is written beside its place under a temporary name, flushed, and renamed over it; a folder likewise. So a
reader never sees half a result, and a study killed at any moment leaves only finished work and `*.partial` names.
Tables are Parquet, tensors safetensors, the rest JSON: nothing is pickled. Every file carries a checksum, which reading
compares, so that a damaged file is refused; a finished step lists the checksums of its files.
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
from rareneuron.runs.untrusted import refuse_link, why_too_large, why_unpacks_too_large

R = TypeVar("R")


@contextmanager
def explaining(path: Path, doing: str) -> Iterator[None]:
    """Turn errors of the operating system into a `RunFolderError` that says what to do."""
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
            what = "a broken link" if path.is_symlink() and not path.exists() else "something that isn't a folder"
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
    """Give a temporary path to write to; on success it takes the place of `path`, on failure it is removed.

    A folder that stands in its place is removed first: only unfinished folders are written again.
    """
    if {STEPS, UNITS} & {path.parent.name, path.parent.parent.name} or (path.parent.parent / MANIFEST).is_file():
        refuse_link(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")  # is_living reads that
    with explaining(path, "writing"):
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
    """Force a file's content, or a folder's names, to the disk: otherwise a power cut can undo a rename."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders, and its file system writes names by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (not what it leads to); it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with a checksum. NaN is refused: JSON has none, and the reason should be given in words."""
    sealed = {**content, CHECKSUM: text_digest(content)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def text_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of content as JSON; it is the same after reading, since Python's floats read back exactly."""
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, without its index."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays by name as safetensors; the same arrays give the same bytes."""
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
    """Return the SHA-256 of the names, types, shapes and contents of arrays."""
    out = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        out.update(f"{name} {array.dtype} {array.shape}\n".encode())
        out.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return out.hexdigest()


class Record(dict[str, Any]):
    """The content of a run's file by name. Asking for a name that it lacks raises an error that names the file."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise missing_name_error(self.path, name)


def missing_name_error(path: Path, name: str) -> RunFolderError:
    """Return the error for a name that a file lacks."""
    return RunFolderError(
        f"{path} has no {name!r}: it is damaged, or another version of rareneuron wrote it. {how_to_restore(path)}"
    )


def how_to_restore(path: Path) -> str:
    """Return a sentence that says how to get a file of a run back."""
    if path.parent.parent.name == STEPS and path.name not in REFITTED:
        return "Run the same study again: only that checkpoint is computed again."
    if path.name == MANIFEST:
        return "Restore it, or start over in another folder with --out: without it nobody can tell what the run was."
    return "Run the same study again: what is missing is made again, and finished checkpoints are kept."


def damage_error(path: Path, why: object) -> RunFolderError:
    """Return the error for a file that exists but can't be trusted."""
    return RunFolderError(f"{path} is damaged and cannot be read ({why}). {how_to_restore(path)}")


CHANGED = "its content doesn't match its checksum"


def refuse_missing(path: Path) -> None:
    """Refuse a file that is missing, is a link, or is larger than such a file can be."""
    refuse_link(path)
    if not path.is_file():
        raise RunFolderError(f"{path} is missing, so that part of the study can't be read. {how_to_restore(path)}")
    if (why := why_too_large(path)) is not None:
        raise damage_error(path, why)


def read_json(path: Path) -> Record:
    """Return the JSON object in a file, or raise an error that names the file; objects inside it are records too."""
    refuse_missing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda found: Record(found, path))
    except (OSError, ValueError, RecursionError) as error:
        raise damage_error(path, error) from error
    if not isinstance(content, Record):
        raise damage_error(path, f"it should hold a JSON object and holds a {type(content).__name__}")
    recorded = content.pop(CHECKSUM, None)
    if recorded is None:
        raise damage_error(path, "it has no checksum, or comes from a version that wrote none")
    try:
        changed = recorded != text_digest(content)
    except ValueError as error:  # NaN, which no run writes
        raise damage_error(path, error) from error
    if changed:
        raise damage_error(path, CHANGED)
    return content


def read_record(path: Path, kind: type[R]) -> R:
    """Return the content of a JSON file as a record of this kind, or raise an error that names the file."""
    return as_record(read_json(path), path, kind)


def as_record(content: Mapping[str, Any], path: Path, kind: type[R]) -> R:
    """Return a file's content as a record of this kind; values of other types count as damage."""
    try:
        return from_json(kind, content)
    except Missing as error:
        raise missing_name_error(path, str(error)) from error
    except Misfit as error:
        raise damage_error(path, error) from error


def read_table(path: Path) -> pd.DataFrame:
    """Return the table in a Parquet file, or raise an error that names the file."""
    refuse_missing(path)
    try:
        if (why := why_unpacks_too_large(path)) is not None:
            raise damage_error(path, why)
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damage_error(path, error) from error


def read_tensors(path: Path) -> Record:
    """Return all arrays of a safetensors file, or raise an error that names the file."""
    refuse_missing(path)
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            recorded = json.loads((file.metadata() or {}).get("record", "{}")).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise damage_error(path, error) from error
    if digest(tensors) != recorded:
        raise damage_error(path, CHANGED)
    return Record(tensors, path)


def file_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a step, except those that can be made again from the others."""
    return {path.name: file_sum(path) for path in sorted(folder.iterdir()) if path.name not in REFITTED}


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path) -> RunFolderError | None:
    """Read every byte of a finished step; return an error that says what is wrong, or None where it is whole."""
    try:
        for name, recorded in read_record(folder / STEP_RECORD, StepRecord).files.items():
            path = folder / Path(name).name
            refuse_missing(path)
            if file_sum(path) != recorded:
                raise damage_error(path, CHANGED)
    except RunFolderError as error:
        return error
    except OSError as error:
        return damage_error(folder, error)
    return None
