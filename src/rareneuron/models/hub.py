"""From what a user types to a folder on this machine: a path, a Hub id, or `id@revision`.

A folder that exists wins over a Hub id of the same name. From the Hub come only safetensors, JSON and tokenizer
files of the repository's top folder, never a pickle and never code; the commit that a revision stood for at
that moment is kept, since branches move.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
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

from rareneuron.errors import ModelNotFound

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken"]  # config and tokenizer
WANTED_FILES = ["*.safetensors", *SMALL_FILES]
UNWANTED_FILES = ["*/*", "consolidated*"]  # subfolders; the same weights once more under Mistral's names


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
    with hub_errors(name, revision):
        wanted = WANTED_FILES if weights else SMALL_FILES
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=UNWANTED_FILES))
    # The cache names a snapshot's folder after its commit.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return ModelFolder(folder=folder, source=name, revision=revision, commit=commit)


def branches(name: str) -> list[str]:
    """The branches of a model on the Hub."""
    with hub_errors(name, None):
        return [ref.name for ref in HfApi().list_repo_refs(name).branches]


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into one paragraph that says what to do."""
    wanted = name if revision is None else f"{name} at revision {revision!r}"
    try:
        yield
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is neither an existing folder nor a valid Hub id ({error}). Give a folder with config.json and "
            "*.safetensors, or an id such as `EleutherAI/pythia-70m`."
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated on the Hub. Accept its terms on its page, log in with `hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"There is no folder {name} here and no model of that name on the Hub, or it is private. Check the "
            "spelling; for a private model log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{name} has no revision {revision!r}. `rareneuron checkpoints {name}` lists its steps."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelNotFound(
            f"{wanted} is not in the Hub's cache, and the Hub can't be reached from here (or HF_HUB_OFFLINE forbids "
            "it). Give a local folder with config.json and *.safetensors; or download the model where there is a "
            "network (`hf download`) and point HF_HOME at that cache."
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ModelNotFound(
            f"Fetching {wanted} from the Hub failed: {type(error).__name__}: {error}. Try again later, or give a local "
            "folder with config.json and *.safetensors."
        ) from error
