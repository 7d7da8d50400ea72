"""Defines what `run.json` and each `step.json` hold, as frozen records; values of other types are refused.

A checksum says that a file is as it was written, not who wrote it: a run from elsewhere may hold anything. Every field
is read by its annotation; a range there limits a whole number. A field with a default may be missing, as in runs of
older versions, and unknown names are left out. Oracle: tests/test_fuzz_readers.py.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rareneuron.data import Rule
from rareneuron.errors import InvalidConfig
from rareneuron.maths.gauge import Gauge
from rareneuron.runs.config import AUTO, FREE, StudyConfig, default_of

LARGEST = 10**15  # beyond what is counted or measured here; Python prints and converts all below
BEFORE_AUTO = {"engine": "closed-form", "reference": "analysed"}  # what a run's settings are that don't say
LONGEST_SHOWN = 60  # characters of a value that is refused
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}

Count = Annotated[int, range(LARGEST)]
AtLeastOne = Annotated[int, range(1, LARGEST)]
Step = Count | None  # None: the optimiser step is unknown
R = TypeVar("R")


class Misfit(Exception):
    """A value in a record has the wrong type; the text says which value and why."""


class Missing(Misfit):
    """A record lacks a name; the text is that name."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The weights that a checkpoint was computed from."""

    source: str
    revision: str | None = None
    commit: str | None = None
    weights_sha256: str | None = None
    model_type: str | None = None
    n_params: Count | None = None
    dtype: str | None = None
    tied: bool | None = None
    tokenizer: str | None = None  # file or class that its ids were taken from
    head: str | None = None  # why the unembedding isn't what the config says
    form: str | None = None  # how weights became numbers, where the file held others ("dequantised from Q4_1")
    weight_stamps: dict[str, list[int]] | None = None  # size and time of last change of each file


@dataclass(frozen=True, kw_only=True)
class ClosedFormRecord:
    """What the probes found when the model was loaded."""

    ok: bool
    readout_gap: float | None = None
    ablation_gap: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """Estimates by gradient held against the closed form, for all neurons of the last layer at some tokens."""

    n_tokens: Count
    spearman: float  # of mean |Δ| over neurons
    pearson: float  # of mean Δ
    median_error: float  # relative, of mean |Δ| of the largest hundred


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A seeded sample of (token, neuron) pairs, computed again in float64: total and direct Δ and KL."""

    n_pairs: Count
    max_error: float  # nats, over all three
    rms_error: float  # nats, of the total Δ
    rms_delta_loss: float  # of the same pairs, for comparison with the error
    parts_error: float | None = None  # nats, rms: of effects without frequency, its tilt, or norm and frequency
    check: GradientCheck | None = None  # of an engine that estimates by gradient, where the last layer can tell


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished checkpoint: `step.json`."""

    step: Step
    model: ModelRecord
    closed_form: ClosedFormRecord | None = None
    engine: str
    loss_rare: float  # nats
    loss_common: float | None = None
    audit: Audit | None = None  # None: the engine is itself the standard
    gauge: Gauge | None = None  # of the layer's neurons; None: of an older run, which didn't ask
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage
    rates: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name


@dataclass(frozen=True, kw_only=True)
class LayersRecord:
    """What a checkpoint's estimates of several layers rest on: `layers.json`."""

    layers: tuple[Count, ...]  # from 0
    n_cells: Count  # one unit in one context; of units that aren't exact by themselves
    n_patched: Count
    n_flagged: Count  # units that move the residual stream far
    rank: Count  # how many of the largest neurons patching was to decide about
    undecided: tuple[str, ...]  # neurons that may be among them or not
    check: GradientCheck | None = None  # of estimates at the last layer; None where it has no closed form


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """How a task was scored with and without groups: `record.json`."""

    name: str  # of the folder
    tasks: tuple[str, ...]
    step: Step
    layer: Count
    groups: tuple[str, ...]
    replaced_by: str  # mean or zero
    n_random: Count  # groups of each kind
    seed: Count
    scored: str  # how: by readouts of kept states, or by running the model
    model: str
    weights_sha256: str | None = None
    text: str | None = None  # that items were made of
    n_items_asked: Count | None = None
    n_following: Count | None = None  # tokens scored behind the word
    n_places: Count | None = None
    n_alone: Count | None = None  # items without another word that fits
    n_documents_left: Count | None = None  # that the study analysed nothing of
    program: str | None = None  # and version, where another one holds the tasks
    limit: Count | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by what they were spent on
    rareneuron: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """How many types and occurrences one stage of the token filter keeps."""

    name: str
    types: AtLeastOne
    occurrences: AtLeastOne


@dataclass(frozen=True, kw_only=True)
class CountsRecord:
    """Where unigram counts came from, and how often their own error puts a target on the wrong side."""

    source: str | None
    of: str
    sha256: str | None = None
    kind: str | None = None  # training, model, corpus or merges
    published: str | None = None  # the registry's name for this file
    licence: str | None = None  # of a published file, where one was stated
    n_tokens: Count | None = None  # counted, or positions averaged over
    n_contexts: Count | None = None  # averaged over
    precision: float | None = None  # relative standard error of the median type
    agreement: float | None = None  # of the model with the text: Spearman over types that occur there
    wrong_rare: float | None = None  # expected share of analysed rare targets on the wrong side of the threshold
    wrong_common: float | None = None


@dataclass(frozen=True, kw_only=True)
class RarityRecord:
    """The rule by which a type is rare, and the threshold that it gave."""

    rule: Rule
    percentile: float | None
    threshold: float
    count_at_threshold: Count | None
    count_total: Count | None
    n_types: Count
    mass: float

    def __post_init__(self) -> None:
        if self.percentile is None and self.rule in ("types", "occurrences"):
            raise ValueError(f"the rule {self.rule!r} has no percentile")


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Which text was read, and which of its tokens are analysed."""

    corpus: str
    description: str
    fingerprint: str
    n_texts: Count
    n_text_tokens: Count
    n_contexts_read: Count
    n_contexts: AtLeastOne
    n_requested: Count
    n_available: Count
    n_rare: Count
    n_common: Count
    stages: Annotated[tuple[StageRecord, ...], ...]
    counts: CountsRecord
    rarity: RarityRecord
    sha256: str = ""  # of which tokens are analysed
    per_context: Count = 0  # rare tokens that a context gave at most; 0: an older run, which took whole contexts


@dataclass(frozen=True, kw_only=True)
class StudyTiming:
    """One command that worked on the run: how long it took, and how many checkpoints there were at its end."""

    seconds: float
    checkpoints: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run as a whole: `run.json`."""

    format: int
    config: StudyConfig
    resolved: dict[str, str | None]  # model, data and counts under one name each
    environment: dict[str, str | int | None]
    data: DataRecord
    layer: Count
    n_layers: AtLeastOne
    planned: tuple[str, ...] = ()
    checkpoints: dict[str, StepRecord] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    timings: tuple[StudyTiming, ...] = ()

    def __post_init__(self) -> None:
        left: dict[str, Any] = {name: old for name, old in BEFORE_AUTO.items() if getattr(self.config, name) == AUTO}
        if left:  # an older run, which knew one way
            object.__setattr__(self, "config", replace(self.config, **left))

    @property
    def version(self) -> str:
        """The version of the package that began the run."""
        return str(self.environment.get("rareneuron", "unknown"))


def as_json(record: Manifest | StepRecord | LayersRecord | EvaluationRecord) -> dict[str, Any]:
    """Return a record as plain values for JSON, with only those settings that decide results."""
    out = asdict(record)
    return out | {"config": record.config.identity()} if isinstance(record, Manifest) else out


def from_json(kind: type[R], content: Mapping[str, Any]) -> R:
    """Return a file's content as a record. Raises `Misfit` for a value of the wrong type, `Missing` for no value."""
    return read(kind, content, "")


def read(kind: Any, value: Any, where: str) -> Any:
    """Return a value in the form that its annotation asks for; `where` is its path in the file, for errors."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is StudyConfig:
        return read_settings(expect(dict, value, where))
    if isinstance(kind, type) and is_dataclass(kind):
        return read_fields(kind, expect(dict, value, where), where)
    if origin is Annotated:
        return read_annotated(kind, value, where)
    if origin in (Union, UnionType):
        return read_one_of(arguments, value, where)
    if origin is dict:
        found = expect(dict, value, where)
        return {name: read(arguments[1], one, f"{where}.{shorten(name)}".lstrip(".")) for name, one in found.items()}
    if origin in (list, tuple):
        found = expect(list, value, where)
        return origin(read(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(found))
    if origin is not None:  # Literal
        if value not in arguments:
            raise Misfit(f"`{where}` should be one of {', '.join(arguments)} and is {short_form(value)}")
        return value
    return expect(kind, value, where)


def read_fields(kind: type, found: Mapping[str, Any], where: str) -> Any:
    """Return a dataclass made of the values under its fields' names."""
    values, hints = {}, hints_of(kind)
    for f in fields(kind):
        if f.name in found:
            values[f.name] = read(hints[f.name], found[f.name], f"{where}.{f.name}".lstrip("."))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise Missing(f"{where}.{f.name}".lstrip("."))
    try:
        return kind(**values)
    except ValueError as error:
        raise Misfit(f"`{where}`: {error}") from error


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return a dataclass's annotations, with their ranges."""
    return get_type_hints(kind, include_extras=True)


def read_annotated(kind: Any, value: Any, where: str) -> Any:
    """Return a whole number, refused outside its range, or a list, refused where it is empty."""
    base, limit = get_args(kind)
    if limit is ...:
        if isinstance(value, list) and not value:
            raise Misfit(f"`{where}` should be a list with something in it and is empty")
        return read(base, value, where)
    if type(value) is not int or value not in limit:
        raise Misfit(f"`{where}` should be a whole number from {limit.start} on and is {short_form(value)}")
    return value


def read_one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return a value that fits one of several types; the error is that of the last type other than None."""
    misfit = Misfit("")
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):
        try:
            return read(kind, value, where)
        except Misfit as error:
            misfit = error
    raise misfit


def read_settings(found: Mapping[str, Any]) -> StudyConfig:
    """Return the settings of a study; unknown ones are left out, and missing ones get their defaults."""
    known = {f.name: default_of(f) for f in fields(StudyConfig) if f.name not in FREE}
    given = {name: found[name] for name in known if name in found}
    try:
        return StudyConfig.from_settings(
            {name: value for name, value in given.items() if value is not None or known[name] is not None}, "`config`"
        )
    except InvalidConfig as error:
        raise Misfit(shorten(str(error).partition(". ")[0])) from error


def expect(kind: Any, value: Any, where: str) -> Any:
    """Return a value of a plain type. Whole numbers pass for decimals; true and false don't."""
    if kind is float:
        fits = type(value) in (int, float) and abs(value) < LARGEST
    elif kind is int:
        fits = type(value) is int and abs(value) < 10**19  # times in ns are the largest
    else:
        fits = isinstance(value, kind)
    if not fits:
        wanted = {dict: "an object", list: "a list"}.get(kind) or WORDS[kind]
        raise Misfit(f"`{where}` should be {wanted} and is {short_form(value)}")
    return float(value) if kind is float else value


def short_form(value: Any) -> str:
    """Return a short text for a value that is refused."""
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST:
        return "a number of many digits"  # Python refuses to print more than 4,300 digits
    return shorten(repr(value)) if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def shorten(text: str) -> str:
    """Return a text, or its beginning where it is long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
