"""What a run holds of one checkpoint, or why not, in words that a page can print.

A page travels, so no reason names a folder of the machine where it was made.
"""

from collections import Counter
from typing import Any, Literal

import pandas as pd

from rareneuron.errors import NotMeasured, RunFolderError
from rareneuron.maths import Definitions
from rareneuron.maths.claims import Claim
from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import Phases
from rareneuron.maths.significance import LEVEL
from rareneuron.present.wording import significant
from rareneuron.runs.groups import read_part
from rareneuron.runs.rankings import Found, Ranking
from rareneuron.runs.run import Run

Part = Literal["geometry", "spectrum"]  # of a checkpoint's results

NO_PHASES = (
    "The run folder holds no phases of this checkpoint that can be read. Run the same study again: phases are added, "
    "and effects kept."
)
UNTESTED = (
    "This run's phases follow the released scripts, whose boundaries are constants that nothing tests, so there is no "
    "verdict to draw. Run the study with --definitions paper in another folder."
)
NO_CLAIMS = "The run folder holds no verdicts. Run the same study again: they are added, and checkpoints kept."
AS_WELL = {  # what looks the same by chance too often
    "half-normal": "half-normal samples look as straight",
    "exponential": "exponential samples look as straight",
    "lognormal": "lognormal samples look as straight",
    "no plateau": "curves without one look the same",
    "no decay": "power laws look the same",
}


def phases_or_reason(run: Run, step: int | None = None, ranking: Ranking = "all") -> Phases | str:
    """Return a ranking's phases by the paper's definitions, or the reason why the run has none."""
    found = UNTESTED if run.definitions == "released" else found_or_reason(run, step, ranking, "paper")
    assert isinstance(found, Phases | str)
    return found


def found_or_reason(run: Run, step: int | None, ranking: Ranking | None, definitions: Definitions) -> Found | str:
    """Return a ranking's phases by either definitions, or the reason why the run has none."""
    try:
        return run.phases(step, ranking, definitions)
    except NotMeasured as error:
        return str(error)
    except RunFolderError:
        return NO_PHASES


def verdict(found: Phases) -> str:
    """Return the outcome in words, with what spoke against the missing phase."""
    if found.outcome == "three phases":
        return found.outcome
    least = max(FAMILIES, key=lambda family: found.null_p[family])
    null = least if found.outcome == "no power law" else found.outcome
    if found.null_p[null] > LEVEL:
        return f"{found.outcome} ({AS_WELL[null]}, p = {significant(found.null_p[null], 2)})"
    why = "the middle bends" if found.outcome == "no power law" else "within its noise"
    return f"{found.outcome} ({why})"


def claims_or_reason(run: Run) -> tuple[Claim, ...] | str:
    """Return the run's claims, or the reason why it has none."""
    try:
        return tuple(run.claims().claims)
    except RunFolderError:
        return NO_CLAIMS


def counted(claims: tuple[Claim, ...]) -> str:
    """Say how many claims have which verdict, supported ones first."""
    counts = Counter[str](claim.verdict for claim in claims)
    verdicts = ("supported", "not supported", "inconclusive")
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts if counts[verdict])


def rows_or_reason(run: Run, part: Part, step: int | None) -> pd.DataFrame | str:
    """Return the rows of a checkpoint's geometry or spectrum, or the reason why there are none."""
    try:
        return run.geometry(step) if part == "geometry" else run.spectrum(step)
    except NotMeasured as error:
        return str(error)
    except RunFolderError:
        return (
            f"The run folder holds no {part} of this checkpoint that can be read. Remove the checkpoint's folder in "
            "steps and run the same study again: only that checkpoint is computed again."
        )


def lacking_parts(run: Run) -> dict[str, str]:
    """Return what the last checkpoint has no tables or no null of, and why."""
    by_reason: dict[str, list[str]] = {}
    for part in ("geometry", "spectrum"):
        try:
            lacking = part_record(run, part, None).get("missing", {})
        except NotMeasured as error:
            lacking = {part: str(error)}
        except RunFolderError:
            continue
        for what, why in lacking.items():
            by_reason.setdefault(why, []).append(f"random pairs for {what}" if "-" in what else what)
    return {" and ".join(names): why for why, names in by_reason.items()}


def part_record(run: Run, part: Part | Literal["groups"], step: int | None) -> dict[str, Any]:
    """Return everything in a checkpoint's groups.json, geometry.json or spectrum.json.

    Raises `NotMeasured` where the checkpoint has no groups.
    """
    return read_part(run.folder(step) / f"{part}.json")
