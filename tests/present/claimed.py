"""Claims as a run holds them, made up."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Made:
    """A claim as a run holds it."""

    name: str
    verdict: str
    title: str = "Neurons of the boosting group act together more than random ones do"
    source: str = "Table 1"
    statistic: str = "correlation"
    group: str = "boosting"
    value: float | None = 0.03
    null: str | None = "matched"
    null_mean: float | None = 0.01
    effect: float | None = 0.02
    effect_low: float | None = 0.01
    effect_high: float | None = 0.04
    effect_size: float | None = 4.0
    p: float | None = 0.001
    p_holm: float | None = 0.021
    sentence: str = "It is 0.03, and 0.01 in matched groups."
    tests: tuple[Any, ...] = ()


@dataclass(frozen=True)
class AllMade:
    claims: tuple[Made, ...]


UNKNOWN = dict.fromkeys(("value", "null", "null_mean", "effect", "effect_low", "effect_high", "effect_size", "p"))
CLAIMS = (
    Made(name="apart", verdict="not supported", effect=-0.01, effect_low=-0.02, effect_high=0.005, effect_size=-2.0),
    Made(name="together", verdict="supported"),
    Made(name="unknown", verdict="inconclusive", p_holm=None, **UNKNOWN),
    Made(name="none", verdict="not supported", effect=0.0, effect_size=0.0, p=1.0, p_holm=1.0),
)
