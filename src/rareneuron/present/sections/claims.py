"""The claims with their verdicts, once: a line each with its effect beside its null, and what it rests on behind it."""

import math

import numpy as np
import pandas as pd

from rareneuron.maths.claims import Claim
from rareneuron.present.blocks import Notice, Paragraph, Section, Verdict, Verdicts
from rareneuron.present.figures.claims import LINEAR, VERDICTS, frame
from rareneuron.present.findings import Findings
from rareneuron.present.readable import claims_or_reason, counted
from rareneuron.present.wording import NOTHING, significant

TITLE = "Verdicts"
MARGIN = 0.06  # of the axis, on each side of what it shows


def claims_section(found: Findings) -> Section:
    """Return the verdicts as a table that opens; of a run without verdicts, the reason."""
    claims = claims_or_reason(found.run)
    if isinstance(claims, str):
        return Section(name="claims", title=TITLE, blocks=(Notice(text=claims),))
    ordered = sorted(claims, key=lambda claim: list(VERDICTS).index(claim.verdict))
    return Section(
        name="claims", title=TITLE, blocks=(Paragraph(text=reading(claims)), table(ordered, frame(found.run)))
    )


def reading(claims: tuple[Claim, ...]) -> str:
    """Say how many claims there are, what a verdict means and what it doesn't."""
    return (
        "Findings of the paper as hypotheses with one direction, one statistic and one null each: "
        f"{counted(claims)}. Supported: "
        f"p after Holm's correction for {len(claims)} claims is at most 0.05, and the effect is of the size asked for. "
        "Not supported: these data don't show it, though an effect that matters would have been found in 80 % of such "
        "runs; that isn't a proof that it is false. "
        "Inconclusive: they can't tell. Open a line to see what it rests on."
    )


def table(claims: list[Claim], numbers: pd.DataFrame) -> Verdicts:
    """Return a line for each claim, all along one axis of effects."""
    by_name = numbers.set_index("name")
    ends = along_axis(by_name[["effect_size", "low", "high"]].to_numpy(np.float64))
    usual = along_axis(np.array([-LINEAR, LINEAR]))
    low, high = np.nanmin([np.nanmin(ends, initial=0), usual[0]]), np.nanmax([np.nanmax(ends, initial=0), usual[1]])
    room = MARGIN * (high - low)

    def percent(value: float) -> float:
        return round(100 * (value - low + room) / (high - low + 2 * room), 1)

    places = dict(zip(by_name.index, ends, strict=True))
    return Verdicts(
        caption=(
            "Effect: value less the mean of its null, in standard deviations of the null's draws, with its interval; "
            "to the right of the line lies what is as claimed; of an absence it is what is left of its margin. The "
            "band reaches two deviations to each side; beyond it the axis is logarithmic."
        ),
        rows=tuple(
            line(claim, [percent(x) if math.isfinite(x) else None for x in places[claim.name]]) for claim in claims
        ),
        zero=percent(0.0),
        usual=(percent(usual[0]), percent(usual[1])),
    )


def along_axis(values: np.ndarray) -> np.ndarray:
    """Return places along an axis that is linear within two deviations and logarithmic beyond."""
    size = np.abs(values) / LINEAR
    return np.sign(values) * np.where(size > 1, 1 + np.log10(np.maximum(size, 1)), size)


def line(claim: Claim, places: list[float | None]) -> Verdict:
    """Return the line of one claim; `places` are those of its effect and of the interval's ends."""
    point, low, high = places
    return Verdict(
        name=claim.name,
        title=claim.title,
        verdict=claim.verdict,
        p=significant(claim.p_holm, 2),
        sentence=claim.sentence,
        facts=facts(claim),
        point=point,
        interval=None if low is None or high is None else (min(low, high), max(low, high)),
    )


def facts(claim: Claim) -> tuple[tuple[str, str], ...]:
    """Return the numbers and names that a verdict rests on."""
    effect = significant(claim.effect, sign=True)
    if effect != NOTHING and claim.effect_low is not None and claim.effect_high is not None:
        low, high = (significant(x, sign=True) for x in (claim.effect_low, claim.effect_high))
        effect = f"{effect} ({low} … {high})"
    told = (
        ("claim", claim.name),
        ("statistic", claim.statistic or NOTHING),
        ("group", claim.group or NOTHING),
        ("against", claim.null or NOTHING),
        ("value", significant(claim.value)),
        ("mean of the null", significant(claim.null_mean)),
        ("effect", effect),
        ("in deviations of the null", significant(claim.effect_size, 2, sign=True)),
        ("p", significant(claim.p, 2)),
        ("p after Holm", significant(claim.p_holm, 2)),
        ("smallest effect that matters", significant(claim.smallest, 2)),
        ("found in 80 % of such runs from", significant(claim.detectable, 2)),
        ("source", claim.source),
    )
    return tuple((name, text) for name, text in told if text != NOTHING)
