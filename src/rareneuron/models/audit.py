"""Checkpoints that are what they say: facts about each one's weights, and what is suspicious among them.

Public series are often wrong: the same weights under two steps, a shard of another step, steps that are missing. Every
tensor is read once, one at a time, for its hash, its norm and its non-finite numbers; a checkpoint is then compared
with its neighbours. Identical weights and non-finite numbers are facts. A jump is a norm or loss outside the range of
both neighbours by more than half of what separates them, and by more than a floor: training does that seldom, a wrong
shard nearly always; but either can happen, so it is a reason to look. Oracle: tests/models/test_audit.py, series
spoiled in one known way each.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rareneuron.errors import BrokenCheckpoint
from rareneuron.models.adapter import Adapter
from rareneuron.models.checkpoints import UNKNOWN_STEP
from rareneuron.models.loading import read_header

NORM_FLOOR = math.log(1.1)  # a norm within 10 % of its neighbours is no jump
LOSS_FLOOR = 0.1  # nats per token
CONTEXTS_PER_BATCH = 4
BUFFERS = re.compile(r"attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|inv_freq$")  # stored by old versions
SHOWN = 3  # names in a sentence


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """One stored tensor."""

    sha256: str  # of its bytes
    shape: tuple[int, ...]
    norm: float | None  # Frobenius; None where a number isn't finite
    n_bad: int  # numbers that are NaN or infinite
    constant: bool  # more than one number, and all the same

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows, which no training leaves equal."""
        return len(self.shape) > 1 and math.prod(self.shape) > 1


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """One checkpoint; `tensors` is empty where it couldn't be read, and `error` says why."""

    step: int
    name: str  # where it is
    tensors: Mapping[str, TensorFacts]
    loss: float | None = None  # nats per token, the same text at every checkpoint
    error: str | None = None

    @property
    def weights(self) -> str | None:
        """One hash over all tensors, whatever files they lie in."""
        if not self.tensors:
            return None
        content = "".join(f"{name} {fact.sha256}\n" for name, fact in sorted(self.tensors.items()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def n_params(self) -> int:
        """Numbers stored."""
        return sum(math.prod(fact.shape) for fact in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Something that a reader of results from these steps should know."""

    kind: str  # unreadable, identical, shared, frozen, missing, non-finite, constant, norm or loss
    steps: tuple[int, ...]
    text: str


def tensor_facts(folder: Path) -> dict[str, TensorFacts]:
    """Every weight of a folder, read one at a time."""
    facts = {}
    for file in read_header(folder).files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if not BUFFERS.search(name):
                        facts[name] = facts_of(tensors.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise BrokenCheckpoint(
                f"{file} is truncated or not a safetensors file ({error}). Download or copy it again."
            ) from error
    return facts


def facts_of(tensor: Tensor) -> TensorFacts:
    """Of one tensor of any type."""
    flat = tensor.contiguous().reshape(-1)
    n_bad = int((~torch.isfinite(flat)).sum()) if flat.is_floating_point() else 0
    return TensorFacts(
        sha256=hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest(),
        shape=tuple(tensor.shape),
        norm=None if n_bad else math.sqrt(sum(float((part.double() ** 2).sum()) for part in flat.split(1 << 22))),
        n_bad=n_bad,
        constant=len(flat) > 1 and bool((flat == flat[0]).all()),
    )


def mean_loss(adapter: Adapter, windows: Int[np.ndarray, "context position"]) -> float:
    """Mean loss of the next token over all positions, in nats."""
    ids, total = adapter.anatomy.token_ids(windows), 0.0
    for batch in ids.split(CONTEXTS_PER_BATCH):
        with torch.inference_mode():
            logp = adapter.model(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            total -= float(logp.gather(-1, batch[:, 1:, None]).double().sum())
    return total / ids[:, 1:].numel()


def facts_from_record(step: int, name: str, stored: Mapping[str, Any], loss: float | None) -> CheckpointFacts:
    """Facts that were written as JSON (`asdict` of each `TensorFacts`)."""
    tensors = {key: TensorFacts(**{**fact, "shape": tuple(fact["shape"])}) for key, fact in stored.items()}
    return CheckpointFacts(step=step, name=name, tensors=tensors, loss=loss)


def suspicions(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """All that is suspicious about checkpoints in the order of their steps."""
    there = [facts for facts in series if facts.tensors]
    found = [
        Suspicion(kind="unreadable", steps=(facts.step,), text=f"{said([facts.step])} can't be used: {facts.error}")
        for facts in series
        if facts.error is not None
    ]
    found += missing(sorted({facts.step for facts in series} - {UNKNOWN_STEP}))
    found += same_weights(there)
    for facts in there:
        found += non_finite(facts) + constant(facts, there)
    return found + norm_jumps(there) + loss_jumps(there)


def said(steps: Sequence[int]) -> str:
    """Steps in words."""
    named = ["of unknown number" if step == UNKNOWN_STEP else f"{step}" for step in steps]
    return f"Step {named[0]}" if len(named) == 1 else f"Steps {', '.join(named[:-1])} and {named[-1]}"


def shown(names: Sequence[str]) -> str:
    """A few names of many."""
    return ", ".join(f"`{name}`" for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def missing(steps: Sequence[int]) -> list[Suspicion]:
    """Steps that a series spaced evenly, or by a constant factor, on both sides of a gap should have there."""
    out = []
    for index, (low, high) in enumerate(pairwise(steps)):
        left, right = steps[max(index - 2, 0) : index + 1], steps[index + 1 : index + 4]
        even = common([b - a for a, b in pairwise(left)], [b - a for a, b in pairwise(right)])
        absent: list[int] = []
        if even and (high - low) % even == 0:
            absent = list(range(low + even, high, even))
        elif left[0] > 0:
            factor = common([b / a for a, b in pairwise(left)], [b / a for a, b in pairwise(right)])
            if factor and factor > 1:
                times = math.log(high / low) / math.log(factor)
                if abs(times - round(times)) < 1e-6:
                    absent = [round(low * factor**k) for k in range(1, round(times))]
        if absent:
            listed = ", ".join(map(str, absent[:SHOWN])) + (", …" if len(absent) > SHOWN else "")
            text = f"Between steps {low} and {high} the spacing of their neighbours leaves out {len(absent)}: {listed}."
            out.append(Suspicion(kind="missing", steps=(low, high), text=text))
    return out


def common(left: Sequence[int | float], right: Sequence[int | float]) -> Any:
    """The smallest spacing on either side, where it is the same."""
    return min(left) if left and right and math.isclose(min(left), min(right), rel_tol=1e-9) else None


def same_weights(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """Whole checkpoints that are equal, and matrices that are."""
    whole, out = defaultdict(list), []
    for facts in series:
        whole[facts.weights].append(facts)
    for equal in whole.values():
        if len(equal) > 1:
            steps = [facts.step for facts in equal]
            text = f"{said(steps)} have identical weights: {len(steps) - 1 if len(steps) > 2 else 'one'} of them "
            text += "are not what their names say." if len(steps) > 2 else "is not what its name says."
            out.append(Suspicion(kind="identical", steps=tuple(steps), text=text))
    different = [equal[0] for equal in whole.values()]
    holders = defaultdict(list)
    for facts in different:
        for name, fact in facts.tensors.items():
            if fact.is_matrix and not fact.constant:
                holders[name, fact.sha256].append(facts.step)
    shared = defaultdict(list)
    for (name, _), steps in holders.items():
        if len(steps) > 1:
            shared[tuple(steps)].append(name)
    for sharing, names in shared.items():
        n = f"{len(names)} matri{'x is' if len(names) == 1 else 'ces are'} the same at"
        if len(sharing) == len(different) > 2:
            text = f"{n} every step ({shown(names)}): trained they were not."
            out.append(Suspicion(kind="frozen", steps=sharing, text=text))
        else:
            listed = ", ".join(map(str, sharing))
            text = f"{n} steps {listed} ({shown(names)}) and not at others: files may be mixed up."
            out.append(Suspicion(kind="shared", steps=sharing, text=text))
    return out


def non_finite(facts: CheckpointFacts) -> list[Suspicion]:
    """NaN and infinity."""
    bad = {name: fact.n_bad for name, fact in facts.tensors.items() if fact.n_bad}
    if not bad:
        return []
    text = f"{said([facts.step])} has {sum(bad.values()):,} numbers that are NaN or infinite, in {shown(list(bad))}."
    return [Suspicion(kind="non-finite", steps=(facts.step,), text=text)]


def constant(facts: CheckpointFacts, series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """Matrices of one number after step 0, and vectors that are so after they were not."""
    before = [other for other in series if other.step < facts.step]
    names = [
        name
        for name, fact in facts.tensors.items()
        if fact.constant
        and (
            facts.step != 0
            if fact.is_matrix
            else any(name in other.tensors and not other.tensors[name].constant for other in before)
        )
    ]
    if not names:
        return []
    text = f"{said([facts.step])} has {len(names)} weights of a single number: {shown(names)}."
    return [Suspicion(kind="constant", steps=(facts.step,), text=text)]


@dataclass(frozen=True, kw_only=True)
class Jump:
    """A value out of line with those of the steps around it."""

    low: int
    step: int
    high: int
    size: float  # above the larger of both, or below the smaller


def norm_jumps(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """Matrices whose norm at one step is out of line with the steps around it."""
    found: dict[tuple[int, int, int], dict[str, float]] = defaultdict(dict)
    for name in {name: None for facts in series for name, fact in facts.tensors.items() if fact.is_matrix}:
        norms = {facts.step: facts.tensors[name].norm for facts in series if name in facts.tensors}
        for jump in jumps({step: math.log(norm) for step, norm in norms.items() if norm}, NORM_FLOOR):
            found[jump.step, jump.low, jump.high][name] = jump.size
    out = []
    for (step, low, high), sizes in sorted(found.items()):
        worst = max(sizes, key=lambda name: abs(sizes[name]))
        text = (
            f"At step {step} the norm of {len(sizes)} matri{'x' if len(sizes) == 1 else 'ces'} is out of line with "
            f"steps {low} and {high}, most of all `{worst}` by a factor of {math.exp(sizes[worst]):.3g}."
        )
        out.append(Suspicion(kind="norm", steps=(step,), text=text))
    return out


def loss_jumps(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """A loss that is no number, or higher at the last step than before it, or out of line with both sides."""
    losses = {facts.step: facts.loss for facts in series if facts.loss is not None}
    out = [
        Suspicion(kind="loss", steps=(step,), text=f"{said([step])} has a loss of {loss}.")
        for step, loss in losses.items()
        if not math.isfinite(loss)
    ]
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss) and step != UNKNOWN_STEP}
    if len(finite) > 1:
        before, last = list(finite)[-2:]
        if finite[last] - finite[before] > LOSS_FLOOR:
            text = f"The loss rises at the last step, from {finite[before]:.3f} at {before} to {finite[last]:.3f}."
            out.append(Suspicion(kind="loss", steps=(last,), text=text))
    rising = {suspicion.steps[0] for suspicion in out}
    for jump in jumps({step: loss for step, loss in finite.items() if step not in rising}, LOSS_FLOOR):
        text = (
            f"At step {jump.step} the loss is {finite[jump.step]:.3f}, out of line with {finite[jump.low]:.3f} at step "
            f"{jump.low} and {finite[jump.high]:.3f} at step {jump.high}."
        )
        out.append(Suspicion(kind="loss", steps=(jump.step,), text=text))
    return out


def jumps(values: Mapping[int, float], floor: float) -> list[Jump]:
    """The largest first; each is left out before the next is sought, or it would make its neighbours look wrong."""
    left, out = {step: value for step, value in values.items() if step != UNKNOWN_STEP}, []
    while len(left) > 2:
        steps = list(left)
        found = [
            Jump(low=low, step=here, high=high, size=out_of_line(left[low], left[here], left[high]))
            for low, here, high in zip(steps, steps[1:], steps[2:], strict=False)
        ]
        worst = max(found, key=lambda jump: abs(jump.size))
        if abs(worst.size) <= floor:
            break
        out.append(worst)
        del left[worst.step]
    return out


def out_of_line(low: int | float, here: int | float, high: int | float) -> float:
    """How far a value lies outside those on both sides; 0 where that is less than half of what separates them."""
    outside = float(here - max(low, high) if here > max(low, high) else min(here - min(low, high), 0))
    return outside if abs(outside) > abs(high - low) / 2 else 0.0
