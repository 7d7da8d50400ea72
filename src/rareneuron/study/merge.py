"""Ends a study that was computed in shards: gathers its checkpoints in one folder, and draws the conclusions.

Shards that share a run folder have put their checkpoints there already; the others come in run folders of their own,
whose settings and tokens must be the same. Oracle: tests/study/test_workers.py, the same study without shards.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rareneuron.errors import RunFolderError
from rareneuron.links import expanded
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import damage, damage_error, flush, read_record, refuse_missing, replacing
from rareneuron.runs.layout import CONTEXTS, REFITTED, STEP_RECORD, TOKENS
from rareneuron.runs.records import StepRecord
from rareneuron.runs.run import Run, open_run
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import load_tokens, selection_digest
from rareneuron.study.plan import is_begun
from rareneuron.study.study import finish

SHARED = (TOKENS, CONTEXTS)


def merge_runs(path: Path, others: Sequence[Path] = ()) -> Run:
    """Copy the checkpoints of other run folders into one, and end the study: trajectory and claims.

    `path` may be new if there are others. Finished checkpoints in it are kept, and the other folders aren't changed.
    """
    path = expanded(path)
    store = RunStore(path)
    sources = [RunStore(open_run(other).path) for other in others]
    if not sources or store.manifest.is_file():
        open_run(path)  # refuses a folder without a run
    is_begun(store)  # refuses a folder that holds something else
    with store.locked():
        for source in sources:
            copy_checkpoints(store, source)
        names = store.finished_steps()
        for name in names:
            wrong = damage(store.step(name))
            if wrong is not None:
                raise wrong
        if not names:
            raise RunFolderError(
                f"{path} has no finished checkpoint, so there is nothing to merge. Run its shards first."
            )
        finish(store, settings_of(store))
    return Run(path)


def missing_steps(run: Run) -> list[str]:
    """Return the checkpoints that were asked for but aren't finished."""
    there = RunStore(run.path).finished_steps()
    return [name for name in run.manifest.planned if name not in there]


def copy_checkpoints(store: RunStore, source: RunStore) -> None:
    """Copy the finished checkpoints of another run folder of the same study, once they are known to be whole."""
    theirs = source.read_manifest()
    if not store.manifest.is_file():
        copy_tokens(store, source)
        store.write_manifest(replace(theirs, checkpoints={}, planned=()))
    ours = store.read_manifest()
    settings = ((ours.config.identity(), theirs.config.identity()), (ours.resolved, theirs.resolved))
    differing = [name for one, other in settings for name, value in one.items() if other.get(name) != value]
    differing += ["tokens"] if ours.data.sha256 != theirs.data.sha256 else []
    if differing:
        raise RunFolderError(
            f"{source.root} and {store.root} don't belong to one study: they differ in {', '.join(differing)}, and "
            "results of both would be mixed. Merge only shards of the same command."
        )
    try:
        load_tokens(store)
    except RunFolderError:
        copy_tokens(store, source)
    for name in source.finished_steps():
        wrong = damage(source.step(name))
        if wrong is not None:
            raise wrong
        if store.step(name).is_dir() and damage(store.step(name)) is None:
            refuse_other_weights(store, source, name)
            continue
        with store.step_locked(name), replacing(store.step(name)) as folder:
            folder.mkdir()
            for file in step_files(source.step(name)):
                copy_file(file, folder / file.name)
    further = tuple(name for name in theirs.planned if name not in ours.planned)
    store.write_manifest(replace(ours, planned=ours.planned + further))


def copy_tokens(store: RunStore, source: RunStore) -> None:
    """Copy the tokens of another run folder, once they are known to be those that its study chose."""
    if selection_digest(load_tokens(source).selection) != source.read_manifest().data.sha256:
        raise damage_error(source.root / SHARED[0], "its tokens are not those that the study chose")
    for name in SHARED:
        with replacing(store.root / name) as temporary:
            shutil.copyfile(source.root / name, temporary)


def step_files(folder: Path) -> list[Path]:
    """Return the files that make up a checkpoint, and refuse links; other files in the folder are ignored."""
    refitted = [name for name in REFITTED if (folder / name).exists()]
    listed = [Path(name).name for name in read_record(folder / STEP_RECORD, StepRecord).files]
    files = [folder / name for name in (*listed, *refitted, STEP_RECORD)]
    for file in files:
        refuse_missing(file)
    return files


def copy_file(path: Path, place: Path) -> None:
    """Copy a file, and force it to the disk before its folder gets its final name."""
    shutil.copyfile(path, place)
    flush(place)


def refuse_other_weights(store: RunStore, source: RunStore, name: str) -> None:
    """Refuse a step that two folders computed from different weights."""
    weights = [s.read_step(name).model.weights_sha256 for s in (store, source)]
    if weights[0] != weights[1]:
        raise RunFolderError(
            f"Step {name} of {source.root} was computed from other weights than that of {store.root}, so they "
            "don't belong to one study. Merge only shards of the same command."
        )


def settings_of(store: RunStore) -> StudyConfig:
    """Return the settings of a run that decide its results; the others have their defaults."""
    return replace(store.read_manifest().config, out=str(store.root))
