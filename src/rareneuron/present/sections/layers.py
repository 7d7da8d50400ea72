"""Shows the units of every layer at the last checkpoint: a map, layers side by side, the largest, their evidence."""

import pandas as pd

from rareneuron.conclude.layers import layer_profile, writing_heads
from rareneuron.errors import NotMeasured
from rareneuron.maths.specificity import ROLES
from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table
from rareneuron.present.figures.layers import FIGURE
from rareneuron.present.findings import Findings
from rareneuron.present.sections.curve import illustration
from rareneuron.present.wording import NOTHING, at_step, scale_of, significant, unit_of, with_error
from rareneuron.runs.layers import CERTAINTIES, Layers, read_layers
from rareneuron.runs.records import LayersRecord

LARGEST = 20  # units in the table
HEADS = 10  # of earlier layers
KINDS = {"neuron": "neurons", "head": "heads"}


def layers_section(found: Findings) -> Section | None:
    """Return the map and its tables; nothing for a study of one layer."""
    step = found.steps[-1]
    try:
        layers = read_layers(found.run.folder(step))
    except NotMeasured:
        return None
    record = layers.record
    kinds = [kind for kind in KINDS if (layers.table["kind"] == kind).any()]
    blocks: list[Block] = [Paragraph(text=evidence_text(layers))]
    if "neuron" in kinds:
        blocks.append(illustration(FIGURE, found))
    for kind in kinds:
        blocks.append(profile_table(layer_profile(found.run, step, KINDS[kind]), kind))
        blocks.append(largest_table(layers.table, kind))
    blocks += [*heads_table(found), *notices(record, layers.table)]
    return Section(name="layers", title=f"Every layer {at_step(step)}", blocks=tuple(blocks))


def evidence_text(layers: Layers) -> str:
    """Say how the numbers were made, and what they are."""
    record, counts = layers.record, layers.table["certainty"].value_counts()
    told = "; ".join(f"{counts[name]:,} {name} ({CERTAINTIES[name]})" for name in CERTAINTIES if name in counts)
    return (
        f"Units of layers {named_layers(record.layers)}, each replaced by its mean over all positions. "
        f"{told[0].upper()}{told[1:]}. {record.n_patched:,} of {record.n_cells:,} cells, one unit in one context, were "
        f"patched. {record.n_flagged:,} units move the residual stream by more than a fifth of its length; those of "
        "them that may be among the largest were patched in every context. KL of units that aren't exact is "
        f"estimated only (screen). {check_text(record)}"
    )


def check_text(record: LayersRecord) -> str:
    """Say how estimates compare with the closed form at the last layer."""
    if record.check is None:
        return "The last layer has no closed form here that could check the estimates."
    return (
        f"The closed form of the last layer checks the estimates at {record.check.n_tokens} tokens: Spearman "
        f"{record.check.spearman:.4f} of mean |Δ|, correlation {record.check.pearson:.4f} of mean Δ, and the largest "
        f"hundred are off by {100 * record.check.median_error:.1f} % (median)."
    )


def named_layers(layers: tuple[int, ...]) -> str:
    """Name layers, as a range where none misses."""
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))


def profile_table(profile: pd.DataFrame, kind: str) -> Table:
    """Return layers side by side."""
    scale = scale_of(profile["largest"])
    unit = unit_of(scale)
    rows = tuple(
        (
            f"{int(row['layer'])}",
            f"{int(row['units']):,}",
            significant(row["median"] / 10**scale),
            significant(row["largest"] / 10**scale),
            with_interval(row, "share", percent=True),
            with_interval(row, "common_share", percent=True),
            with_interval(row, "rare_over_common"),
            f"{100 * row['here_share']:.0f} %",
        )
        for _, row in profile.iterrows()
    )
    return Table(
        caption=(
            f"Layers side by side, {KINDS[kind]}. Share: of Σ |Δ| over all {KINDS[kind]} here, with 95 % over "
            "contexts. Rare over common: |Δ| for the distance moved, at rare targets over common ones. At the token: "
            "the part of an effect that passes through no other position (median)."
        ),
        columns=(
            Column(head="layer"),
            Column(head=KINDS[kind]),
            Column(head="median |Δ|", unit=unit),
            Column(head="largest |Δ|", unit=unit),
            Column(head="share, rare"),
            Column(head="share, common"),
            Column(head="rare over common"),
            Column(head="at the token"),
        ),
        rows=rows,
    )


def with_interval(row: "pd.Series", name: str, *, percent: bool = False) -> str:
    """Return a number with its interval, where there is one."""
    if name not in row or pd.isna(row[name]):
        return NOTHING
    form = "{:.1%}" if percent else "{:.2f}"
    value, low, high = (form.format(row[n]).replace("%", " %") for n in (name, f"{name}_low", f"{name}_high"))
    return value if pd.isna(row[f"{name}_low"]) else f"{value} ({low} … {high})"


def largest_table(table: pd.DataFrame, kind: str) -> Table:
    """Return the units with the largest mean |Δ| of all layers."""
    shown = table[table["kind"] == kind].nsmallest(LARGEST, "rank")
    scale = scale_of(shown["abs_delta_loss"])
    has_other = "abs_delta_loss_later" in shown and bool(shown["abs_delta_loss_later"].notna().any())
    other = (
        " Other mean: |Δ| with a mean that leaves out a context's first two positions, where both means differ: the "
        "first is then an artefact of an attention sink."
    )
    rows = tuple(
        (
            str(row["unit"]),
            with_error(row["abs_delta_loss"] / 10**scale, row["abs_delta_loss_se"] / 10**scale),
            half_width(row, scale),
            significant(row["delta_loss"] / 10**scale),
            "" if "common_abs_delta_loss" not in row else significant(row["common_abs_delta_loss"] / 10**scale),
            str(row["certainty"]) + (", undecided" if row["undecided"] else ""),
            *([significant(row["abs_delta_loss_later"] / 10**scale)] if has_other else []),
        )
        for _, row in shown.iterrows()
    )
    return Table(
        caption=(
            f"The {len(shown)} {KINDS[kind]} with the largest mean |Δ| of all layers. ±: standard error over contexts. "
            "Approximation: half the 95 % interval of what verification left open at these tokens. Undecided: it may "
            f"or may not be among the largest.{other if has_other else ''}"
        ),
        columns=(
            Column(head="unit", numeric=False),
            Column(head="mean |Δ|", unit=unit_of(scale)),
            Column(head="approximation"),
            Column(head="mean Δ"),
            Column(head="|Δ|, common"),
            Column(head="", numeric=False),
            *([Column(head="other mean")] if has_other else []),
        ),
        rows=rows,
    )


def heads_table(found: Findings) -> list[Block]:
    """Return the heads of earlier layers that write most to the studied neurons, where the study looked."""
    try:
        heads = writing_heads(found.run, found.steps[-1], HEADS)
    except NotMeasured:
        return []
    rows = tuple(
        (
            str(row["unit"]),
            *(significant(row[f"{role}_{of}"], 2) for role in ROLES for of in ("rare", "common", "rare_over_common")),
            "yes" if row["patched"] else "",
        )
        for _, row in heads.iterrows()
    )
    caption = (
        f"The {len(rows)} attention heads of earlier layers that write most to the groups: how far their absence moves "
        "activations, in standard deviations (root mean square, estimated), at rare and at common targets. Measured: "
        "replaced, too, and judged by the claim `no-routing`."
    )
    return [
        Table(
            caption=caption,
            columns=(
                Column(head="head", numeric=False),
                *(Column(head=f"{role}, {of}") for role in ROLES for of in ("rare", "common", "rare over common")),
                Column(head="measured", numeric=False),
            ),
            rows=rows,
        )
    ]


def half_width(row: "pd.Series", scale: int) -> str:
    """Return the half-width of the interval of a mean; of a screen it isn't known."""
    width = row["abs_delta_loss_half_width"]
    return "not known" if pd.isna(width) else "0" if width == 0 else significant(width / 10**scale, 2)


def notices(record: LayersRecord, table: pd.DataFrame) -> list[Block]:
    """Warn of a screen, and name the undecided."""
    out: list[Block] = []
    if (table["certainty"] == "screen").any():
        out.append(
            Notice(
                text="Numbers marked screen are estimates that nothing verified: their order may be wrong. Run the "
                "study with --verify above 0."
            )
        )
    if record.undecided:
        out.append(
            Paragraph(
                text=f"Undecided whether among the {record.rank} largest neurons: {', '.join(record.undecided[:30])}"
                + (f" and {len(record.undecided) - 30} more" if len(record.undecided) > 30 else "")
                + ". More cells (--verify) or, where the standard error is larger, more contexts would tell."
            )
        )
    return out
