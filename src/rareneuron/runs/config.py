"""The settings of a study: one frozen record, made in Python, from the command line or from a TOML file."""

import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from rareneuron.data import Rule
from rareneuron.errors import InvalidConfig
from rareneuron.links import expanded
from rareneuron.maths import Definitions

PAPER_TOKENS = 25_088
EMBEDDED_TOKENS = 2_000

AUTO = "auto"  # of settings that the model decides
ENGINE_NAMES = ["closed-form", "gradient", "patching"]  # of `measure.engines`; registered ones are added
CHOICES: dict[str, Sequence[str]] = {
    "counts_from": ("auto", "model", "corpus", "merges"),
    "rarity": get_args(Rule),
    "reference": ("analysed", "all"),
    "units": ("neurons", "heads", "both"),
    "engine": ENGINE_NAMES,
    "dtype": ("float32", "float64"),
    "definitions": get_args(Definitions),
    "executor": ("local", "ray"),
}
DECIDED_LATER = {"engine", "reference"}  # settings that may be left to us
PACKAGED_NAMES = ("smollm2",)  # of `models.packaged`
FREE = {"out", "memory", "device", "steps", "executor", "workers", "address", "shard"}  # decide no result
PATHS = ("model", "data", "counts", "out")  # settings that may name one
SEVERAL = ("steps", "layers")  # settings that may be several numbers
LARGEST_TOML = 2**20
AT_LEAST = {"context_length": 8, "n_tokens": 1, "group_size": 2, "n_random": 200, "max_corpus_tokens": 1, "seed": 0}
AT_LEAST |= {"workers": 1, "per_context": 1}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of one study. None stands for the default named beside it.

    `MODEL` is a Hub id, `id@revision`, a local model folder or GGUF file, a folder of `step<N>/` folders, or the
    name of a packaged model.
    """

    model: str | None = None  # the embedded series
    revision: str | None = None  # the Hub's main branch
    steps: str | tuple[int, ...] | None = None  # "all" for a series, the model as it is otherwise
    data: str | None = (
        None  # the embedded corpus for the embedded series and packaged models, C4's validation split otherwise
    )
    text_field: str = "text"  # column or key that holds the text
    max_corpus_tokens: int = 50_000_000  # read no more than this from the corpus
    counts: str | None = None  # a file of counts
    counts_from: str = "auto"  # without a file: training counts of the embedded series, otherwise the model's own mean
    rarity: Rule = "types"  # below the percentile over types (paper), over occurrences, at the elbow, or none
    percentile: float | int = 50
    words: bool = True  # stage 2: only targets that are whole, valid English words
    n_tokens: int | None = None  # 25,088 as in the paper; 2,000 of the embedded corpus
    per_context: int | None = None  # rare targets a context gives at most; 16, fewer or more where 80 contexts need it
    context_length: int = 256
    layer: int = -1
    reference: str = AUTO  # n̄ over the analysed tokens (paper) or over all positions, as behind earlier layers
    engine: str = AUTO  # closed form where it is exact, else gradients with a certificate, else patching
    layers: str | tuple[int, ...] | None = None  # whose units are estimated besides: "all", or numbers
    units: str = "both"  # which of them: neurons, attention heads
    verify: float | int = 0.02  # share of the cells that are patched at most, to verify estimates
    definitions: str = "paper"  # the paper's text, or what its authors' released scripts compute
    group_size: int = 50
    n_random: int = 1000  # and as many matched to either group; p can't be below 2/(n_random + 1)
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    memory: float | int = 4  # GiB that captured activations and the engine's tables may take
    out: str | None = None  # runs/<model>
    executor: str = "local"  # who computes checkpoints: this machine, or a Ray cluster
    workers: int = 1  # checkpoints computed at a time; on this machine they share its cores and `memory`
    address: str | None = None  # of a Ray cluster; otherwise one is started here
    shard: str | None = None  # "i/n": of n commands, the i-th; `rareneuron merge` ends the study

    def __post_init__(self) -> None:
        for name in PATHS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("~"):
                object.__setattr__(self, name, str(expanded(value)))
        for name, value in asdict(self).items():
            if isinstance(value, str) and (not value or "\0" in value):
                raise InvalidConfig(f"{name} = {value!r} names nothing. Give it a value, or leave it out.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices and not (name in DECIDED_LATER and getattr(self, name) == AUTO):
                raise InvalidConfig(f"{name} = {getattr(self, name)!r} is not known. Use one of: {', '.join(choices)}.")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidConfig(f"{name} = {value!r} must be a whole number of at least {least}.")
        if not 0 < self.percentile < 100:
            raise InvalidConfig(f"percentile = {self.percentile} must lie between 0 and 100; 50 is the paper's.")
        if not 0 < self.memory * 2**30 < math.inf:
            raise InvalidConfig(
                f"memory must be a positive number of GiB, not {self.memory}: blocks of work are cut to fit it. The "
                "default is 4."
            )
        if self.steps not in (None, "all"):
            self._check_steps()
        if self.layers not in (None, "all"):
            self._check_layers()
        if not 0 <= self.verify <= 1:
            raise InvalidConfig(
                f"verify = {self.verify} must be a share of the cells, from 0 (nothing is verified) to 1. The default "
                "is 0.02."
            )
        if self.counts is not None and self.counts_from != "auto":
            raise InvalidConfig(
                f"counts = {self.counts!r} and counts_from = {self.counts_from!r} both say whose counts decide what is "
                "rare. Leave one of them out."
            )
        if self.address is not None and self.executor != "ray":
            raise InvalidConfig(
                f"address = {self.address!r} is that of a Ray cluster, and executor = {self.executor!r} uses none. Add "
                "--executor ray, or leave the address out."
            )
        _ = self.part

    def _check_steps(self) -> None:
        steps = self.steps
        if isinstance(steps, str) or not steps or min(steps) < 0 or len(set(steps)) < len(steps):
            shown = steps if isinstance(steps, str) else ",".join(map(str, steps or ()))
            raise InvalidConfig(
                f'steps = {shown!r} are not checkpoints. Use "all", or numbers from 0 on, each once, such as '
                "0,512,143000."
            )

    def _check_layers(self) -> None:
        layers = self.layers
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            shown = layers if isinstance(layers, str) else ",".join(map(str, layers or ()))
            raise InvalidConfig(
                f'layers = {shown!r} are no layers. Use "all", or numbers, each once, such as 0,5,-1; negative ones '
                "count from the end."
            )

    @property
    def tokens_wanted(self) -> int:
        """How many rare targets to analyse."""
        if self.n_tokens is not None:
            return self.n_tokens
        return EMBEDDED_TOKENS if self.is_embedded_corpus else PAPER_TOKENS

    @property
    def whose_definitions(self) -> Definitions:
        """`definitions`, as the type that is checked."""
        return "released" if self.definitions == "released" else "paper"

    @property
    def is_embedded_model(self) -> bool:
        """Whether the series shipped with the package is studied."""
        return self.model is None

    @property
    def is_embedded_corpus(self) -> bool:
        """Whether the text is the embedded corpus: docstrings of the standard library and of held-out packages."""
        return self.data is None and (self.is_embedded_model or self.model in PACKAGED_NAMES)

    @property
    def part(self) -> tuple[int, int]:
        """`shard` as two numbers (i, n), from 1: this command is the i-th of n. (1, 1) where it is the only one."""
        if self.shard is None:
            return 1, 1
        found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", self.shard)
        i, n = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= i <= n:
            raise InvalidConfig(
                f"shard = {self.shard!r} is not one of several parts. Give i/n with i from 1 to n: --shard 1/8 … 8/8."
            )
        return i, n

    @property
    def run_folder(self) -> Path:
        """The folder that results are written to."""
        if self.out is not None:
            return Path(self.out)
        name = "embedded" if self.model is None else Path(self.model).name.replace("@", "-")
        return Path("runs") / name

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the results; the others may change when a run is continued.

        `steps` isn't among them: a run may be continued with further checkpoints.
        """
        return {name: value for name, value in asdict(self).items() if name not in FREE} | {
            "n_tokens": self.tokens_wanted
        }

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> "StudyConfig":
        """Read settings from a file; `overrides` (the command line) win."""
        path = expanded(path)
        if path.is_file() and path.stat().st_size > LARGEST_TOML:
            raise InvalidConfig(
                f"{path} has more than {LARGEST_TOML:,} bytes, which no settings need, so it isn't read. Check "
                "--config."
            )
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidConfig(
                f"The settings file {path} cannot be read: {error.strerror}. Check --config."
            ) from error
        except (ValueError, RecursionError) as error:  # also bad bytes, or more digits or brackets than Python reads
            raise InvalidConfig(
                f"{path} is not valid TOML: {error}. Settings are lines such as `n_tokens = 5000`."
            ) from error
        return cls.from_settings(found, f"{path}", **overrides)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], origin: str, **overrides: Any) -> "StudyConfig":
        """Return a config from settings by name, once their names and types are checked; `overrides` win."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(settings) - set(known))
        if unknown:
            listing = ", ".join(f"{name} = {default_of(f)!r}" for name, f in known.items())
            raise InvalidConfig(
                f"{origin} has settings that don't exist: {', '.join(unknown)}. A misspelt setting would silently do "
                f"nothing. Those that exist, with their defaults: {listing}."
            )
        values = dict(settings)
        for name in SEVERAL:
            if isinstance(values.get(name), Iterable) and not isinstance(values[name], str):
                values[name] = tuple(values[name])
        for name, value in values.items():
            if not fits(known[name], value):
                wanted = getattr(known[name].type, "__name__", known[name].type)
                raise InvalidConfig(f"{origin}: {name} = {value!r} should be of the type {wanted}.")
        return replace(cls(**values), **overrides)


def default_of(field: "Field[Any]") -> Any:
    """Return a setting's default; every setting has one."""
    assert field.default is not MISSING
    return field.default


def fits(field: "Field[Any]", value: Any) -> bool:
    """Return whether a TOML value has the field's type. Whole numbers pass for decimals; true and false don't."""
    if isinstance(value, tuple):
        return field.name in SEVERAL and all(type(number) is int for number in value)
    if get_args(field.type) and all(isinstance(choice, str) for choice in get_args(field.type)):
        return isinstance(value, str)  # which one is checked with the other choices
    allowed = {t.strip() for t in str(getattr(field.type, "__name__", field.type)).split("|")}
    return type(value).__name__ in allowed or (type(value) is int and "float" in allowed)
