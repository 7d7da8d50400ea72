"""The neurons with the largest effects at the last checkpoint, and the groups they head."""

import pandas as pd

from rareneuron.errors import NotMeasured
from rareneuron.maths.groups import NeuronGroups
from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table
from rareneuron.present.findings import Findings
from rareneuron.present.readable import part_record
from rareneuron.present.tables.layouts import COVARIATES
from rareneuron.present.wording import at_step, scale_of, significant, unit_of, with_error

SHOWN = 15
EFFECTS = (  # head, column, whether its sign means something
    ("mean Δ", "delta_loss", True),
    ("mean |Δ|", "abs_delta_loss", False),
    ("common: mean Δ", "common_delta_loss", True),
    ("common: mean |Δ|", "common_abs_delta_loss", False),
)


def neurons_section(found: Findings) -> Section:
    """Return a table for each sign, in the same units, and what the groups are."""
    table = found.last.sort_values("rank")
    signs = (
        ("boosting", table[table["delta_loss"] > 0], "mean Δ > 0: without the neuron the loss at rare tokens rises"),
        ("suppressing", table[table["delta_loss"] < 0], "mean Δ < 0: without the neuron it falls"),
    )
    blocks: list[Block] = groups(found)
    units = units_of(pd.concat([chosen.head(SHOWN) for _, chosen, _ in signs]))
    for name, chosen, meaning in signs:
        if chosen.empty:
            blocks.append(Paragraph(text=f"No neuron is {name}."))
        else:
            shown = chosen.head(SHOWN)
            caption = f"The {len(shown)} {name} neurons with the largest mean |Δ|, of {len(chosen):,} ({meaning})"
            blocks.append(neuron_table(caption, shown, units))
    return Section(name="neurons", title=f"Neurons {at_step(found.steps[-1])}", blocks=tuple(blocks))


def units_of(table: pd.DataFrame) -> tuple[int, int]:
    """Return the powers of ten in whose units changes in loss and divergences are given."""
    losses = [name for _, name, _ in EFFECTS if name in table]
    return scale_of(table[losses].abs().max()), scale_of(table["kl"])


def groups(found: Findings) -> list[Block]:
    """Say what the groups are, and why a checkpoint has none."""
    blocks: list[Block] = []
    for step in found.steps:
        try:
            chosen = found.run.groups(step)
        except NotMeasured as error:
            blocks.append(Notice(text=f"There are no groups {at_step(step)}. {error}"))
            continue
        if step == found.steps[-1]:
            blocks.append(
                Paragraph(text=groups_text(chosen, part_record(found.run, "groups", step).get("matching", {})))
            )
    return blocks


def groups_text(groups: NeuronGroups, matching: dict[str, dict[str, float]]) -> str:
    """Describe the groups that other analyses use, and say how well matched ones match."""
    per_group = {role: len(drawn) for role, drawn in groups.matched.items()}
    matched = (
        f" and, for each of the two, {max(per_group.values()):,} groups of neurons alike in "
        f"{COVARIATES.get(groups.matched_on or '', groups.matched_on)}, which may hold neurons of the group itself"
        if per_group
        else ""
    )
    sentences = [
        f"The groups are the {groups.size} boosting and the {groups.size} suppressing neurons with the largest mean "
        f"|Δ|; beside them stand {len(groups.random):,} random groups of the same size from the rest of the "
        f"layer{matched}.",
        *(match_text(role, found) for role, found in matching.items()),
        "The tables show where the first two begin.",
    ]
    return " ".join(sentences)


def match_text(role: str, found: dict[str, float]) -> str:
    """Say how alike a group and its matched groups are, and how much they share."""
    group, matched, uniform = (significant(found[name]) for name in ("group", "matched", "uniform"))
    return (
        f"The {role} group has a mean of {group}, its matched groups of {matched}, random ones of {uniform}; "
        f"{100 * found['shared']:.0f} % of a matched group are members, and all of them together hold "
        f"{found['distinct']:,.0f} neurons."
    )


def neuron_table(caption: str, table: pd.DataFrame, units: tuple[int, int]) -> Table:
    """Return a table of effects with standard errors, without columns that the engine didn't make."""
    effects = [effect for effect in EFFECTS if effect[1] in table]
    scale, kl_scale = units
    unit = unit_of(scale)
    columns = [Column(head="neuron", numeric=False), Column(head="rank")]
    cells = [table["neuron"].tolist(), [f"{rank:,}" for rank in table["rank"]]]
    for head, name, signed in effects:
        columns.append(Column(head=head, unit=unit))
        pairs = zip(table[name] / 10.0**scale, table[f"{name}_se"] / 10.0**scale, strict=True)
        cells.append([with_error(mean, error, sign=signed) for mean, error in pairs])
    if "direct_delta_loss" in table:
        columns.append(Column(head="direct Δ", unit=unit))
        cells.append([significant(value / 10.0**scale, sign=True) for value in table["direct_delta_loss"]])
    columns.append(Column(head="KL", unit=unit_of(kl_scale)))
    cells.append([significant(value / 10.0**kl_scale) for value in table["kl"]])
    return Table(caption=caption, columns=tuple(columns), rows=tuple(zip(*cells, strict=True)))
