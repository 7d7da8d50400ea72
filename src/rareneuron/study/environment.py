"""Records where numbers came from: versions, commit and machine. Every run stores this."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

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
    """Return the versions of the libraries, the package's commit if it runs from a checkout, and the machine."""
    return {
        "rareneuron": version("rareneuron"),
        "commit": package_commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "numba": optional("numba"),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def optional(library: str) -> str | None:
    """Return the version of a library that changes only how sums are computed; None where it isn't installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def package_commit() -> str | None:
    """Return the git commit of this checkout, with `+changes` if files differ; None for an installed package."""
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
