"""Where the numbers come from: settings, software, weights, data, time."""

from collections.abc import Callable
from typing import Any

from rareneuron.present.blocks import Column, Paragraph, Section, Settings, Table
from rareneuron.present.findings import Findings
from rareneuron.present.wording import NOTHING, seconds, significant, step_name
from rareneuron.runs.records import ClosedFormRecord, ModelRecord


def provenance_section(found: Findings) -> Section:
    """Return everything needed to make the run again."""
    return Section(
        name="provenance",
        title="Provenance",
        blocks=(
            Settings(
                caption="Settings",
                items=tuple((name, value_text(value)) for name, value in found.config.identity().items()),
            ),
            Settings(
                caption="Software and machine",
                items=tuple((name, value_text(value)) for name, value in found.manifest.environment.items()),
            ),
            Settings(
                caption="Data",
                items=(
                    ("fingerprint", found.data.fingerprint),
                    ("counts", value_text(found.data.counts.source)),
                    ("counts of", found.data.counts.of),
                ),
            ),
            Settings(caption="Model", items=model_items(found)),
            weights_table(found),
            times_table(found),
            Paragraph(text=elapsed(found)),
        ),
    )


def value_text(value: Any) -> str:
    """Return a recorded value as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def model_items(found: Findings) -> tuple[tuple[str, str], ...]:
    """Return which tokenizer, which unembedding and which form of weights were studied."""
    return (
        ("ids of the tokenizer", by_step(found, lambda model: value_text(model.tokenizer))),
        ("unembedding", by_step(found, unembedding_text)),
        ("weights", by_step(found, lambda model: model.form or "as stored")),
    )


def by_step(found: Findings, text: Callable[[ModelRecord], str]) -> str:
    """Return what all checkpoints share; where they differ, each text with its steps."""
    steps: dict[str, list[str]] = {}
    for step, record in zip(found.steps, found.records, strict=True):
        steps.setdefault(text(record.model), []).append(step_name(step))
    if len(steps) == 1:
        return next(iter(steps))
    return "; ".join(f"{said} (step {', '.join(names)})" for said, names in steps.items())


def unembedding_text(model: ModelRecord) -> str:
    """Return whose weights made the logits."""
    if model.head is not None:
        return model.head
    if model.tied is None:
        return NOTHING
    return "the embedding, tied" if model.tied else "its own weights"


def weights_table(found: Findings) -> Table:
    """Return a table of each checkpoint's weights, and of the two probes that its adapter passed or failed."""
    rows = []
    for step, record in zip(found.steps, found.records, strict=True):
        model, probes = record.model, record.closed_form or ClosedFormRecord(ok=False, reason=NOTHING)
        rows.append(
            (
                step_name(step),
                value_text(model.model_type),
                value_text(model.dtype),
                "holds" if probes.ok else probes.reason,
                significant(probes.readout_gap, 2),
                significant(probes.ablation_gap, 2),
                value_text(f"{model.source} ({model.form})" if model.form else model.source),
                value_text(model.commit or model.revision),
                value_text(model.weights_sha256),
            )
        )
    return Table(
        caption=(
            "Weights of each checkpoint. Probes at loading: the gap between the model's logits and the readout's, and "
            "that between a removed neuron's effect on the residual stream and its row of W_out"
        ),
        columns=(
            Column(head="step", numeric=False),
            Column(head="architecture", numeric=False),
            Column(head="precision", numeric=False),
            Column(head="closed form", numeric=False),
            Column(head="readout gap"),
            Column(head="ablation gap"),
            Column(head="source", numeric=False),
            Column(head="commit or revision", numeric=False),
            Column(head="SHA-256 of the weights", numeric=False),
        ),
        rows=tuple(rows),
    )


def times_table(found: Findings) -> Table:
    """Return a table of where the time went."""
    rows = []
    for step, record in zip(found.steps, found.records, strict=True):
        timings, rates = record.timings, record.rates
        rows.append(
            (
                step_name(step),
                seconds(timings.get("capture")),
                seconds(timings.get("effects")),
                significant(rates.get("capture_tokens_per_second")),
                significant(rates.get("effects_microseconds_per_pair")),
                significant(rates.get("milliseconds_per_token")),
            )
        )
    return Table(
        caption="Time of each checkpoint",
        columns=(
            Column(head="step", numeric=False),
            Column(head="capture"),
            Column(head="effects"),
            Column(head="capture", unit="tokens per s"),
            Column(head="effects", unit="µs per token and neuron"),
            Column(head="both", unit="ms per analysed token"),
        ),
        rows=tuple(rows),
    )


def elapsed(found: Findings) -> str:
    """Say how long the study took, and in how many parts."""
    parts = found.manifest.timings
    if not parts:
        return "The study has no total time yet: it has not come to its end."
    total = seconds(sum(part.seconds for part in parts))
    return f"Total: {total}, in one go." if len(parts) == 1 else f"Total: {total}, in {len(parts)} parts."
