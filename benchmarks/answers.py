"""Writes a run's answers into a page of the documentation: how its neurons act, and every verdict.

rareneuron study && python benchmarks/answers.py runs/embedded docs/embedded-series.md
make real && python benchmarks/answers.py runs/smollm2 docs/smollm2.md
"""

import argparse
from pathlib import Path
from typing import Any

from rareneuron.conclude.mechanism import mechanisms
from rareneuron.maths.claims import Claim
from rareneuron.maths.known_kinds import KINDS
from rareneuron.present.wording import significant
from rareneuron.runs.run import Run, open_run

MARKERS = "<!-- answers: python benchmarks/answers.py -->", "<!-- /answers -->"
LARGEST = 10
NOTHING = "–"


def with_interval(row: Any, name: str) -> str:
    value, low, high = (100 * getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{round(value)} % ({round(low)} to {round(high)})"


def neurons(run: Run) -> list[str]:
    """Return a table of the largest neurons and their mechanisms, and a line about the whole layer."""
    table = mechanisms(run)
    lines = [
        "| neuron | mean \\|Δ\\|, nats | along frequency | through the norm | neither way | kind |",
        "|---|---|---|---|---|---|",
    ]
    row: Any
    for row in table.head(LARGEST).itertuples():
        shares = [with_interval(row, name) for name in ("frequency_share", "norm_share", "words_share")]
        lines.append(
            f"| {row.neuron} | {significant(row.abs_delta_loss)} | {' | '.join(shares)} | {row.kind or NOTHING} |"
        )
    medians = {name: 100 * table[name].median() for name in ("frequency_share", "norm_share", "words_share")}
    counts = table["kind"].value_counts()
    listed = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if kind in counts) or "none"
    of_all = [f"{medians[name]:.0f} %" for name in medians]
    return [
        *lines,
        "",
        f"The median neuron has {of_all[0]} along frequency, {of_all[1]} through the norm, {of_all[2]} neither way.",
        f"Of {len(table):,} neurons, known kinds: {listed}.",
    ]


def verdicts(claims: tuple[Claim, ...]) -> list[str]:
    """Return a table of the verdicts: what was found, what matters, and what would have been found."""
    lines = ["| claim | verdict | effect | p, Holm | matters from | found from |", "|---|---|---|---|---|---|"]
    for claim in claims:
        p = NOTHING if claim.p_holm is None else f"{claim.p_holm:.2g}"
        verdict = f"**{claim.verdict}**" if claim.verdict == "supported" else claim.verdict
        numbers = [significant(x) if x is not None else NOTHING for x in (claim.smallest, claim.detectable)]
        effect = NOTHING if claim.effect is None else significant(claim.effect, sign=True)
        lines.append(f"| {claim.title} (`{claim.name}`) | {verdict} | {effect} | {p} | {' | '.join(numbers)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    run = open_run(options.run)
    text = options.page.read_text()
    first, last = (text.index(marker) for marker in MARKERS)
    body = "\n".join(["", *neurons(run), "", *verdicts(run.claims().claims), "", ""])
    options.page.write_text(text[: first + len(MARKERS[0])] + "\n" + body + text[last:])


if __name__ == "__main__":
    main()
