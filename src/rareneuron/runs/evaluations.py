"""Writes and reads what tasks say with and without a run's groups: a folder for each task (`use.evaluate` makes it).

Everything is there to do it again and to ask more: a summary, every item with its scores, every random group.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rareneuron.errors import InvalidConfig, NotMeasured, RunFolderError
from rareneuron.runs.files import file_sum, read_record, read_table, replacing, write_json, write_table
from rareneuron.runs.layout import (
    EVALUATION_DRAWS,
    EVALUATION_ITEMS,
    EVALUATION_RECORD,
    EVALUATION_TABLE,
    EVALUATIONS,
)
from rareneuron.runs.records import EvaluationRecord, as_json

SWAP = "swap"  # the task that comes with the package
KEYS = ("task", "words", "measure")
COLUMNS = {  # that readers rely on
    EVALUATION_TABLE: (
        *(*KEYS, "group", "n_items", "n_documents", "clean", "change", "change_low", "change_high", "change_se", "p"),
        *("detectable", "null", "null_mean", "null_low", "null_high", "null_p", "null_groups", "detectable_beyond"),
    ),
    EVALUATION_DRAWS: (*KEYS, "null", "draw", "change"),
    EVALUATION_ITEMS: ("task", "words", "item", "document"),
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A task with and without groups; docs/run-folder.md describes the tables."""

    record: EvaluationRecord
    table: pd.DataFrame
    items: pd.DataFrame
    draws: pd.DataFrame


def write_evaluation(root: Path, found: Evaluation) -> Path:
    """Write an evaluation into a run, in place of an earlier one of the same name; return its folder."""
    folder = evaluation_folder(root, found.record.name)
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_table(temporary / EVALUATION_TABLE, found.table)
        write_table(temporary / EVALUATION_ITEMS, found.items)
        write_table(temporary / EVALUATION_DRAWS, found.draws)
        write_json(temporary / EVALUATION_RECORD, as_json(found.record))
    return folder


def evaluation_names(root: Path) -> list[str]:
    """Return the names of a run's evaluations."""
    folder = root / EVALUATIONS
    return sorted(path.parent.name for path in folder.glob(f"*/{EVALUATION_RECORD}")) if folder.is_dir() else []


def read_evaluation(root: Path, name: str = SWAP) -> Evaluation:
    """Return one of a run's evaluations. Raises `NotMeasured` where it has none of this name."""
    folder = evaluation_folder(root, name)
    if not (folder / EVALUATION_RECORD).is_file():
        there = evaluation_names(root)
        raise NotMeasured(
            f"{root} has no evaluation {name!r}{': it has ' + ', '.join(there) if there else ''}. "
            f"`rareneuron evaluate {root}` makes the rare-word swap, with --tasks others."
        )
    tables = {file: checked_table(folder / file) for file in COLUMNS}
    return Evaluation(
        record=read_record(folder / EVALUATION_RECORD, EvaluationRecord),
        table=tables[EVALUATION_TABLE],
        items=tables[EVALUATION_ITEMS],
        draws=tables[EVALUATION_DRAWS],
    )


def checked_table(path: Path) -> pd.DataFrame:
    """Return a table of an evaluation; refuse one that lacks a column."""
    table = read_table(path)
    missing = [name for name in COLUMNS[path.name] if name not in table]
    if missing:
        raise RunFolderError(
            f"{path} lacks the columns {', '.join(missing)}: another version wrote it, or it is damaged. Run "
            "`rareneuron evaluate` again."
        )
    return table


def evaluation_folder(root: Path, name: str) -> Path:
    """Return where an evaluation lies; refuse a name that leads elsewhere."""
    if not name or name != Path(name).name or name.startswith("."):
        raise InvalidConfig(f"{name!r} can't be the name of an evaluation, since it is no plain name of a folder.")
    return root / EVALUATIONS / name


def evaluation_digest(root: Path, name: str = SWAP) -> str | None:
    """Return the SHA-256 of an evaluation's record and summary; None where there is none."""
    folder = evaluation_folder(root, name)
    files = [folder / EVALUATION_RECORD, folder / EVALUATION_TABLE]
    return " ".join(file_sum(path) for path in files) if all(path.is_file() for path in files) else None
