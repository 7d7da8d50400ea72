"""Plateau, power law and decay at the last checkpoint: what was found, how sure it is, and what it means."""

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import LEVEL, Phases
from rareneuron.pipeline.rankings import RANKINGS
from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table
from rareneuron.present.figures import FIGURES
from rareneuron.present.figures.verdict import checkpoint_name, phases_or_reason, verdict
from rareneuron.present.findings import Findings
from rareneuron.present.sections.curve import illustration
from rareneuron.present.wording import NOTHING, at_step, significant

SHOWN = ("phases", "deviation", "local-slope")
NAMES = {"all": "all neurons", "boosting": "boosting", "suppressing": "suppressing", "common": "common targets"}


def phases_section(found: Findings) -> Section:
    """Words, table, figures; where nothing could be told, why."""
    results = {ranking: phases_or_reason(found.run, found.steps[-1], ranking) for ranking in RANKINGS}
    blocks: list[Block] = []
    if isinstance(results["all"], Phases):
        blocks.append(Paragraph(text=meaning(results["all"], results["common"], checkpoint_name(found.steps[-1]))))
    told = {NAMES[ranking]: result for ranking, result in results.items() if isinstance(result, Phases)}
    if told:
        blocks.append(table(told))
    reasons: dict[str, list[str]] = {}
    for ranking, result in results.items():
        if isinstance(result, str):
            reasons.setdefault(result, []).append(NAMES[ranking])
    blocks += [Notice(text=f"Phases unknown: {', '.join(names)}. {reason}") for reason, names in reasons.items()]
    shown = [name for name in SHOWN if name != "deviation" or "all neurons" in told]
    blocks += [illustration(FIGURES[name], found) for name in shown]
    return Section(name="phases", title=f"Phases {at_step(found.steps[-1])}", blocks=tuple(blocks))


def meaning(found: Phases, common: Phases | str, when: str) -> str:
    """The outcome over all neurons, and beside it that at common targets."""
    end, start = found.plateau_end or 0, found.decay_start or 0
    above = f"The first {end:,} neurons, {percent(found.plateau_share)} of the layer, lie above the power law"
    follows = {
        "three phases": f"{above} fitted to the middle, and those from rank {start:,} on below it",
        "no decay": f"{above} fitted to the rest, and the last ones not clearly below it",
        "no plateau": "The middle of the curve is a power law, and the first neurons don't stand out above it",
        "no power law": "There is nothing that a plateau or a decay could be measured against",
    }
    words = f"{when}: {verdict(found)}. {follows[found.outcome]}."
    if isinstance(common, str):
        return words
    beside = ""
    if found.plateau_end is not None:
        beside = (
            ", so the plateau is that of rare ones"
            if common.plateau_end is None
            else ", so it isn't about rare ones alone"
        )
    return f"{words} At common targets: {verdict(common)}{beside}."


def table(told: dict[str, Phases]) -> Table:
    """One column a ranking: outcome, line, boundaries, and every p."""
    cells = [("outcome", [found.outcome for found in told.values()])]
    cells.append(("κ", [f"{found.kappa:.3f}{interval(found, 'kappa', '.3f')}" for found in told.values()]))
    cells.append(("R²", [f"{found.r_squared:.3f}" for found in told.values()]))
    cells.append(("plateau, to rank", [plateau(found) for found in told.values()]))
    cells.append(("decay, from rank", [decay(found) for found in told.values()]))
    cells += [
        (f"p, {null}", [significant(found.null_p[null], 2) for found in told.values()])
        for null in (*FAMILIES, "no plateau", "no decay")
    ]
    return Table(
        caption=(
            "κ and R² belong to the line fitted to the middle. Each p is the share of samples without the phase that "
            f"look at least as convincing, through the same search: a power law needs {LEVEL:g} or less against all "
            "three distributions, a plateau and a decay against their own null too. Intervals are 95 % over "
            "contexts; shares are of the neurons in the ranking."
        ),
        columns=(Column(head="", numeric=False), *(Column(head=name) for name in told)),
        rows=tuple((name, *row) for name, row in cells),
    )


def plateau(found: Phases) -> str:
    """Its last rank and its share."""
    if found.plateau_end is None:
        return NOTHING
    return f"{found.plateau_end:,}{interval(found, 'plateau_end', ',.0f')}, {percent(found.plateau_share)}"


def decay(found: Phases) -> str:
    """Its first rank and its share."""
    if found.decay_start is None:
        return NOTHING
    return f"{found.decay_start:,}{interval(found, 'decay_start', ',.0f')}, {percent(found.decay_share)}"


def interval(found: Phases, name: str, form: str) -> str:
    """In brackets, where contexts could be resampled."""
    if name not in found.intervals:
        return ""
    low, high = found.intervals[name]
    return f" ({low:{form}} … {high:{form}})"


def percent(share: float | None) -> str:
    """Of a phase that may not be there."""
    return NOTHING if share is None else f"{100 * share:.1f} %"
