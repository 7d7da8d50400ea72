"""Plateau, power law and decay at the last checkpoint: what was found, how sure it is, and what it means."""

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import Phases
from rareneuron.maths.released import FIT, LATE_FIT, ReleasedPhases
from rareneuron.maths.significance import LEVEL, few_contexts
from rareneuron.present.blocks import Block, Column, Notice, Paragraph, Section, Table
from rareneuron.present.figures import FIGURES
from rareneuron.present.findings import Findings
from rareneuron.present.readable import found_or_reason, verdict
from rareneuron.present.sections.curve import illustration
from rareneuron.present.summary import nulls_of_step_zero
from rareneuron.present.wording import NOTHING, at_step, checkpoint_name, significant
from rareneuron.runs.rankings import RANKINGS, SIGNS, Found

SHOWN = ("phases", "deviation", "local-slope")
NAMES = {"all": "all neurons", "boosting": "boosting", "suppressing": "suppressing", "common": "common targets"}
RELEASED = (
    "Definitions: “released”, what the authors' released scripts compute, so that their numbers can be set beside "
    "others. Neurons that boost and that suppress are ranked apart, by |mean Δ|. The phases' boundaries are constants "
    "(log rank 3.5 and 5.5), so every curve has three phases; nothing here was tested. Which tokens are analysed "
    "stays this package's choice. The figure shows the slope of Eq. 7, which isn't the scripts'."
)


def phases_section(found: Findings) -> Section:
    """Return words, tables and figures; of a ranking without phases, the reason."""
    definitions = found.run.definitions
    rankings = RANKINGS if definitions == "paper" else SIGNS
    results = {ranking: found_or_reason(found.run, found.steps[-1], ranking, definitions) for ranking in rankings}
    told = {NAMES[ranking]: result for ranking, result in results.items() if isinstance(result, Phases)}
    untested = {NAMES[ranking]: result for ranking, result in results.items() if isinstance(result, ReleasedPhases)}
    few = few_contexts(found.data.n_contexts)
    blocks: list[Block] = [] if few is None else [Notice(text=f"{few}.")]
    if definitions == "released":
        blocks.append(Paragraph(text=RELEASED))
    elif "all neurons" in told:
        blocks.append(Paragraph(text=meaning(told["all neurons"], results["common"], checkpoint_name(found.steps[-1]))))
    if told:
        blocks.append(table(told))
    if untested:
        blocks.append(released_table(untested))
    blocks += [Paragraph(text=null) for null in nulls_of_step_zero(found.run)]
    reasons: dict[str, list[str]] = {}
    for ranking, result in results.items():
        if isinstance(result, str):
            reasons.setdefault(result, []).append(NAMES[ranking])
    blocks += [Notice(text=f"Phases unknown: {', '.join(names)}. {reason}") for reason, names in reasons.items()]
    if definitions == "released":
        shown = ["local-slope"]
    else:
        shown = [name for name in SHOWN if name != "deviation" or "all neurons" in told]
    blocks += [illustration(FIGURES[name], found) for name in shown]
    return Section(name="phases", title=f"Phases {at_step(found.steps[-1])}", blocks=tuple(blocks))


def meaning(found: Phases, common: Found | str, when: str) -> str:
    """Say what the outcome over all neurons means, beside that at common targets."""
    end, start = found.plateau_end or 0, found.decay_start or 0
    above = f"The first {end:,} neurons, {percent(found.plateau_share)} of the layer, lie above the power law"
    follows = {
        "three phases": f"{above} fitted to the middle, and those from rank {start:,} on below it",
        "no decay": f"{above} fitted to the rest, and the last ones not clearly below it",
        "no plateau": "The middle of the curve is a power law, and the first neurons don't stand out above it",
        "no power law": "There is nothing that a plateau or a decay could be measured against",
    }
    words = f"{when}: {verdict(found)}. {follows[found.outcome]}."
    if not isinstance(common, Phases):
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
    """Return a table with a column for each ranking: outcome, line, boundaries, and every p."""
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
            "Definitions: “paper”. κ and R² belong to the line fitted to the middle. Each p is the share of samples "
            "without the phase that look at least as convincing, through the same search: a power law needs "
            f"{LEVEL:g} or less against all three distributions, a plateau and a decay against their own null too. "
            "Intervals are 95 % over contexts; shares are of the neurons in the ranking."
        ),
        columns=(Column(head="", numeric=False), *(Column(head=name) for name in told)),
        rows=tuple((name, *row) for name, row in cells),
    )


def released_table(untested: dict[str, ReleasedPhases]) -> Table:
    """Return a table with a column for each sign: both lines, and the constants."""
    cells = {
        f"κ, log rank {FIT[0]} … {FIT[1]}": [f"{found.kappa:.3f}" for found in untested.values()],
        "β": [f"{found.beta:.3f}" for found in untested.values()],
        f"κ, log rank {LATE_FIT[0]} … {LATE_FIT[1]}": [f"{found.kappa_late:.3f}" for found in untested.values()],
        "β, of that": [f"{found.beta_late:.3f}" for found in untested.values()],
        "plateau, to rank (a constant)": [f"{found.plateau_end:,}" for found in untested.values()],
        "decay, from rank (a constant)": [f"{found.decay_start:,}" for found in untested.values()],
        "slope truncated from rank": [f"{found.truncated_from:,}" for found in untested.values()],
        "neurons": [f"{found.n_neurons:,}" for found in untested.values()],
    }
    return Table(
        caption=(
            "Definitions: “released”. Lines by least squares over fixed ranges. From n/6 on, n the neurons of a sign, "
            "the fit behind the slope is cut off, which makes a kink in any curve."
        ),
        columns=(Column(head="", numeric=False), *(Column(head=name) for name in untested)),
        rows=tuple((name, *row) for name, row in cells.items()),
    )


def plateau(found: Phases) -> str:
    """Return the plateau's last rank and its share."""
    if found.plateau_end is None:
        return NOTHING
    return f"{found.plateau_end:,}{interval(found, 'plateau_end', ',.0f')}, {percent(found.plateau_share)}"


def decay(found: Phases) -> str:
    """Return the decay's first rank and its share."""
    if found.decay_start is None:
        return NOTHING
    return f"{found.decay_start:,}{interval(found, 'decay_start', ',.0f')}, {percent(found.decay_share)}"


def interval(found: Phases, name: str, form: str) -> str:
    """Return an interval in brackets; nothing where contexts could not be resampled."""
    if name not in found.intervals:
        return ""
    low, high = found.intervals[name]
    return f" ({low:{form}} … {high:{form}})"


def percent(share: float | None) -> str:
    """Return a share in percent; a missing phase has none."""
    return NOTHING if share is None else f"{100 * share:.1f} %"
