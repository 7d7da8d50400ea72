"""From what a user types to a folder on this machine: a path, a Hub id, or `id@revision`.

A folder that exists wins over a Hub id of the same name. From the Hub come only safetensors, JSON and tokenizer
files of the repository's top folder, never a pickle and never code; the commit that a revision stood for at
that moment is kept, since branches move. The Hub's client names each file in its cache after the hash that the Hub
gave; it compares sizes only, so content and name are compared here. Transient failures (429, 5xx, a dropped
connection) are retried a few times.
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

from rareneuron.cache import cache_folder
from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.links import expanded
from rareneuron.models.gguf import converted, gguf_in, known_origin
from rareneuron.models.packaged import PACKAGED, packaged_folder
from rareneuron.models.snapshots import main_snapshot

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken"]  # config and tokenizer
WANTED_FILES = ["*.safetensors", *SMALL_FILES]
UNWANTED_FILES = ["*/*", "consolidated*"]  # subfolders; the same weights once more under Mistral's names

PATIENCE = (1.0, 4.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 330.0  # seconds that a Hub may ask for; its limits are on windows of 300 s
# `"api";r=0;t=55`: no request left, the next window begins in 55 s. The client reads that too, but not in all versions.
USED_UP = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
DROPPED = {"RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError"}  # httpx's names, and requests'

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's files on this machine, and where they come from."""

    folder: Path
    source: str  # Hub id, or the folder's path
    revision: str | None = None
    commit: str | None = None  # of the Hub; None for a folder
    form: str | None = None  # how weights became numbers, where the file held others ("dequantised from Q4_1")
    weights_sha256: str | None = None  # what the weights must have, where they were made here


def split_revision(model: str | os.PathLike[str], revision: str | None) -> tuple[str, str | None]:
    """Split `id@revision` in two; an existing path is never split."""
    name = os.fspath(model)
    if not name:
        raise ModelNotFound(
            "The name of the model is empty. Give a folder, or a Hub id such as `EleutherAI/pythia-70m`."
        )
    head, at, suffix = name.partition("@")
    if at and not expanded(name).exists() and expanded(head).exists():
        name, revision = head, suffix  # a folder with a revision, which is refused like any other
    if is_local(name if expanded(name).exists() else head):
        if head in PACKAGED and revision is not None:
            raise ModelNotFound(
                f"{head} is a packaged model of one version, without revisions. Leave {revision!r} out."
            )
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
    """Whether `name` is a path (it exists, or can't be a Hub id) or a packaged model's name."""
    return (
        name in PACKAGED
        or expanded(name).exists()
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
    )


def model_folder(
    model: str | os.PathLike[str], revision: str | None = None, *, commit: str | None = None, weights: bool = True
) -> ModelFolder:
    """The folder of a model's files, downloaded to the Hub's cache where need be.

    Args:
        model: A folder, a Hub id, or `id@revision`.
        revision: Branch, tag or commit on the Hub; None for the default branch.
        commit: What the revision stood for earlier. Where it has moved since, files are those of this commit.
        weights: Whether weights are wanted, too, or only config and tokenizer.
    """
    name, revision = split_revision(model, revision)
    if is_local(name):
        return local_folder(name)
    wanted = WANTED_FILES if weights else SMALL_FILES
    # By its revision first: the cache then remembers what the revision stood for, and lists it without a network.
    folder = download(name, revision, wanted)
    if commit not in (None, folder.name):
        folder = download(name, commit, wanted)
    # The cache names a snapshot's folder after its commit.
    found = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return ModelFolder(folder=folder, source=name, revision=revision, commit=found)


def local_folder(name: str) -> ModelFolder:
    """The folder of a model on this machine: named, in a GGUF file, or of a packaged model that was fetched."""
    folder = expanded(name)
    if name in PACKAGED:
        if folder.exists():
            raise ModelNotFound(
                f"{name} is a packaged model's name, and a folder of that name is here, so it isn't clear which is "
                f"meant. Type ./{name} for the folder; for the packaged model, work in another folder."
            )
        place, known = packaged_folder(name)
    elif (snapshot := main_snapshot(folder)) is not None:
        return ModelFolder(folder=snapshot, source=name, commit=snapshot.name)
    elif (file := gguf_in(folder)) is not None:
        place, known = converted(file)
    else:
        if not folder.exists():
            raise ModelNotFound(
                f"There is no folder {name}. Give an existing folder with config.json and *.safetensors, or a Hub id "
                "such as `EleutherAI/pythia-70m`."
            )
        if not folder.is_dir():
            raise ModelNotFound(f"{name} is a file. Give the folder that holds it beside config.json.")
        if folder.resolve().parent != cache_folder("models").resolve():
            return ModelFolder(folder=folder, source=name)
        place, known = folder, known_origin(folder)
    return ModelFolder(folder=place, source=name, form=known["form"], weights_sha256=known["weights_sha256"])


def download(name: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """Put a snapshot into the Hub's cache, and return its folder once every file has the hash that the Hub gave.

    Files that are there and whole are not fetched again. A damaged one is fetched once more, and refused if that
    doesn't help.
    """

    def snapshot(patterns: Sequence[str], *, anew: bool = False) -> Path:
        with hub_errors(name, revision):
            return with_retries(
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
            f"{', '.join(wrong)} of {in_words(name, revision)} in {folder} {'is' if len(wrong) == 1 else 'are'} not "
            "what the Hub describes (the hash differs), so what would be loaded is not what was trained. Fetch it "
            "again later, with the network on; if that doesn't help, the server or a proxy before it is broken."
        )
    return folder


def wrong_files(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Names of the files of a snapshot whose content doesn't have the hash that they are named after.

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
    """The hash of a file's content: SHA-256, or git's where `like` is one of those.

    `size` and `changed` are there for the cache, which holds one hash for each size and time of change.
    """
    if len(like) == 64:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    out = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            out.update(block)
    return out.hexdigest()


def branch_commits(name: str) -> dict[str, str]:
    """The branches of a model on the Hub and their commits.

    Where the Hub is out of reach they are those in its cache, with a warning.
    """
    try:
        with hub_errors(name, None):
            refs = with_retries(lambda: HfApi().list_repo_refs(name))
    except ModelNotFound as error:
        cached = cached_branches(name) if is_out_of_reach(error.__cause__) else {}
        if not cached:
            raise
        warn_of_cache(name, len(cached))
        return cached
    return {ref.name: ref.target_commit for ref in refs.branches}


@lru_cache
def warn_of_cache(name: str, n: int) -> None:
    """Warn, once for each model, that its branches are those of the cache."""
    log.warning("The Hub can't be reached: the branches of %s in its cache (%d) are taken for all of them.", name, n)


def cached_branches(name: str) -> dict[str, str]:
    """Branches, tags and other revisions whose weights are in the Hub's cache, and their commits."""
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    refs, found = storage / "refs", {}
    for file in sorted(refs.rglob("*")):
        commit = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
        if re.fullmatch(r"[0-9a-f]{40}", commit) and any((storage / "snapshots" / commit).glob("*.safetensors")):
            found[file.relative_to(refs).as_posix()] = commit
    return found


def with_retries(ask: Callable[[], T]) -> T:
    """Ask the Hub, and ask again after a pause where it failed in a way that may pass."""
    for wait in PATIENCE:
        try:
            return ask()
        except (HfHubHTTPError, HTTPError, OSError) as error:
            pause = max(wait, requested_pause(error))
            if not is_transient(error) or pause > LONGEST_WAIT:
                raise
        if pause > PATIENCE[-1]:
            log.warning("The Hub asks for a pause of %.0f seconds.", pause)
        time.sleep(pause)
    return ask()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: BaseException | None) -> int | None:
    """The status of the Hub's answer behind an error; None where there was no answer."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, HfHubHTTPError | HTTPError) and response is not None:  # the client before 1.0 raises both
            return int(response.status_code)
    return None


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help: too many requests, trouble at the Hub, a connection cut or a file cut short."""
    if status_of(error) is not None:
        return status_of(error) in TRANSIENT_STATUS
    return any(type(cause).__name__ in DROPPED or "Consistency check failed" in str(cause) for cause in causes(error))


def requested_pause(error: BaseException) -> float:
    """The pause that the Hub asks for, in seconds: its `Retry-After` or its `ratelimit`, whichever is longer."""
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
    return status in TRANSIENT_STATUS if status is not None else isinstance(error, HTTPError | OSError)


def in_words(name: str, revision: str | None) -> str:
    """A model and its revision, as a sentence names them."""
    return name if revision is None else f"{name} at revision {revision!r}"


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into one paragraph that says what to do."""
    wanted = in_words(name, revision)
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
        raise ModelNotFound(why_not_fetched(wanted, error)) from error


def why_not_fetched(wanted: str, error: Exception) -> str:
    """The reason why a model that may well exist couldn't be fetched, and what to do."""
    status = status_of(error)
    if status in (401, 403):
        return (
            f"The Hub refuses to give {wanted} to this account (status {status}). Log in again with `hf auth login`, "
            "or mend HF_TOKEN: a token that is wrong or has expired is refused even where none is needed."
        )
    if status in TRANSIENT_STATUS:
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
