"""Says what a task shows of a run's groups: what could have been found, then what was, for terminals and pages."""

from collections.abc import Sequence

import pandas as pd

from rareneuron.present.wording import NOTHING, seconds, significant
from rareneuron.runs.evaluations import SWAP, Evaluation
from rareneuron.runs.records import EvaluationRecord

HEADS = ("task", "items", "without", "measure", "clean", "change (95 %)", "p", "uniform", "p", "matched", "p")


def what_was_scored(record: EvaluationRecord, table: pd.DataFrame) -> str:
    """Say what the items are and how they were scored."""
    n = table.drop_duplicates(["task", "words"]).set_index("words")["n_items"]
    others = f"{record.n_random:,} random groups of each kind" if record.n_random else "no random groups"
    spent = seconds(sum(record.seconds.values())) if record.seconds else NOTHING
    if record.name != SWAP:
        limit = "" if record.limit is None else f", the first {record.limit:,} items of each"
        return f"{', '.join(record.tasks)} by {record.program}{limit}; beside {others}; {spent} in all."
    behind = "" if not record.n_following else f" and the {record.n_following} tokens behind it"
    return (
        f"Rare-word swap: {n.get('rare', 0):,} places with a rare word and {n.get('common', 0):,} with a common one, "
        f"in {int(table['n_documents'].max()):,} of {record.n_documents_left or 0:,} documents of {record.text} that "
        f"the study analysed nothing of. Margin: log-likelihood of the word{behind}, less that of another word as "
        f"frequent; accuracy: how often the margin is above 0. Scored {record.scored}, beside {others}; {spent} in all."
    )


def what_could_be_found(table: pd.DataFrame) -> str:
    """Say how small a fall the items can show, before what they do show."""
    parts = []
    for (task, words, measure), rows in table.groupby(["task", "words", "measure"], sort=False):
        if " less " in str(words) or measure == "log p":
            continue
        beyond = rows["detectable_beyond"].max()
        told = f"{words or task}, {measure}: {significant(float(rows['detectable'].max()), 2)}"
        parts.append(told + ("" if pd.isna(beyond) else f" ({significant(float(beyond), 2)} beyond random groups)"))
    return f"A fall that would be found in 80 % of cases, at 5 % one-sided: {'; '.join(parts)}."


def evaluation_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one row of finished cells for each part, group and measure, with both kinds of random groups beside."""
    rows = []
    keys = ["task", "words", "group", "measure"]
    for (task, words, group, measure), of in table.groupby(keys, sort=False):
        first = of.iloc[0]
        name = str(words) if task == SWAP else f"{task} {words}".strip()
        change = significant(first["change"], 2, sign=True)
        interval = (
            f" ({significant(first['change_low'], 2, sign=True)} … {significant(first['change_high'], 2, sign=True)})"
        )
        cells = [name, f"{int(first['n_items']):,}", str(group), str(measure), significant(first["clean"])]
        cells += [change + interval, significant(first["p"], 2)]
        for null in ("uniform", "matched"):
            beside = of[of["null"] == null]
            if beside.empty:
                cells += [NOTHING, NOTHING]
            else:
                cells += [
                    significant(beside["null_mean"].iloc[0], 2, sign=True),
                    significant(beside["null_p"].iloc[0], 2),
                ]
        rows.append(tuple(cells))
    return rows


def evaluation_text(found: Evaluation) -> str:
    """Return an evaluation for a terminal."""
    record = found.record
    lines = [what_was_scored(record, found.table), what_could_be_found(found.table), *record.warnings, ""]
    return "\n".join([*lines, *aligned([HEADS, *evaluation_rows(found.table)]), "", HOW_TO_READ])


HOW_TO_READ = (
    "Change: without the group less with it. p: one-sided, of no fall; beside the mean of uniform and of matched "
    "random groups, of a fall as large as this one's."
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines whose columns stand below each other."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
