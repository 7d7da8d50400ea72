"""The tables in the paper's layout: its columns, and a few rows a run.

The paper sets one group against one random group. Here `random` is the mean over all random groups, and under each
value stand the means of random groups and of groups matched to it, with p, two-sided.
"""

import math
from collections.abc import Sequence

import pandas as pd

from rareneuron.present.published import (
    GROUP_SIZE,
    GROUPS,
    LAST_STEPS,
    N_TOKENS,
    Number,
    paper_name,
    paper_row,
    variant_of,
)
from rareneuron.present.readable import part_record
from rareneuron.present.subject import Subject, subjects_with_labels
from rareneuron.present.tables.layouts import COVARIATES, HEADS, LAYOUTS, LEGEND, NULLS, SHORT
from rareneuron.present.tables.long_form import COLUMNS, rows_of
from rareneuron.present.typeset import PaperTable
from rareneuron.present.wording import MINUS, NOTHING, significant
from rareneuron.runs.groups import without_random_pairs
from rareneuron.runs.run import Run

PRINTED: dict[Number, str] = {1: "ρ", 3: "cosine"}  # of which the paper prints values, where it says so


def paper_table(number: Number, runs: Sequence[Run], step: int | None = None) -> PaperTable:
    """Return one of the paper's tables, with a few rows for each run."""
    layout = LAYOUTS[number]
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for label, of in subjects_with_labels(runs, step):
        long = pd.DataFrame(rows_of(number, of), columns=list(COLUMNS))
        for kind, name, cells in [*compact_rows(number, long), *printed_row(number, of)]:
            rows.append((label, kind, name, *cells))
        notes += [f"{label}: {note}" for note in notes_of(of, long)]
    words = ("model", "matrix" if number == 4 else "of", "")
    return PaperTable(
        number=number,
        title=f"Table {number}: {layout.title}",
        caption=f"{layout.about} {LEGEND}",
        columns=(*words, *(HEADS[group] for group in GROUPS[number])),
        n_words=len(words),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def compact_rows(number: Number, long: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """Return rows of cells: a row's matrix or statistic, its name, and a cell for each group.

    The value comes first, then the mean and p of each null.
    """
    groups = GROUPS[number]
    if long["statistic"].isna().all():
        return [(NOTHING, "not available", [NOTHING] * len(groups))]
    out = [
        (LAYOUTS[number].statistics[long["definitions"].iloc[0]][signed], "not defined", [NOTHING] * len(groups))
        for signed in undefined(long)
    ]
    for _, rows in long.groupby(["statistic", "matrix"], sort=False, dropna=False):
        statistic, matrix, definitions = rows[["statistic", "matrix", "definitions"]].iloc[0]
        kind = matrix if isinstance(matrix, str) else LAYOUTS[number].statistics[definitions][statistic]
        decimals = 2 if statistic.endswith("_share") else LAYOUTS[number].decimals
        values = rows.drop_duplicates("group").set_index("group")["value"].reindex(groups)
        out.append((kind, "this run", [fixed(value, decimals) for value in values]))
        if statistic.endswith("_share"):
            continue  # the count's p is its own
        for null, name in SHORT.items():
            of_null = rows[rows["null"] == null].set_index("group").reindex(groups)
            if of_null["p"].notna().any():
                out.append((kind, f"mean, {name}", [fixed(mean, decimals) for mean in of_null["null_mean"]]))
                out.append((kind, f"p, {name}", [significant(p, 2) for p in of_null["p"]]))
    return out


def printed_row(number: Number, of: Subject) -> list[tuple[str, str, list[str]]]:
    """Return the paper's values as it prints them, where it has this model."""
    if of.in_paper is None:
        return []
    values = paper_row(number, of.in_paper)
    kind = PRINTED.get(number, "not said")
    return [(kind, f"paper: {of.in_paper}", [values[group].replace("-", MINUS) for group in GROUPS[number]])]


def undefined(long: pd.DataFrame) -> list[str]:
    """Return the signed statistics that a table lacks where it has their sizes, since the model has no such signs."""
    there = set(long["statistic"].dropna())
    return [name.removeprefix("abs_") for name in sorted(there) if is_size(name) and name[4:] not in there]


def is_size(statistic: str) -> bool:
    """Return whether a statistic is of sizes, |ρ| or |cosine|."""
    return statistic.startswith("abs_")


def fixed(value: float | None, decimals: int) -> str:
    """Return a value with this many decimals, as in the paper.

    A small value gets one more, so that it isn't printed as 0; whole dimensions get none.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if decimals == 1 and float(value).is_integer():
        return f"{value:.0f}"
    decimals += 0 < abs(value) < 10.0**-decimals
    return f"{value:z.{decimals}f}".replace("-", MINUS)


def notes_of(of: Subject, long: pd.DataFrame) -> list[str]:
    """Say what the rows rest on, why there are none, and why the paper's values do or don't stand beside them."""
    facts = of.facts
    sizes = f"{facts['n_params']:,} parameters, groups of {facts['group_size']} neurons"
    settings = f"definitions “{facts['definitions']}”, {of.layer_name}, {sizes}"
    notes = [f"{settings}, {facts['n_tokens']:,} rare tokens{draws(long)}."]
    if len(reasons := long["reason"].dropna()):
        notes.append(f"nothing to compare. {reasons.iloc[0]}")
    notes += left_open(of, long)
    name = paper_name(of.hub_id) if of.hub_id else None
    last = LAST_STEPS.get(name or "")
    if other := variant_of(of.hub_id or ""):
        notes.append(f"trained on deduplicated text, so not the paper's {other}, whose values don't stand beside it.")
    elif name and not of.is_last_layer:
        notes.append("the paper's values are of the last layer, so they don't stand beside another one.")
    elif name and last and of.step not in (None, last):
        notes.append(f"the paper's values are presumably of the last checkpoint, {last:,}; this is another one.")
    if of.in_paper:
        notes.append(
            f"the paper's values are of groups of {GROUP_SIZE}; its means are over {N_TOKENS:,} tokens of C4, and its "
            "random column is a single group."
        )
    return notes


def left_open(of: Subject, long: pd.DataFrame) -> list[str]:
    """Say which numbers the model's symmetries leave undefined or change, and which pairs of groups have no null."""
    notes, there = [], set(long["statistic"].dropna())
    if undefined(long):
        notes.append(
            "this model leaves the signs of its activations open, as every gated MLP does, so their signed mean is not "
            "defined; its size is what claims are judged by."
        )
    if "d_eff" in there and part_record(of.run, "geometry", of.step).get("as_written"):
        notes.append(
            "this model leaves the scales of its activations open, so covariances are of activations times the "
            "length of the neuron's row of W_out."
        )
    if "alpha_hill" in there and (matrices := part_record(of.run, "spectrum", of.step).get("unit_rows")):
        notes.append(
            f"this model leaves the lengths of rows of {' and '.join(matrices)} open, so these were brought to length "
            "1."
        )
    if there & {"abs_correlation", "abs_cosine"}:
        notes += [f"{HEADS[pair]}: {why}" for pair, why in without_random_pairs(of.run.folder(of.step)).items()]
    return notes


def draws(long: pd.DataFrame) -> str:
    """Say how many random groups of each kind were drawn."""
    words = []
    for null, name in NULLS.items():
        of_null = long[long["null"] == null]
        if len(of_null):
            matched = long["matched_on"].iloc[0] if null == "matched" else None
            alike = "" if matched is None else f" (alike in {COVARIATES.get(matched, matched)})"
            words.append(f"{int(of_null['n_draws'].max()):,} {name}{alike}")
    return f"; {', '.join(words)}" if words else ""
