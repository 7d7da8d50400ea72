"""How the neurons of a group act together at the last checkpoint: Tables 1–3 with their nulls, and clusters (Eq. 5)."""

import pandas as pd

from rareneuron.maths.significance import LEVEL
from rareneuron.present.blocks import Block, Column, Definitions, Notice, Paragraph, Section, Table
from rareneuron.present.findings import Findings
from rareneuron.present.published import Number
from rareneuron.present.readable import part_record, rows_or_reason
from rareneuron.present.tables.layouts import COVARIATES, HEADS, LAYOUTS, LEGEND, SHORT
from rareneuron.present.tables.paper_form import fixed, paper_table
from rareneuron.present.wording import at_step, significant

CLUSTERED = ["boosting", "suppressing", "random"]
LINKAGES = {"clusters_ward": "Ward", "clusters_average": "average"}
NULLS = {"uniform": "random groups", "matched": "matched groups"}
READING = (
    "Random groups say whether a group is unlike the layer, matched ones whether it is unlike neurons that are like it "
    "in {alike}: what isn't told from these may be that likeness alone. Above and below are at two-sided p of at most "
    "0.05, which isn't corrected for the number of comparisons. In the tables {legend}"
)


def geometry_section(found: Findings) -> Section:
    """Return words and tables; of a run without groups, the reason."""
    step = found.steps[-1]
    rows = rows_or_reason(found.run, "geometry", step)
    title = f"Co-activation {at_step(step)}"
    if isinstance(rows, str):
        return Section(name="geometry", title=title, blocks=(Notice(text=f"There is no geometry. {rows}"),))
    zscored = "d_eff_zscored" if "d_eff_zscored" in set(rows["statistic"]) else "d_eff"  # released ones all are
    blocks: list[Block] = [
        Definitions(
            items=(
                similarity(rows, "correlation"),
                ("effective dimensions, z-scored", sides(rows[rows["statistic"] == zscored], 1)),
                similarity(rows, "cosine"),
            )
        ),
        Paragraph(text=READING.format(alike=alike(found), legend=LEGEND)),
    ]
    for number in (1, 2, 3):
        blocks += table_blocks(number, found)
    blocks.append(clusters(rows))
    constant = part_record(found.run, "geometry", step)["n_constant"]
    if any(constant.values()):
        counts = ", ".join(f"{significant(n)} of {group}" for group, n in constant.items())
        blocks.append(Notice(text=f"Neurons that never vary are left out of correlations and clusters: {counts}."))
    return Section(name="geometry", title=title, blocks=tuple(blocks))


def alike(found: Findings) -> str:
    """Name the property in which matched groups are like the group."""
    covariate = found.run.groups(found.steps[-1]).matched_on
    return COVARIATES.get(covariate or "", f"{covariate}")


def similarity(rows: pd.DataFrame, name: str) -> tuple[str, str]:
    """Return the term and sentence of a similarity, or of its size where the model leaves its sign open."""
    of = rows[rows["statistic"] == name]
    return (name, sides(of, 3)) if len(of) else (f"|{name}|", sides(rows[rows["statistic"] == f"abs_{name}"], 3))


def sides(rows: pd.DataFrame, decimals: int) -> str:
    """Say each group's value, and on which side of its nulls it lies, if on any."""
    sentences = []
    for group, of_group in rows[rows["null"].isin(list(NULLS))].groupby("group", sort=False):
        value = of_group["value"].iloc[0]
        sides = []
        for _, row in of_group.iterrows():
            side = "not told from" if row["p"] > LEVEL else "above" if value > row["null_mean"] else "below"
            sides.append(f"{side} {NULLS[row['null']]}")
        sentences.append(f"{str(group).capitalize()} {fixed(value, decimals)}: {', '.join(sides)}.")
    return " ".join(sentences)


def table_blocks(number: Number, found: Findings) -> list[Block]:
    """Return one of the paper's tables of the last checkpoint, with notes on what it shows and rests on."""
    table = paper_table(number, [found.run])
    settings, *further = (note.partition(": ")[2] for note in table.notes)
    words = [": ".join(part for part in row[1 : table.n_words] if part) for row in table.rows]
    block = Table(
        caption=f"{table.title}, {at_step(found.steps[-1])}. {settings[0].upper()}{settings[1:]}",
        columns=(Column(head="", numeric=False), *(Column(head=head) for head in table.columns[table.n_words :])),
        rows=tuple((word, *row[table.n_words :]) for word, row in zip(words, table.rows, strict=True)),
    )
    return [
        block,
        Paragraph(text=LAYOUTS[number].about),
        *(Paragraph(text=f"{note[0].upper()}{note[1:]}") for note in further),
    ]


def clusters(rows: pd.DataFrame) -> Table:
    """Return a table of the numbers of clusters by linkage, with their nulls."""
    cells = []
    shown = [name for name in LINKAGES if name in set(rows["statistic"])]
    for name in shown:
        of_linkage = rows[rows["statistic"] == name]
        values = of_linkage.drop_duplicates("group").set_index("group")["value"]
        cells.append((f"{LINKAGES[name]}: this run", *(fixed(values[group], 1) for group in CLUSTERED)))
        for null in NULLS:
            p = of_linkage[of_linkage["null"] == null].set_index("group")["p"].reindex(CLUSTERED)
            if p.notna().any():
                cells.append((f"{LINKAGES[name]}: p, {SHORT[null]}", *(significant(x, 2) for x in p)))
    threshold = "0.5 of D = 1 − |ρ| (Eq. 5)" if len(shown) > 1 else "5, of Euclidean distances between rows of D"
    return Table(
        caption=(
            f"Clusters of a group's neurons, cut at {threshold}. Fewer means that more neurons act as one; as many as "
            f"neurons, that none do. Definitions “{rows['definitions'].iloc[0]}”."
        ),
        columns=(Column(head="linkage", numeric=False), *(Column(head=HEADS[group]) for group in CLUSTERED)),
        rows=tuple(cells),
    )
