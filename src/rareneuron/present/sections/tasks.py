"""Shows what tasks say of the run's groups, where they were evaluated."""

from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table
from rareneuron.present.figures.tasks import FIGURE
from rareneuron.present.findings import Findings
from rareneuron.present.sections.curve import illustration
from rareneuron.present.tasks import HOW_TO_READ, evaluation_rows, what_could_be_found, what_was_scored
from rareneuron.runs.evaluations import SWAP, evaluation_names, read_evaluation


def tasks_section(found: Findings) -> Section | None:
    """Return every evaluation: what it could show, the figure, the table; nothing where none was made."""
    root = found.run.path
    names = sorted(evaluation_names(root), key=lambda name: (name != SWAP, name))
    blocks: list[Block] = []
    for name in names:
        evaluation = read_evaluation(root, name)
        record, table = evaluation.record, evaluation.table
        blocks.append(Paragraph(text=f"{what_was_scored(record, table)} {what_could_be_found(table)}"))
        blocks += [Notice(text=warning) for warning in record.warnings]
        if name == SWAP:
            blocks.append(illustration(FIGURE, found))
        blocks.append(
            Table(
                caption=HOW_TO_READ,
                columns=(
                    Column(head="items", numeric=False),
                    Column(head="number"),
                    Column(head="without", numeric=False),
                    Column(head="measure", numeric=False),
                    Column(head="clean"),
                    Column(head="change (95 %)"),
                    Column(head="p"),
                    Column(head="uniform"),
                    Column(head="p"),
                    Column(head="matched"),
                    Column(head="p"),
                ),
                rows=tuple(evaluation_rows(table)),
            )
        )
    return Section(name="tasks", title="Tasks without the groups", blocks=tuple(blocks)) if blocks else None
