"""Which kind of value stands under each name of `run.json` and `step.json`, as readers go by it.

A checksum says that a file is as it was written, not who wrote it: a run from elsewhere may hold anything. What is
declared here is refused in words where it is of another kind; a name that is missing is refused where it is asked for
(`store.Record`), so that records of earlier versions, which lack some, are still read. Trick: a kind is a Python value
of its own form. Oracle: benchmarks/fuzz_readers.py.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from rareneuron.data import Rule
from rareneuron.errors import InvalidConfig
from rareneuron.runs.config import FREE, StudyConfig, default_of

# A type; None; a text: itself; a range: whole numbers in it; a tuple: one of these, the one to be told of last; a list:
# of any number of these, with `...` of at least one; a dict: what stands under a name, under `...` that of any other.
Kind = Any

LARGEST = 10**15  # beyond what is counted or measured here; Python prints and converts all below
COUNT = range(LARGEST)
AT_LEAST_ONE = range(1, LARGEST)
OPTIONAL_TEXT = (None, str)
OPTIONAL_NUMBER = (None, float)
LONGEST_TOLD = 60  # characters of a value that is refused

STEP: dict[Any, Kind] = {
    "step": (None, COUNT),
    "model": {
        "source": str,
        "revision": OPTIONAL_TEXT,
        "commit": OPTIONAL_TEXT,
        "weights_sha256": OPTIONAL_TEXT,
        "model_type": OPTIONAL_TEXT,
        "n_params": COUNT,
        "dtype": OPTIONAL_TEXT,
        "weight_stamps": (None, {...: [int]}),
    },
    "closed_form": {"ok": bool, "readout_gap": OPTIONAL_NUMBER, "ablation_gap": OPTIONAL_NUMBER, "reason": str},
    "engine": str,
    "loss_rare": float,
    "loss_common": OPTIONAL_NUMBER,
    "audit": (None, {"n_pairs": COUNT, ...: float}),
    "timings": {...: float},
    "rates": {...: float},
    "files": {...: str},
}
RUN: dict[Any, Kind] = {
    "config": {},  # and what `StudyConfig` says of it
    "resolved": {...: OPTIONAL_TEXT},
    "environment": {"rareneuron": str, ...: (None, int, str)},
    "data": {
        "corpus": str,
        "description": str,
        "fingerprint": str,
        "sha256": str,
        "n_contexts": AT_LEAST_ONE,
        **dict.fromkeys(
            ("n_texts", "n_text_tokens", "n_contexts_read", "n_requested", "n_available", "n_rare", "n_common"), COUNT
        ),
        "stages": [{"name": str, "types": AT_LEAST_ONE, "occurrences": AT_LEAST_ONE}, ...],
        "counts": {"source": OPTIONAL_TEXT, "of": str, "sha256": OPTIONAL_TEXT},
        "rarity": tuple(
            {
                "rule": rule,
                "percentile": OPTIONAL_NUMBER if rule in ("none", "elbow") else float,
                "threshold": float,
                "count_at_threshold": (None, COUNT),
                "count_total": COUNT,
                "n_types": COUNT,
                "mass": float,
            }
            for rule in get_args(Rule)
        ),
    },
    "layer": COUNT,
    "n_layers": AT_LEAST_ONE,
    "planned": [str],
    "checkpoints": {...: STEP},
    "warnings": [str],
    "timings": [{"seconds": float, "checkpoints": COUNT}],
}
KINDS = {"run.json": RUN, "step.json": STEP}
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}


def wrong_kind(name: str, content: Mapping[str, Any], known_format: int) -> str | None:
    """What in a file of a run is not of its kind; None where all is. Other formats are refused elsewhere."""
    if name not in KINDS or (name == "run.json" and content.get("format") != known_format):
        return None
    wrong = misfit(content, KINDS[name], "")
    return wrong if wrong is not None or name != "run.json" else wrong_setting(content.get("config", {}))


def misfit(value: Any, kind: Kind, where: str) -> str | None:
    """The first thing that isn't of its kind, with the way to it; None where there is none."""
    if isinstance(kind, tuple):
        found = [misfit(value, one, where) for one in kind]
        if None in found:
            return None
        several = sum(isinstance(one, dict) for one in kind) > 1
        return f"`{where}` has none of the forms that it may have" if several else found[-1]
    if not fits(value, kind):
        shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        return f"`{where}` should be {told(kind)} and is {cut('null' if value is None else shown)}"
    inner: list[tuple[Any, Kind, str]] = []
    if isinstance(kind, dict):
        named = [(name, kind.get(name, kind.get(...))) for name in value if name in kind or ... in kind]
        inner = [(value[name], one, f"{where}.{cut(name)}".lstrip(".")) for name, one in named]
    elif isinstance(kind, list):
        inner = [(entry, kind[0], f"{where}[{i}]") for i, entry in enumerate(value)]
    return next((wrong for part in inner if (wrong := misfit(*part)) is not None), None)


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value is of a kind, whatever it holds; whole numbers pass for decimals, true and false for neither."""
    if kind is None or isinstance(kind, str):
        return bool(value == kind)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST
    if kind is int:
        return type(value) is int
    if isinstance(kind, list):
        return isinstance(value, list) and len(value) >= (... in kind)
    return isinstance(value, dict if isinstance(kind, dict) else kind)


def told(kind: Kind) -> str:
    """A kind in words."""
    if isinstance(kind, range):
        return f"a whole number from {kind.start} on"
    if isinstance(kind, list):
        return "a list with something in it" if ... in kind else "a list"
    return "an object" if isinstance(kind, dict) else WORDS.get(kind, repr(kind))


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}…"


def wrong_setting(config: Mapping[str, Any]) -> str | None:
    """A setting that no study can have had; None where there is none."""
    known = {f.name: default_of(f) for f in fields(StudyConfig) if f.name not in FREE}
    given = {name: config[name] for name in known if name in config}
    try:
        StudyConfig.from_settings({k: v for k, v in given.items() if v is not None or known[k] is not None}, "`config`")
    except InvalidConfig as error:
        return cut(str(error).partition(". ")[0])
    return None
