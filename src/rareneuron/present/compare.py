"""Several runs side by side: numbers in a row each, verdicts in a grid, curves in the same axes, rankings correlated.

Nothing is computed anew but the agreement of rankings, and that only where neurons are the same: same series or
the same weights, same layer. What differs between the runs' settings and text stands beside them, since it is the
usual reason why their numbers differ. Oracle: tests/present/test_compare.py, the runs' own tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.errors import InvalidConfig
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import participation_ratio
from rareneuron.maths.reliability import overlap, rank_correlation
from rareneuron.present.blocks import Block, Column, Illustration, Paragraph, Section, Table
from rareneuron.present.figure import Figure, ready_sheet
from rareneuron.present.figures import FIGURES, rank_curves
from rareneuron.present.readable import claims_or_reason, phases_or_reason
from rareneuron.present.sections.curve import on_page
from rareneuron.present.subject import Subject, subjects_with_labels
from rareneuron.present.wording import NOTHING, significant, without_hidden
from rareneuron.runs.files import replacing
from rareneuron.runs.records import Manifest
from rareneuron.runs.run import Run
from rareneuron.shown import Shown, html_table

IDENTITY = ("model", "revision", "steps")  # what a row says already
TEXT_FACTS = ("corpus", "fingerprint", "n_contexts")
NO_VERDICTS = "None of these runs holds verdicts of this checkpoint."
NEURONS = ("run", "other", "n_neurons", "spearman", "boosting_overlap", "suppressing_overlap")


@dataclass(frozen=True, kw_only=True)
class SideBySide(Shown):
    """Runs beside one another, as tables; rows and columns are named as in the runs' own tables."""

    runs: pd.DataFrame  # a row a run
    settings: pd.DataFrame  # a row a setting that differs, a column a run
    verdicts: pd.DataFrame  # a row a claim, a column a run; missing where a run lacks the claim
    agreement: pd.DataFrame  # a row a pair of runs with the same neurons

    def _repr_html_(self) -> str:
        turned = self.runs.drop(columns="reason").set_index("run").T.reset_index(names="")
        tables = {"Runs": turned, "Settings that differ": self.settings, "Verdicts": self.verdicts}
        tables |= {"Agreement": self.agreement} if len(self.agreement) else {}
        return "".join(
            html_table(name, list(table.columns), list(table.astype(object).itertuples(index=False, name=None)))
            for name, table in tables.items()
        )


def compare(runs: Sequence[Run], step: int | None = None) -> SideBySide:
    """Read the same checkpoint, by default each run's last, of two or more runs."""
    if len(runs) < 2:
        raise InvalidConfig(
            f"A comparison needs two run folders or more, and {len(runs)} was given. Name another run beside it."
        )
    named = subjects_with_labels(runs, step)
    return SideBySide(
        runs=pd.DataFrame([numbers(label, of) for label, of in named]),
        settings=differing_settings(named),
        verdicts=verdict_grid(named),
        agreement=pd.DataFrame(
            [
                agreement(*first, *second)
                for first, second in combinations(named, 2)
                if same_neurons(first[1], second[1])
            ],
            columns=list(NEURONS),
        ),
    )


def numbers(label: str, of: Subject) -> dict[str, Any]:
    """Return a run's row of numbers."""
    table, facts = of.run.effects(of.step), of.facts
    found = phases_or_reason(of.run, of.step)
    sizes = table["abs_delta_loss"]
    audit = of.record.audit
    return {
        "run": label,
        **{name: facts[name] for name in ("model", "n_params", "step", "layer", "definitions")},
        "n_neurons": len(table),
        "n_rare": facts["n_tokens"],
        "loss_rare": of.record.loss_rare,
        "loss_common": of.record.loss_common,
        "top_neuron": table["neuron"].iloc[int(sizes.argmax())],
        "abs_delta_loss_max": float(sizes.max()),
        "abs_delta_loss_median": float(sizes.median()),
        "common_abs_delta_loss_median": float(table["common_abs_delta_loss"].median())
        if "common_abs_delta_loss" in table
        else None,
        "n_eff": participation_ratio(sizes.to_numpy()),
        "kappa": found.kappa if isinstance(found, Phases) else None,
        "outcome": found.outcome if isinstance(found, Phases) else "unavailable",
        "n_boosting": int((table["delta_loss"] > 0).sum()),
        "n_suppressing": int((table["delta_loss"] < 0).sum()),
        "audit_rms_error": None if audit is None else audit.rms_error,
        "reason": found if isinstance(found, str) else "",
    }


def differing_settings(named: Sequence[tuple[str, Subject]]) -> pd.DataFrame:
    """Return the settings, texts and versions in which the runs differ, one row each."""
    told = {label: settings_of(of.run.manifest) for label, of in named}
    names = list(dict.fromkeys(name for settings in told.values() for name in settings))
    rows = [{"setting": name} | {label: settings.get(name) for label, settings in told.items()} for name in names]
    return pd.DataFrame(
        [row for row in rows if len({str(value) for name, value in row.items() if name != "setting"}) > 1],
        columns=["setting", *told],
    )


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """Return a study's settings, its text and the version that made it."""
    config = {name: value for name, value in manifest.config.identity().items() if name not in IDENTITY}
    data = {name: getattr(manifest.data, name) for name in TEXT_FACTS}
    return config | data | {"rareneuron": manifest.version}


def verdict_grid(named: Sequence[tuple[str, Subject]]) -> pd.DataFrame:
    """Return a row for each claim and a column for each run; runs keep the claims of their last checkpoint alone."""
    columns: dict[str, dict[str, str]] = {}
    titles: dict[str, str] = {}
    for label, of in named:
        claims = claims_or_reason(of.run) if of.step == of.run.steps[-1] else ""
        columns[label] = {} if isinstance(claims, str) else {claim.name: claim.verdict for claim in claims}
        titles |= {} if isinstance(claims, str) else {claim.name: claim.title for claim in claims}
    rows = [
        {"name": name, "claim": title} | {label: found.get(name) for label, found in columns.items()}
        for name, title in titles.items()
    ]
    return pd.DataFrame(rows, columns=["name", "claim", *columns])


def same_neurons(first: Subject, second: Subject) -> bool:
    """Return whether index i means the same neuron in both: same layer of the same series, or of the same weights."""

    def series(of: Subject) -> tuple[Any, ...]:
        return of.run.manifest.config.model, of.record.model.model_type, of.record.model.n_params

    same_layer = first.facts["layer"] == second.facts["layer"]
    same_width = len(first.run.effects(first.step)) == len(second.run.effects(second.step))
    weights = [of.record.model.weights_sha256 for of in (first, second)]
    return same_layer and same_width and (series(first) == series(second) or weights[0] == weights[1])


def agreement(label: str, of: Subject, other_label: str, other: Subject) -> dict[str, Any]:
    """Return Spearman's correlation of mean |Δ| over neurons, and the Jaccard overlap of the groups."""
    first, second = (subject.run.effects(subject.step).sort_values("index") for subject in (of, other))
    sizes, others = first["abs_delta_loss"].to_numpy(), second["abs_delta_loss"].to_numpy()
    rho = rank_correlation(sizes, others)
    overlaps = {
        f"{role}_overlap": overlap(*(np.flatnonzero(table["role"] == role) for table in (first, second)))
        if all((table["role"] == role).any() for table in (first, second))
        else None
        for role in ("boosting", "suppressing")
    }
    return {
        "run": label,
        "other": other_label,
        "n_neurons": len(first),
        "spearman": None if np.isnan(rho) else rho,
    } | overlaps


def comparison_text(found: SideBySide) -> str:
    """Return a column for each run, then the verdicts, what differs, and the agreement."""
    runs = found.runs.drop(columns=["reason", "model"])
    letters = [chr(ord("A") + i) if i < 26 else f"#{i + 1}" for i in range(len(runs))]
    heads = dict(zip(runs["run"], letters, strict=True))
    numbers = pd.DataFrame(
        {"": runs.columns[1:]} | {heads[row["run"]]: [*map(cell_text, row[1:])] for _, row in runs.iterrows()}
    )

    def as_text(table: pd.DataFrame) -> str:
        return str(table.rename(columns=heads).map(cell_text).to_string(index=False))

    parts = [
        "\n".join(f"{letter}  {run}" for run, letter in heads.items()),
        as_text(numbers),
        f"Verdicts\n{as_text(found.verdicts.drop(columns='claim'))}" if len(found.verdicts) else NO_VERDICTS,
        f"What differs\n{as_text(found.settings)}"
        if len(found.settings)
        else "Settings, text and version are the same.",
    ]
    if len(found.agreement):
        named = found.agreement.assign(**{name: found.agreement[name].map(heads) for name in ("run", "other")})
        parts.append(f"The same neurons: rank correlation of mean |Δ|, overlap of groups (Jaccard)\n{as_text(named)}")
    return "\n\n".join([*parts, *(paragraph.text for paragraph in reasons(found))])


# --- as a page


def comparison_sections(found: SideBySide, runs: Sequence[Run], step: int | None = None) -> list[Section]:
    """Return the page's sections: numbers, verdicts, curves, agreement, settings."""
    sections = [
        Section(
            name="runs",
            title="Runs",
            blocks=(by_columns(found.runs.drop(columns=["reason", "model"]), "One column a run."), *reasons(found)),
        ),
        Section(
            name="verdicts",
            title="Verdicts",
            blocks=(table_of(found.verdicts.drop(columns="name"), "One row a claim, one column a run."),)
            if len(found.verdicts)
            else (Paragraph(text=NO_VERDICTS),),
        ),
        Section(
            name="curves",
            title="Curves",
            blocks=(
                of_frame(FIGURES["rank-curves"], rank_curves.frame(*runs, step=step)),
                of_frame(FIGURES["slope-distributions"], FIGURES["slope-distributions"].frame(*runs)),
            ),
        ),
    ]
    if len(found.agreement):
        about = (
            "Runs of the same neurons: Spearman's correlation of mean |Δ|, and the share of either group's members "
            "that are in both (Jaccard)."
        )
        sections.append(
            Section(name="agreement", title="The same neurons?", blocks=(table_of(found.agreement, about),))
        )
    differ: Block = (
        table_of(found.settings, "Settings, text and version in which the runs differ.")
        if len(found.settings)
        else Paragraph(text="The runs have the same settings, text and version.")
    )
    return [*sections, Section(name="settings", title="What differs", blocks=(differ,))]


def of_frame(figure: Figure, frame: pd.DataFrame) -> Illustration:
    """Return a figure of several runs, for the page."""
    return on_page(figure, ready_sheet(figure, frame))


def reasons(found: SideBySide) -> tuple[Paragraph, ...]:
    """Say which runs have no phases, and why."""
    lacking = found.runs[found.runs["reason"] != ""]
    return tuple(Paragraph(text=f"{row.run}: no phases. {row.reason}") for row in lacking.itertuples())


def table_of(table: pd.DataFrame, caption: str) -> Table:
    """Return a DataFrame as a block, numbers to four digits; heads that are names of runs stay as they are."""
    columns = tuple(
        Column(
            head=str(name).replace("_", " ") if name in NEURONS else without_hidden(str(name)),
            numeric=pd.api.types.is_numeric_dtype(table[name]),
        )
        for name in table
    )
    rows = tuple(
        tuple(cell_text(value) for value in row) for row in table.astype(object).itertuples(index=False, name=None)
    )
    return Table(caption=caption, columns=columns, rows=rows, wrapped=True)


def by_columns(table: pd.DataFrame, caption: str) -> Table:
    """Return a DataFrame as a block with a column for each row, so that runs are read from left to right."""
    names, *others = (tuple(cell_text(value) for value in table[name]) for name in table)
    heads = [str(name).replace("_", " ") for name in table.columns[1:]]
    return Table(
        caption=caption,
        columns=(Column(head="", numeric=False), *(Column(head=name) for name in names)),
        rows=tuple((head, *cells) for head, cells in zip(heads, others, strict=True)),
        wrapped=True,
    )


def cell_text(value: Any) -> str:
    """Return a value as the text of a cell."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return NOTHING
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return without_hidden(str(value))


def write_comparison(runs: Sequence[Run], path: Path, step: int | None = None, found: SideBySide | None = None) -> Path:
    """Write the page to `path`, whole or not at all; `found` is what `compare` gave of the same runs and step."""
    found = found or compare(runs, step)
    from rareneuron.present.report import asset, page_environment, rules_of

    sections = comparison_sections(found, runs, step)
    page = (
        page_environment()
        .get_template("compare.html.j2")
        .render(
            title=" · ".join(found.runs["run"]),
            version=runs[0].manifest.version,
            sections=sections,
            style=asset("report.css"),
            dark_rules=rules_of(sections),
        )
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
