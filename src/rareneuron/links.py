"""Says where paths lead: `~` home, and links in a folder from elsewhere into it, or into its part of the Hub's cache.

Without this rule, a folder that somebody else made could have any file of this machine read. In the Hub's cache every
file of `models--…/snapshots/<commit>/` (or `datasets--…`) is a link to a blob of that repository, or to a store of
blobs that repositories share; those links are allowed.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path that a person typed, with `~` and `~name` for a home; an unknown name stays as it is.

    A shell does so only at the beginning of a word: neither in `--out=~/run`, nor in a settings file or in Python.
    """
    return Path(os.path.expanduser(path))


def allowed_roots(folder: Path, kind: Literal["models", "datasets"]) -> list[Path]:
    """Return the folders that links below `folder` may lead to; `folder` is a resolved path."""
    roots = [folder]
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parents[1].name.startswith(f"{kind}--"):
            roots += [parent.parents[1], parent.parents[2] / "blobs"]
    return roots


def leads_out(path: Path, roots: Iterable[Path]) -> bool:
    """Return whether a path is a link to a place outside all of the roots."""
    return path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots)
