"""Reads the folders that the Hub's client keeps: `models--OWNER--NAME` with `refs` and `snapshots` named by commits."""

from pathlib import Path

from rareneuron.errors import ModelNotFound


def snapshots_of(folder: Path) -> dict[str, Path]:
    """Return the snapshots of a model's folder in the Hub's cache by revision; empty where it is another folder.

    A snapshot that no revision names stands under its commit.
    """
    root = folder.parent if folder.name == "snapshots" else folder
    if not root.name.startswith("models--") or not (root / "snapshots").is_dir():
        return {}
    there = {child.name: child for child in sorted((root / "snapshots").iterdir()) if child.is_dir()}
    found = {}
    for ref in sorted((root / "refs").rglob("*")):
        commit = ref.read_text(encoding="utf-8", errors="replace").strip() if ref.is_file() else ""
        if commit in there:
            found[ref.relative_to(root / "refs").as_posix()] = there[commit]
    named = set(found.values())
    return found | {commit: place for commit, place in there.items() if place not in named}


def main_snapshot(folder: Path) -> Path | None:
    """Return the snapshot that a model's folder in the Hub's cache stands for; None where it is another folder."""
    found = snapshots_of(folder)
    if not found:
        return None
    if "main" in found:
        return found["main"]
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    listed = ", ".join(f"{name} ({place.name[:8]})" for name, place in list(found.items())[:6])
    raise ModelNotFound(
        f"{folder} is a model's folder in the Hub's cache with {len(set(found.values()))} snapshots ({listed}) and no "
        f"`main` among them. Give one of them, such as {next(iter(found.values()))}, or the Hub id with @REVISION."
    )
