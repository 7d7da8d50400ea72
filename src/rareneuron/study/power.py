"""How much text the effects that matter would take, before anything is measured: as much as in runs that were.

`benchmarks/power.py RUN` prints these numbers of a run; how they come about is in docs/claims.md. Claims that stand
beside random groups alone aren't here: more text doesn't make them find more.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rareneuron.maths.significance import FEWEST_CONTEXTS
from rareneuron.measure.experiments import RARE_TOKENS
from rareneuron.runs.config import StudyConfig

SERIES, SMOLLM2 = "the embedded series at step 4,096", "SmolLM2-135M on the embedded corpus"
MEASURED = {  # claim → where → contexts, rare tokens in them; 20 claims were tested of the series, 16 of SmolLM2
    "rare-specific": {SERIES: (130, 699), SMOLLM2: (196, 341)},
    "rare-specific-loss": {SERIES: (432, 2_322), SMOLLM2: (1_467, 2_554)},
    "joint-sum": {SERIES: (40, 215), SMOLLM2: (55, 96)},
    "frequency-explains": {SERIES: (40, 215)},
    "norm-explains": {SERIES: (40, 215)},
    "rare-beyond-frequency": {SERIES: (40, 215)},
    "type-specific": {SERIES: (4_163, 22_376)},
    "rare-only-plateau": {SERIES: (275, 1_368), SMOLLM2: (1_358, 2_166)},
    "last-layer-special": {SERIES: (233, 1_043)},
    "layers-share": {SERIES: (167, 748)},
}
OF_LAYERS = ("last-layer-special", "layers-share")
ON_ALL = ("rare-only-plateau", *OF_LAYERS)  # judged on all contexts, the others on a sample


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a claim over contexts would take to find the effect that matters in 80 % of studies, and what a plan has."""

    claim: str
    contexts: int  # that the claim is judged on
    tokens: int  # rare ones in them
    needed: dict[str, tuple[int, int]]  # where it was measured → contexts and rare tokens


def needed_for(config: StudyConfig, n_contexts: int, per_context: float) -> list[Needed]:
    """Return what each claim over contexts takes, beside what a study of so many contexts judges it on."""
    sample = max(int(np.ceil(RARE_TOKENS / per_context)), FEWEST_CONTEXTS)
    sample = max(1, min(sample, n_contexts // 2))
    out = []
    for claim, needed in MEASURED.items():
        if claim in OF_LAYERS and config.layers is None:
            continue
        contexts = n_contexts if claim in ON_ALL else sample
        out.append(Needed(claim=claim, contexts=contexts, tokens=round(contexts * per_context), needed=needed))
    return out


def as_values(needed: list[Needed]) -> list[dict[str, Any]]:
    """Return plain values for JSON."""
    return [
        asdict(one) | {"needed": {where: {"contexts": c, "tokens": t} for where, (c, t) in one.needed.items()}}
        for one in needed
    ]


def power_lines(needed: list[Needed]) -> list[str]:
    """Return lines for a terminal: what claims would take, and what they would have."""
    places = " or ".join(dict.fromkeys(where for one in needed for where in one.needed))
    lines = [
        "Power        contexts (rare tokens) that find the effect that matters in 80 % of studies, with the errors of",
        f"             {places}; and what this study has",
    ]
    for one in needed:
        takes = " or ".join(amount(*measured) for measured in one.needed.values())
        lines.append(f"             {one.claim} {takes}; has {amount(one.contexts, one.tokens)}")
    return lines


def amount(contexts: int, tokens: int) -> str:
    """Return contexts and rare tokens, short."""
    return f"{contexts:,} ({tokens:,})"
