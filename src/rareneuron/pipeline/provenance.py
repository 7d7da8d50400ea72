"""Where a number came from: versions, commit, machine, weights. Stored in every run, and compared when it continues."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder, label
from rareneuron.models.hub import ModelFolder, is_local
from rareneuron.models.loading import sha256_of_weights, weight_files

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pyspellchecker",
)


def environment() -> dict[str, Any]:
    """Versions of what computed the numbers, the package's commit where it runs from a checkout, and the machine."""
    return {
        "rareneuron": version("rareneuron"),
        "commit": package_commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def package_commit() -> str | None:
    """The git commit of this checkout, marked `+changes` where it has any; None for an installed package."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def sha256_of_file(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_stamps(where: ModelFolder) -> dict[str, list[int]] | None:
    """Size and time of the last change (ns) of each weight file; None on the Hub, where the commit says it all.

    Files with the same stamps are taken for the same, so that gigabytes needn't be hashed each time a run continues.
    """
    if not is_local(where.source):
        return None
    stats = {file.name: file.stat() for file in weight_files(where.folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def changed_weights(checkpoint: Checkpoint, recorded: Mapping[str, Any]) -> str | None:
    """How a checkpoint's weights differ from those that `step.json` records; None where they don't."""
    name, now = "commit", checkpoint.commit
    if is_local(checkpoint.source):
        where = checkpoint_folder(checkpoint)
        if weight_stamps(where) == recorded.get("weight_stamps"):
            return None
        name, now = "weights_sha256", sha256_of_weights(where.folder)
    before = recorded[name]
    return None if before == now else f"{label(checkpoint)} had the {name} {before} then, and has {now} now"
