"""The verdicts of a run as `claims.json` keeps them; `conclude` writes them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rareneuron.maths.claims import Check, Claims, from_record
from rareneuron.runs.files import read_json

FILE = "claims.json"


def read_claims(root: Path) -> Claims:
    """The verdicts of a run."""
    record: Any = read_json(root / FILE)
    return Claims(
        claims=tuple(from_record(claim) for claim in record["claims"]),
        checks=tuple(Check(**{f.name: check[f.name] for f in fields(Check)}) for check in record["checks"]),
        step=record["step"],
    )
