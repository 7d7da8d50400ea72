"""Reads and encodes the verdicts of a run, `claims.json`, which `conclude` writes."""

from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from rareneuron.maths.claims import Check, Claim, Claims, Comparison
from rareneuron.maths.significance import finite
from rareneuron.runs.files import read_json
from rareneuron.runs.layout import CLAIMS

LATER = ("smallest", "detectable", "detectable_p", "contexts_needed", "tokens_needed")  # of a claim, in newer runs


def read_claims(root: Path) -> Claims:
    """Return the verdicts of a run."""
    record: Any = read_json(root / CLAIMS)
    return Claims(
        claims=tuple(from_record(claim) for claim in record["claims"]),
        checks=tuple(Check(**{f.name: check[f.name] for f in fields(Check)}) for check in record["checks"]),
        step=record["step"],
    )


def as_record(claim: Claim) -> dict[str, Any]:
    """Return a claim as plain JSON, with None in place of numbers that aren't finite."""
    tests = [
        {
            name: finite(value) if isinstance(value, float) else value
            for name, value in asdict(test).items()
            if name != "noise"
        }
        for test in claim.tests
    ]
    return asdict(claim) | {"tests": tests}


def from_record(record: dict[str, Any]) -> Claim:
    """Return the claim that a record holds; older versions wrote less."""
    numbers = {f.name for f in fields(Comparison) if f.type is float}
    tests = []
    for test in record.get("tests", ()):
        values: dict[str, Any] = {n: np.nan if v is None and n in numbers else v for n, v in test.items()}
        tests.append(Comparison(**values))
    known = {f.name: record[f.name] for f in fields(Claim) if f.name != "tests" and f.default is MISSING}
    known |= {name: record[name] for name in LATER if name in record}
    return Claim(**known, tests=tuple(tests))
