"""The paper's Tables 1–4 for any number of runs, each value beside its nulls, the paper's own where it has them.

The paper sets one group against one random group. Here `random` is the mean over all random groups, and under each
value stand the means of random groups and of groups matched to it, with p, two-sided. The long form holds the nulls'
95 % too. Values are the run's (`geometry.json`, `spectrum.json`): nothing is computed here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rareneuron.errors import RunFolderError, TooFewNeurons
from rareneuron.present.published import (
    GROUP_SIZE,
    GROUPS,
    LAST_STEPS,
    N_TOKENS,
    Number,
    published,
    published_name,
    variant_of,
)
from rareneuron.present.typeset import PaperTable, as_latex, as_markdown
from rareneuron.present.wording import MINUS, NOTHING, significant, step_name, visible, without_hidden
from rareneuron.runs.files import replacing
from rareneuron.runs.run import Run
from rareneuron.runs.store import RunStore

Part = Literal["geometry", "spectrum"]  # of a checkpoint's results

NUMBERS: tuple[Number, ...] = (1, 2, 3, 4)
HEADS = {
    "boosting": "boost",
    "suppressing": "suppress",
    "random": "random",
    "boosting-random": "b–r",
    "suppressing-random": "s–r",
    "boosting-suppressing": "b–s",
    "random-random": "r–r",
}
NULLS = {"uniform": "random groups", "matched": "matched groups", "marchenko-pastur": "random directions"}
SHORT = {"uniform": "random", "matched": "matched", "marchenko-pastur": "directions"}  # at the head of a row
COVARIATES = {
    "move": "how far ablation moves the residual stream",
    "mean_abs_act": "mean |activation|",
    "W_out_norm": "the norm of their row of W_out",
}
COLUMNS = (
    *("table", "origin", "model", "n_params", "step", "layer", "definitions", "statistic", "matrix"),
    *("group_size", "n_tokens", "group", "value", "null", "null_mean", "null_low", "null_high"),
    *("effect_size", "p", "n_draws", "matched_on", "reason"),
)
OF_A_NULL = ("null", "null_mean", "null_low", "null_high", "effect_size", "p", "n_draws")
LEGEND = (
    "boost and suppress are the groups of neurons with the largest mean |Δ| of either sign, random is the mean over "
    "random groups. Under each value stand the means of random and of matched groups, and p against them, two-sided."
)
PAIRS = "b–r and s–r are either group against random ones, b–s one against the other, r–r two random groups."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of the paper's tables: what it shows of a run, and how."""

    title: str
    part: Part
    statistics: Mapping[str, Mapping[str, str]]  # definitions → statistic → what is said in front of its row
    decimals: int
    about: str


LAYOUTS: dict[Number, Layout] = {
    1: Layout(
        title="Activation correlation within and between neuron groups",
        part="geometry",
        statistics={"paper": {"correlation": ""}, "released": {"correlation": ""}},
        decimals=3,
        about=f"Mean Pearson correlation over pairs of neurons at rare tokens. {PAIRS}",
    ),
    2: Layout(
        title="Effective dimensions of neuron groups",
        part="geometry",
        statistics={
            "paper": {
                "d_eff": "covariance",
                "d_eff_share": "covariance, share",
                "d_eff_zscored": "z-scored",
                "d_eff_zscored_share": "z-scored, share",
            },
            "released": {"d_eff": "z-scored", "d_eff_share": "z-scored, share"},
        },
        decimals=1,
        about=(
            "Principal components that hold 95 % of the variance of a group's activations at rare tokens, as a count "
            "and as a share of the group, of the covariance (App. 5.3.2) and of z-scored activations. The paper's "
            "table is headed “proportion”, but its numbers up to 46 look like counts out of 50 of z-scored "
            "activations, which is what its released scripts compute. Counts grow with the number of tokens: compare "
            "equal ones only."
        ),
    ),
    3: Layout(
        title="Cosine similarity within and between neuron groups",
        part="geometry",
        statistics={"paper": {"cosine": ""}, "released": {"cosine": ""}},
        decimals=3,
        about=f"Mean cosine between activation vectors, uncentred, over pairs of neurons at rare tokens. {PAIRS}",
    ),
    4: Layout(
        title="α_Hill of the weights of neuron groups",
        part="spectrum",
        statistics={"paper": {"alpha_hill": ""}, "released": {"alpha_hill": ""}},
        decimals=2,
        about=(
            "α_Hill (Eq. 6) of the eigenvalues of each group's rows in each matrix of the MLP; lower is heavier. By "
            "definitions “released” it is of the Pearson matrix of the rows, over the largest tenth, against λ_{k+1}. "
            "Directions are rows of the same lengths in random directions (Marchenko–Pastur). The paper doesn't say "
            "which matrix its table is of; its released scripts take W_in of Pythia and W_out of GPT-2."
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint of a run, as a row of a table."""

    run: Run
    step: int | None
    record: dict[str, Any]  # of the checkpoint

    @property
    def facts(self) -> dict[str, Any]:
        """What every row of it shares."""
        manifest = self.run.manifest
        return {
            "model": self.model,
            "n_params": self.record["model"]["n_params"],
            "step": self.step,
            "layer": manifest["layer"],
            "definitions": self.run.definitions,
            "group_size": manifest["config"]["group_size"],
            "n_tokens": manifest["data"]["n_rare"],
        }

    @property
    def model(self) -> str:
        """A Hub id whole; of a local model the name of its folder."""
        config = self.run.manifest["config"]
        name = config["model"] or "embedded series"
        name = name if self.hub_id else Path(name).name
        return without_hidden(f"{name}@{config['revision']}" if config["revision"] else name)

    @property
    def hub_id(self) -> str | None:
        """Where the weights come from, if that is the Hub: a folder of the same name may hold anything."""
        return self.record["model"]["source"] if self.record["model"]["commit"] else None

    @property
    def label(self) -> str:
        """Model and step."""
        return f"{self.model}, {'final' if self.step is None else 'step ' + step_name(self.step)}"

    @property
    def in_paper(self) -> str | None:
        """The paper's name of it, where the paper's values are of the same model and the same layer."""
        return published_name(self.hub_id) if self.hub_id and self.is_last_layer else None

    @property
    def is_last_layer(self) -> bool:
        """As far as is known: runs of before the number of layers was recorded have the setting alone."""
        manifest = self.run.manifest
        return manifest["config"]["layer"] == -1 or manifest.get("n_layers") == manifest["layer"] + 1


def subject(run: Run, step: int | None) -> Subject:
    """One checkpoint; a step that the run lacks is an error that lists those it has."""
    record = run.step_record(step)
    return Subject(run=run, step=run.steps[-1] if step is None else step, record=record)


def subjects_with_labels(runs: Sequence[Run], step: int | None = None) -> list[tuple[str, Subject]]:
    """A checkpoint of each run under a name of its own: the folder's, where a model comes twice."""
    subjects = [subject(run, step) for run in runs]
    labels = [of.label for of in subjects]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({visible(of.run.path.name)})" for label, of in zip(labels, subjects, strict=True)]
    if len(set(labels)) < len(labels):  # folders of the same name
        labels = [f"{label} {place}" for place, label in enumerate(labels, 1)]
    return list(zip(labels, subjects, strict=True))


def rows_or_reason(run: Run, part: Part, step: int | None) -> pd.DataFrame | str:
    """Rows of a checkpoint's geometry or spectrum; or why there are none, in words that name no folder."""
    try:
        return run.geometry(step) if part == "geometry" else run.spectrum(step)
    except TooFewNeurons as error:
        return str(error)
    except RunFolderError:
        return (
            f"The run folder holds no {part} of this checkpoint that can be read. Remove the checkpoint's folder in "
            "steps and run the same study again: only that checkpoint is computed again."
        )


def part_record(run: Run, part: Part | Literal["groups"], step: int | None) -> dict[str, Any]:
    """All that a checkpoint's groups.json, geometry.json or spectrum.json holds; without groups an error."""
    from rareneuron.runs.groups import available

    store = RunStore(run.path)
    name = store.finished_steps()[-1] if step is None else str(step)
    return available(store.step(name) / f"{part}.json")


# --- long form


def long_table(number: Number, runs: Iterable[Run], step: int | None = None) -> pd.DataFrame:
    """One row a run, statistic, matrix, group and null, and one for each of the paper's values (`origin`)."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        of = subject(run, step)
        rows += rows_of(number, of) + printed_rows(number, of)
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(table=number)


def rows_of(number: Number, of: Subject) -> list[dict[str, Any]]:
    """A checkpoint's own; where there are no groups one row with the reason."""
    found = rows_or_reason(of.run, LAYOUTS[number].part, of.step)
    shared = {"origin": "this run"} | of.facts
    if isinstance(found, str):
        return [shared | {"reason": found}]
    shared["matched_on"] = of.run.groups(of.step).matched_on
    statistics = LAYOUTS[number].statistics[shared["definitions"]]
    found = found[found["statistic"].isin(list(statistics)) & found["group"].isin(GROUPS[number])]
    found = found.assign(order=found["statistic"].map(list(statistics).index)).sort_values("order", kind="stable")
    names = ["statistic", "group", "value", *OF_A_NULL, *(["matrix"] if "matrix" in found else [])]
    return [shared | row for row in found[names].to_dict("records")]


def printed_rows(number: Number, of: Subject) -> list[dict[str, Any]]:
    """The paper's, of a model that it has."""
    if of.in_paper is None:
        return []
    shared = {"origin": "paper", "model": of.in_paper, "group_size": GROUP_SIZE, "n_tokens": N_TOKENS}
    values = published(number, of.in_paper)
    return [shared | {"group": group, "value": float(value)} for group, value in values.items()]


# --- the paper's layout


def paper_table(number: Number, runs: Sequence[Run], step: int | None = None) -> PaperTable:
    """The paper's columns, a few rows a run."""
    layout = LAYOUTS[number]
    has_kinds = number in (2, 4)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for label, of in subjects_with_labels(runs, step):
        long = pd.DataFrame(rows_of(number, of), columns=list(COLUMNS))
        for kind, name, cells in [*compact_rows(number, long), *printed_row(number, of)]:
            rows.append((label, *([kind] if has_kinds else []), name, *cells))
        notes += [f"{label}: {note}" for note in notes_of(of, long)]
    words = ("model", *([{2: "of", 4: "matrix"}[number]] if has_kinds else []), "")
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
    """What a row is of, what it shows, and a cell a group: the value, then mean and p of each null."""
    groups = GROUPS[number]
    if long["statistic"].isna().all():
        return [(NOTHING, "not available", [NOTHING] * len(groups))]
    out = []
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
    """The paper's values as it prints them."""
    if of.in_paper is None:
        return []
    values = published(number, of.in_paper)
    return [("not said", f"paper: {of.in_paper}", [values[group].replace("-", MINUS) for group in GROUPS[number]])]


def fixed(value: float | None, decimals: int) -> str:
    """A fixed number of decimals, one more where all would be 0, as in the paper; whole dimensions have none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if decimals == 1 and float(value).is_integer():
        return f"{value:.0f}"
    decimals += 0 < abs(value) < 10.0**-decimals
    return f"{value:z.{decimals}f}".replace("-", MINUS)


def notes_of(of: Subject, long: pd.DataFrame) -> list[str]:
    """What the checkpoint's rows rest on; why there are none; why the paper's values do or don't stand beside them."""
    facts = of.facts
    layer = f"layer {facts['layer']}{', the last' if of.is_last_layer else ''}"
    sizes = f"{facts['n_params']:,} parameters, groups of {facts['group_size']} neurons"
    notes = [f"definitions “{facts['definitions']}”, {layer}, {sizes}, {facts['n_tokens']:,} rare tokens{draws(long)}."]
    if len(reasons := long["reason"].dropna()):
        notes.append(f"nothing to compare. {reasons.iloc[0]}")
    name = published_name(of.hub_id) if of.hub_id else None
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


def draws(long: pd.DataFrame) -> str:
    """How many random groups of each kind."""
    words = []
    for null, name in NULLS.items():
        of_null = long[long["null"] == null]
        if len(of_null):
            matched = long["matched_on"].iloc[0] if null == "matched" else None
            alike = "" if matched is None else f" (alike in {COVARIATES.get(matched, matched)})"
            words.append(f"{int(of_null['n_draws'].max()):,} {name}{alike}")
    return f"; {', '.join(words)}" if words else ""


# --- as files


def as_csv(table: pd.DataFrame) -> str:
    """The long form."""
    return str(table.to_csv(index=False, lineterminator="\n"))


TEXT: dict[str, Callable[[PaperTable], str]] = {"md": as_markdown, "latex": as_latex}
SUFFIX = {"md": "md", "csv": "csv", "latex": "tex"}


def table_text(number: Number, runs: Sequence[Run], form: str, step: int | None = None) -> str:
    """One table: `md` and `latex` in the paper's layout, `csv` in long form."""
    if form == "csv":
        return as_csv(long_table(number, runs, step))
    return TEXT[form](paper_table(number, runs, step))


def tables_text(runs: Sequence[Run], form: str, step: int | None = None) -> str:
    """All four; as CSV, one long table."""
    if form == "csv":
        return as_csv(all_tables(runs, step))
    return "\n".join(table_text(number, runs, form, step) for number in NUMBERS)


def all_tables(runs: Sequence[Run], step: int | None = None) -> pd.DataFrame:
    """The long form of all four."""
    return pd.concat([long_table(number, runs, step) for number in NUMBERS], ignore_index=True)


def save_tables(runs: Sequence[Run], folder: Path, form: str = "csv", step: int | None = None) -> list[Path]:
    """Each table as a file of its own, such as FOLDER/table-1.csv."""
    paths = []
    for number in NUMBERS:
        path = folder / f"table-{number}.{SUFFIX[form]}"
        text = table_text(number, runs, form, step)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def write_tables(run: Run) -> list[Path]:
    """The last checkpoint's tables in long form, as RUN/tables/table-N.csv."""
    return save_tables([run], run.path / "tables")
