"""What the groups' weights look like: Table 4 with its nulls, Fig. 2b, the spectra, and how far other rules agree."""

import pandas as pd

from rareneuron.maths.significance import LEVEL
from rareneuron.present.blocks import Block, Column, Definitions, Notice, Paragraph, Section, Table
from rareneuron.present.figures import FIGURES
from rareneuron.present.findings import Findings
from rareneuron.present.readable import rows_or_reason
from rareneuron.present.sections.curve import illustration
from rareneuron.present.sections.geometry import READING, alike, sides, table_blocks
from rareneuron.present.tables.layouts import HEADS, LEGEND, NULLS
from rareneuron.present.wording import at_step, significant

OTHERS = {  # statistics beside α_Hill of Table 4, as docs/spectrum.md defines them
    "alpha_hill_fraction": "α_Hill, k a tenth",
    "alpha_hill_half": "α_Hill, k a half",
    "stable_rank": "stable rank",
    "spectral_entropy": "spectral entropy",
    "pl_alpha_hat": "PL α̂",
    "largest_eigenvalue": "largest eigenvalue",
}
ROLES = ("boosting", "suppressing")


def spectrum_section(found: Findings) -> Section:
    """Return words, tables and figures; of a run without groups, the reason."""
    step = found.steps[-1]
    rows = rows_or_reason(found.run, "spectrum", step)
    title = f"Weight spectrum {at_step(step)}"
    if isinstance(rows, str):
        return Section(name="spectrum", title=title, blocks=(Notice(text=f"There is no spectrum. {rows}"),))
    alpha = rows[rows["statistic"] == "alpha_hill"]
    blocks: list[Block] = [
        Definitions(
            items=tuple((f"α_Hill, {matrix}", sides(part, 2)) for matrix, part in alpha.groupby("matrix", sort=False))
        ),
        Paragraph(text=READING.format(alike=alike(found), legend=LEGEND)),
        *table_blocks(4, found),
        illustration(FIGURES["alpha-hill"], found),
        illustration(FIGURES["spectrum"], found),
        others(rows),
    ]
    return Section(name="spectrum", title=title, blocks=tuple(blocks))


def others(rows: pd.DataFrame) -> Table:
    """Return a table of other rules for k and other measures of shape, with the larger p of both kinds of groups."""
    cells = []
    for (matrix, statistic), part in rows.groupby(["matrix", "statistic"], sort=False):
        if statistic not in OTHERS:
            continue
        values = part.drop_duplicates("group").set_index("group")["value"]
        p = part[part["null"].isin(["uniform", "matched"])].groupby("group")["p"].max().reindex(list(ROLES))
        shown = [significant(values[group]) for group in (*ROLES, "random")]
        cells.append((f"{matrix}: {OTHERS[str(statistic)]}", *shown, *(significant(x, 2) for x in p)))
    return Table(
        caption=(
            f"Other rules for k in Eq. 6, and other measures of a spectrum's shape. Definitions "
            f"“{rows['definitions'].iloc[0]}”. p: the larger of those against {NULLS['uniform']} and "
            f"{NULLS['matched']}, two-sided; at most {LEVEL:g} says that a group is unlike both. Where rules disagree, "
            "the difference is one of the rule."
        ),
        columns=(
            Column(head="matrix: measure", numeric=False),
            *(Column(head=HEADS[group]) for group in (*ROLES, "random")),
            *(Column(head=f"p, {HEADS[group]}") for group in ROLES),
        ),
        rows=tuple(cells),
    )
