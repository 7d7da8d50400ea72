"""Says where this user's programs keep what they can make again, and puts folders there whole or not at all.

A folder is made beside its place under a temporary name, under a lock, and renamed; what a killed process left behind
is removed by the next one that makes the same folder.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

UNFINISHED = ".partial"


def cache_folder(kind: str) -> Path:
    """Return the folder in which this user's programs keep one kind of what they can make again."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "rareneuron" / kind


def kept_folder(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; where it isn't there yet, `make` fills a new one, which is put in place whole."""
    place = cache_folder(kind) / name
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / f".{name}.lock"):
        if place.is_dir():
            return place  # another process has made it meanwhile
        unfinished = place.parent / f".{name}{UNFINISHED}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            make(unfinished)
            os.replace(unfinished, place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place
