"""The claims with their verdicts in plain words, as a figure, and as a table with p before and after Holm."""

from rareneuron.maths.claims import Claim
from rareneuron.present.blocks import Block, Column, Definitions, Notice, Paragraph, Section, Table
from rareneuron.present.figures import FIGURES
from rareneuron.present.figures.claims import VERDICTS
from rareneuron.present.findings import Findings
from rareneuron.present.readable import claims_or_reason
from rareneuron.present.sections.curve import illustration
from rareneuron.present.wording import NOTHING, significant


def claims_section(found: Findings) -> Section:
    """Return the verdicts in words, as a figure and as a table; of a run without verdicts, the reason."""
    claims = claims_or_reason(found.run)
    if isinstance(claims, str):
        return Section(name="claims", title="Claims", blocks=(Notice(text=claims),))
    ordered = sorted(claims, key=lambda claim: list(VERDICTS).index(claim.verdict))
    blocks: tuple[Block, ...] = (
        Paragraph(
            text=(
                "Each finding of the paper as a hypothesis with one direction, one statistic and one null, or the "
                "nearest to it of several; “beyond the paper” marks those that it doesn't test. Supported: p after "
                "Holm's correction is at most 0.05 and the effect is of the size asked for. Not supported: these data "
                "don't show it, though an effect that matters would have been found in 80 % of such runs; that isn't a "
                "proof that it is false. Inconclusive: they can't tell."
            )
        ),
        Definitions(items=tuple((claim.title, f"{claim.verdict.capitalize()}. {claim.sentence}") for claim in ordered)),
        illustration(FIGURES["claims"], found),
        table(claims),
    )
    return Section(name="claims", title="Claims", blocks=blocks)


def table(claims: tuple[Claim, ...]) -> Table:
    """Return a table of what each verdict rests on."""
    return Table(
        caption=(
            "What each verdict rests on. Effect: value less the mean of the null, in the statistic's unit, with its "
            f"interval; size: in standard deviations of the null's draws. Holm: p corrected for {len(claims)} claims. "
            "Matters, found from: the smallest effect that matters, and that all tests of the claim together find in "
            "80 % of such runs or more; both in the claimed direction."
        ),
        columns=(
            Column(head="claim", numeric=False),
            Column(head="verdict", numeric=False),
            Column(head="p"),
            Column(head="p, Holm"),
            Column(head="value"),
            Column(head="null"),
            Column(head="effect"),
            Column(head="size"),
            Column(head="matters"),
            Column(head="found from"),
            Column(head="statistic", numeric=False),
            Column(head="group", numeric=False),
            Column(head="against", numeric=False),
            Column(head="source", numeric=False),
        ),
        rows=tuple(row(claim) for claim in claims),
    )


def row(claim: Claim) -> tuple[str, ...]:
    """Return the cells of one claim."""
    effect = significant(claim.effect, sign=True)
    if effect != NOTHING and claim.effect_low is not None and claim.effect_high is not None:
        low, high = (significant(x, sign=True) for x in (claim.effect_low, claim.effect_high))
        effect = f"{effect} ({low} … {high})"
    return (
        claim.name,
        claim.verdict,
        significant(claim.p, 2),
        significant(claim.p_holm, 2),
        significant(claim.value),
        significant(claim.null_mean),
        effect,
        significant(claim.effect_size, 2, sign=True),
        significant(claim.smallest, 2),
        significant(claim.detectable, 2),
        claim.statistic or NOTHING,
        claim.group or NOTHING,
        claim.null or NOTHING,
        claim.source,
    )
