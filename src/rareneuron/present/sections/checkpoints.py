"""One row a checkpoint: losses, sizes of effects, errors of the audit, time."""

import pandas as pd

from rareneuron.present.blocks import Column, Paragraph, Section, Table
from rareneuron.present.engines import engine_words
from rareneuron.present.findings import Findings
from rareneuron.present.wording import NOTHING, scale_of, seconds, significant, step_name, unit_of
from rareneuron.runs.records import StepRecord


def checkpoints_section(found: Findings) -> Section:
    """Return the series at a glance."""
    scale = scale_of(table["abs_delta_loss"].max() for table in found.effects)
    unit = unit_of(scale)
    columns = (
        Column(head="step", numeric=False),
        Column(head="loss, rare", unit="nats"),
        Column(head="loss, common", unit="nats"),
        Column(head="median |Δ|", unit=unit),
        Column(head="largest |Δ|", unit=unit),
        Column(head="neuron"),
        Column(head="audit, max", unit="nats"),
        Column(head="audit, rms", unit="nats"),
        Column(head="time"),
    )
    rows = tuple(
        checkpoint_row(step, record, table, 10.0**scale)
        for step, record, table in zip(found.steps, found.records, found.effects, strict=True)
    )
    table = Table(
        caption=(
            "Mean loss at the analysed targets, and mean |Δ| at the rare ones: the median over neurons and the largest."
        ),
        columns=columns,
        rows=rows,
    )
    return Section(
        name="checkpoints", title="Checkpoints", blocks=(table, Paragraph(text=audit_text(found.records[-1])))
    )


def checkpoint_row(step: int | None, record: StepRecord, table: pd.DataFrame, scale: float) -> tuple[str, ...]:
    """Return the cells of one checkpoint."""
    top = table.sort_values("rank").iloc[0]
    audit = record.audit
    return (
        step_name(step),
        loss(record.loss_rare),
        loss(record.loss_common),
        significant(table["abs_delta_loss"].median() / scale),
        significant(top["abs_delta_loss"] / scale),
        top["neuron"],
        NOTHING if audit is None else significant(audit.max_error, 2),
        NOTHING if audit is None else significant(audit.rms_error, 2),
        seconds(sum(record.timings.values())),
    )


def loss(value: float | None) -> str:
    """Return a mean loss as text; without targets of that kind there is none."""
    return NOTHING if value is None else f"{value:.3f}"


def audit_text(record: StepRecord) -> str:
    """Say what the audit's columns mean for the engine that made the numbers."""
    audit = record.audit
    if audit is None:
        return f"Audit: none. {engine_words(record.engine).without_audit}"
    words = engine_words(record.engine)
    return (
        f"Audit: {words.audit.format(n_pairs=f'{audit.n_pairs:,}')} Δ itself has a root mean square of "
        f"{significant(audit.rms_delta_loss, 2)} nats over the pairs of the last checkpoint. {words.audit_is_about} "
        "the sampling error of a mean is its standard error."
    )
