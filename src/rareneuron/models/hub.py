"""From what a user types to a folder on this machine: a path, a Hub id, or `id@revision`.

A folder that exists wins over a Hub id of the same name. From the Hub come only safetensors, JSON and tokenizer
files of the repository's top folder, never a pickle and never code; the commit that a revision stood for at
that moment is kept, since branches move. The Hub's client names each file in its cache after the hash that the Hub
told; it compares sizes only, so content and name are compared here. Refusals that pass (429, 5xx, a dropped
connection) are waited for, a few times.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from rareneuron.errors import BrokenCheckpoint, ModelNotFound

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken"]  # config and tokenizer
WANTED_FILES = ["*.safetensors", *SMALL_FILES]
UNWANTED_FILES = ["*/*", "consolidated*"]  # subfolders; the same weights once more under Mistral's names

PATIENCE = (1.0, 4.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 330.0  # that a Hub may ask for; its limits are on windows of 300 s
# `"api";r=0;t=55`: no request left, the next window begins in 55 s. The client reads that too, but not in all versions.
USED_UP = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
DROPPED = {"RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError"}  # httpx's names, and requests'

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's files, and where they are from."""

    folder: Path
    source: str  # Hub id, or the folder's path
    revision: str | None = None
    commit: str | None = None


def split_revision(model: str | os.PathLike[str], revision: str | None) -> tuple[str, str | None]:
    """`id@revision` in two; an existing path is never split."""
    name = os.fspath(model)
    if not name:
        raise ModelNotFound(
            "The name of the model is empty. Give a folder, or a Hub id such as `EleutherAI/pythia-70m`."
        )
    head, at, suffix = name.partition("@")
    if at and not Path(name).expanduser().exists() and Path(head).expanduser().exists():
        name, revision = head, suffix  # a folder with a revision, which is refused like any other
    if is_local(name if Path(name).expanduser().exists() else head):
        if revision is not None:
            raise ModelNotFound(
                f"{name} is a local path, and revision {revision!r} was asked for, but only models on the Hub have "
                "revisions. Leave the revision out, or give the folder that holds it."
            )
        return name, None
    if not at:
        return name, revision
    if revision not in (None, suffix):
        raise ModelNotFound(
            f"{name!r} names revision {suffix!r}, and revision {revision!r} was asked for beside it. Give one of the "
            "two."
        )
    return head, suffix


def is_local(name: str) -> bool:
    """Whether `name` is a path: it exists, or can't be a Hub id."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1


def model_folder(model: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True) -> ModelFolder:
    """The folder of a model's files, with or without its weights, downloaded to the Hub's cache where need be."""
    name, revision = split_revision(model, revision)
    if is_local(name):
        folder = Path(name).expanduser()
        if not folder.exists():
            raise ModelNotFound(
                f"There is no folder {name}. Give an existing folder with config.json and *.safetensors, or a Hub id "
                "such as `EleutherAI/pythia-70m`."
            )
        if not folder.is_dir():
            raise ModelNotFound(f"{name} is a file. Give the folder that holds it beside config.json.")
        return ModelFolder(folder=folder, source=name)
    folder = downloaded(name, revision, WANTED_FILES if weights else SMALL_FILES)
    # The cache names a snapshot's folder after its commit.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return ModelFolder(folder=folder, source=name, revision=revision, commit=commit)


def downloaded(name: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """A snapshot in the Hub's cache whose files are those that the Hub described; what is whole is not fetched again.

    A file that isn't is fetched once more, and refused if that doesn't help.
    """

    def snapshot(patterns: Sequence[str], *, anew: bool = False) -> Path:
        with hub_errors(name, revision):
            return patiently(
                lambda: Path(
                    snapshot_download(
                        name,
                        revision=revision,
                        allow_patterns=list(patterns),
                        ignore_patterns=UNWANTED_FILES,
                        force_download=anew,
                    )
                )
            )

    folder = snapshot(wanted)
    wrong = wrong_files(folder, wanted)
    if wrong:
        with suppress(ModelNotFound, ValueError):  # no Hub to ask again: the client says so by a ValueError
            folder = snapshot(wrong, anew=True)
        wrong = wrong_files(folder, wanted)
    if wrong:
        raise BrokenCheckpoint(
            f"{', '.join(wrong)} of {told(name, revision)} in {folder} {'has' if len(wrong) == 1 else 'have'} another "
            "content than the Hub says (the hash differs), so what was trained is not what would be loaded. Fetch it "
            "again later, with the network on; if it stays so, the server or a proxy before it is broken."
        )
    return folder


def wrong_files(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Files of a snapshot whose content isn't that of their hash.

    A file is a link to a blob that is named after its SHA-256, or its git hash. Where a cache can't have links
    (Windows), or a mirror gives other names, there is nothing to compare with.
    """
    wrong = []
    for file in sorted(folder.iterdir()):
        if not file.is_symlink() or not any(fnmatch(file.name, pattern) for pattern in wanted):
            continue
        blob = Path(os.path.normpath(folder / file.readlink()))
        if not blob.is_file():
            wrong.append(file.name)
        elif blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            stat = blob.stat()
            if content_hash(blob, blob.name, stat.st_size, stat.st_mtime_ns) != blob.name:
                wrong.append(file.name)
    return wrong


@lru_cache(maxsize=4096)
def content_hash(file: Path, like: str, size: int, changed: int) -> str:
    """Of a file, in the form of a given one; once for each size and time of change."""
    if len(like) == 64:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    out = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            out.update(block)
    return out.hexdigest()


def branches(name: str) -> list[str]:
    """The branches of a model on the Hub; where that is out of reach, those in its cache, which is said."""
    try:
        with hub_errors(name, None):
            return [ref.name for ref in patiently(lambda: HfApi().list_repo_refs(name)).branches]
    except ModelNotFound as error:
        cached = cached_branches(name) if is_out_of_reach(error.__cause__) else []
        if not cached:
            raise
        say_from_cache(name, len(cached))
        return cached


@lru_cache
def say_from_cache(name: str, n: int) -> None:
    """Once for each model."""
    log.warning("The Hub can't be reached: the branches of %s in its cache (%d) are taken for all of them.", name, n)


def cached_branches(name: str) -> list[str]:
    """Branches, tags and the like whose weights are in the Hub's cache."""
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    refs, found = storage / "refs", []
    for file in sorted(refs.rglob("*")):
        commit = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
        if re.fullmatch(r"[0-9a-f]{40}", commit) and any((storage / "snapshots" / commit).glob("*.safetensors")):
            found.append(file.relative_to(refs).as_posix())
    return found


def patiently(ask: Callable[[], T]) -> T:
    """Ask the Hub, and again where its refusal is of a kind that passes."""
    for wait in PATIENCE:
        try:
            return ask()
        except (HfHubHTTPError, HTTPError, OSError) as error:
            pause = max(wait, asked_to_wait(error))
            if not passes(error) or pause > LONGEST_WAIT:
                raise
        if pause > PATIENCE[-1]:
            log.warning("The Hub asks for a pause of %.0f seconds.", pause)
        time.sleep(pause)
    return ask()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: BaseException | None) -> int | None:
    """The Hub's answer behind an error; None where there was no answer."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, HfHubHTTPError) and response is not None:
            return int(response.status_code)
    return None


def passes(error: BaseException) -> bool:
    """Whether asking again may help: too many requests, trouble at the Hub, a connection cut or a file cut short."""
    if status_of(error) is not None:
        return status_of(error) in PASSING_STATUS
    return any(type(cause).__name__ in DROPPED or "Consistency check failed" in str(cause) for cause in causes(error))


def asked_to_wait(error: BaseException) -> float:
    """Seconds, by the `Retry-After` or the `ratelimit` of an answer, whichever is longer."""
    asked = [0.0]
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", {})
        with suppress(ValueError):
            asked.append(float(headers.get("Retry-After", "")))
        if (window := USED_UP.search(headers.get("ratelimit", ""))) is not None:
            asked.append(float(window[1]) + 1)  # it is rounded
    return max(asked)


def is_out_of_reach(error: BaseException | None) -> bool:
    """Whether the Hub gave no answer, or only that it is in trouble."""
    status = status_of(error)
    return status in PASSING_STATUS if status is not None else isinstance(error, HTTPError | OSError)


def told(name: str, revision: str | None) -> str:
    """A model and its revision in words."""
    return name if revision is None else f"{name} at revision {revision!r}"


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into one paragraph that says what to do."""
    wanted = told(name, revision)
    try:
        yield
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is neither an existing folder nor a valid Hub id ({error}). Give a folder with config.json and "
            "*.safetensors, or an id such as `EleutherAI/pythia-70m`."
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated on the Hub. Accept its terms on its page, log in with `hf auth login` (or set HF_TOKEN), "
            "and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"There is no folder {name} here and no model of that name on the Hub, or it is private. Check the "
            "spelling; for a private model log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{name} has no revision {revision!r}. `rareneuron checkpoints {name}` lists its steps."
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ModelNotFound(unreached(wanted, error)) from error


def unreached(wanted: str, error: Exception) -> str:
    """Why a model that may well exist isn't here."""
    status = status_of(error)
    if status in (401, 403):
        return (
            f"The Hub refuses to give {wanted} to this account (status {status}). Log in again with `hf auth login`, "
            "or mend HF_TOKEN: a token that is wrong or has expired is refused even where none is needed."
        )
    if status in PASSING_STATUS:
        why = "is asked too often from here" if status == 429 else "is in trouble"
        return (
            f"The Hub {why} (status {status}), and {wanted} is not wholly in its cache. Try again later: files that "
            "have arrived are kept, and the same command continues."
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            f"{wanted} is not, or not wholly, in the Hub's cache, and the Hub can't be reached from here (or "
            "HF_HUB_OFFLINE forbids it). Give a local folder with config.json and *.safetensors; or run "
            "`rareneuron fetch` where there is a network, and point HF_HOME at that cache."
        )
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (
        f"Fetching {wanted} from the Hub failed: {why}. Try again later: files that have arrived are kept, and the "
        "same command continues; or give a local folder with config.json and *.safetensors."
    )
