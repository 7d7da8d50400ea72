"""Suspicions about the weights of a series: facts about each checkpoint, and what doesn't fit among them.

Public series are often wrong: the same weights under two steps, a file of another step, steps that are missing. Every
tensor is read once, one at a time, for its hash, its norm and its non-finite numbers; a checkpoint is then compared
with its neighbours. Identical weights and non-finite numbers are facts. A jump is a norm or loss outside the range of
both neighbours by more than half of what separates them, and by more than a floor: training seldom does that, and a
wrong file nearly always, so a jump is a reason to look and no proof. Oracle: tests/models/test_suspicions.py, series
spoiled in one known way each.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rareneuron.errors import BrokenCheckpoint
from rareneuron.models.checkpoints import step_order
from rareneuron.models.loading import BUFFERS, read_header

NORM_FLOOR = math.log(1.1)  # a norm within 10 % of its neighbours isn't a jump
LOSS_FLOOR = 0.1  # nats per token
NAMES_IN_A_SENTENCE = 3


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """What is known of one stored tensor."""

    sha256: str  # of its bytes
    shape: tuple[int, ...]
    norm: float | None  # Frobenius; None where a number isn't finite
    n_bad: int  # numbers that are NaN or infinite
    constant: bool  # more than one number, and all the same

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor has rows, which training never leaves equal."""
        return len(self.shape) > 1 and math.prod(self.shape) > 1


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What is known of one checkpoint; where it couldn't be read `tensors` is empty, and `error` says why."""

    step: int | None  # None where the name doesn't say
    name: str  # where it is
    tensors: Mapping[str, TensorFacts]
    loss: float | None = None  # nats per token, the same text at every checkpoint
    error: str | None = None

    @property
    def weights(self) -> str | None:
        """One hash over all tensors, whatever files they lie in; None where nothing could be read."""
        if not self.tensors:
            return None
        content = "".join(f"{name} {fact.sha256}\n" for name, fact in sorted(self.tensors.items()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def n_params(self) -> int:
        """How many numbers are stored."""
        return sum(math.prod(fact.shape) for fact in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Something about the weights that a reader of results from these steps should know."""

    kind: str  # unreadable, identical, shared, frozen, missing, non-finite, constant, norm or loss
    steps: tuple[int | None, ...]
    text: str


def tensor_facts(folder: Path) -> dict[str, TensorFacts]:
    """Facts about every weight of a model's folder, by name; weights are read one at a time."""
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
    """Facts about one tensor of any type."""
    flat = tensor.contiguous().reshape(-1)
    n_bad = int((~torch.isfinite(flat)).sum()) if flat.is_floating_point() else 0
    return TensorFacts(
        sha256=hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest(),
        shape=tuple(tensor.shape),
        norm=None if n_bad else math.sqrt(sum(float((part.double() ** 2).sum()) for part in flat.split(1 << 22))),
        n_bad=n_bad,
        constant=len(flat) > 1 and bool((flat == flat[0]).all()),
    )


def facts_from_record(step: int | None, name: str, stored: Mapping[str, Any], loss: float | None) -> CheckpointFacts:
    """Facts about a checkpoint from a JSON record, which has `asdict` of each `TensorFacts`."""
    tensors = {key: TensorFacts(**{**fact, "shape": tuple(fact["shape"])}) for key, fact in stored.items()}
    return CheckpointFacts(step=step, name=name, tensors=tensors, loss=loss)


def suspicions(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """All suspicions about checkpoints, which are given in the order of their steps."""
    there = [facts for facts in series if facts.tensors]
    found = [
        Suspicion(kind="unreadable", steps=(facts.step,), text=f"{in_words([facts.step])} can't be used: {facts.error}")
        for facts in series
        if facts.error is not None
    ]
    found += gaps(sorted({facts.step for facts in series if facts.step is not None}))
    found += equal_weights(there)
    for facts in there:
        found += non_finite_numbers(facts) + constant_weights(facts, there)
    return found + norm_jumps(there) + loss_jumps(there)


def in_words(steps: Sequence[int | None]) -> str:
    """Steps as the beginning of a sentence names them."""
    named = ["of unknown number" if step is None else f"{step}" for step in steps]
    return f"Step {named[0]}" if len(named) == 1 else f"Steps {', '.join(named[:-1])} and {named[-1]}"


def first_few(names: Sequence[str]) -> str:
    """The first names of a list, as a sentence gives them."""
    few = ", ".join(names[:NAMES_IN_A_SENTENCE])
    return few + (", …" if len(names) > NAMES_IN_A_SENTENCE else "")


def gaps(steps: Sequence[int]) -> list[Suspicion]:
    """Steps that are absent from a series whose spacing, or whose factor, is the same on both sides of the gap."""
    out = []
    for index, (low, high) in enumerate(pairwise(steps)):
        left, right = steps[max(index - 2, 0) : index + 1], steps[index + 1 : index + 4]
        even = common_spacing([b - a for a, b in pairwise(left)], [b - a for a, b in pairwise(right)])
        absent: list[int] = []
        if even and (high - low) % even == 0:
            absent = list(range(low + even, high, even))
        elif left[0] > 0:
            factor = common_spacing([b / a for a, b in pairwise(left)], [b / a for a, b in pairwise(right)])
            if factor and factor > 1:
                times = math.log(high / low) / math.log(factor)
                if abs(times - round(times)) < 1e-6:
                    absent = [round(low * factor**k) for k in range(1, round(times))]
        if absent:
            text = (
                f"Between steps {low} and {high} the spacing of their neighbours leaves out {len(absent)}: "
                f"{first_few([str(step) for step in absent])}."
            )
            out.append(Suspicion(kind="missing", steps=(low, high), text=text))
    return out


def common_spacing(left: Sequence[int | float], right: Sequence[int | float]) -> Any:
    """The smallest spacing on either side of a gap, where both are the same; else None."""
    return min(left) if left and right and math.isclose(min(left), min(right), rel_tol=1e-9) else None


def equal_weights(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """Suspicions about checkpoints whose weights are equal as a whole, or in some matrices."""
    whole, out = defaultdict(list), []
    for facts in series:
        whole[facts.weights].append(facts)
    for equal in whole.values():
        if len(equal) > 1:
            steps = tuple(facts.step for facts in equal)
            text = f"{in_words(steps)} have identical weights: {len(steps) - 1 if len(steps) > 2 else 'one'} of them "
            text += "are not what their names say." if len(steps) > 2 else "is not what its name says."
            out.append(Suspicion(kind="identical", steps=steps, text=text))
    different = [equal[0] for equal in whole.values()]
    holders = defaultdict(list)
    for facts in different:
        for name, fact in facts.tensors.items():
            if fact.is_matrix and not fact.constant:
                holders[name, fact.sha256].append(facts.step)
    matrices = defaultdict(list)  # by the steps that share them
    for (name, _), holding in holders.items():
        if len(holding) > 1:
            matrices[tuple(holding)].append(f"`{name}`")
    for sharing, names in matrices.items():
        n = f"{len(names)} matri{'x is' if len(names) == 1 else 'ces are'}"
        if len(sharing) == len(different) > 2:
            never = "it was never trained" if len(names) == 1 else "they were never trained"
            text = f"{n} identical at every step ({first_few(names)}), so {never}."
            out.append(Suspicion(kind="frozen", steps=sharing, text=text))
        else:
            listed = ", ".join("unknown" if step is None else str(step) for step in sharing)
            text = f"{n} the same at steps {listed} ({first_few(names)}) and not at others: files may be mixed up."
            out.append(Suspicion(kind="shared", steps=sharing, text=text))
    return out


def non_finite_numbers(facts: CheckpointFacts) -> list[Suspicion]:
    """The suspicion about a checkpoint with NaN or infinity, if it has any."""
    bad = {f"`{name}`": fact.n_bad for name, fact in facts.tensors.items() if fact.n_bad}
    if not bad:
        return []
    n = sum(bad.values())
    text = f"{in_words([facts.step])} has {n:,} numbers that are NaN or infinite, in {first_few(list(bad))}."
    return [Suspicion(kind="non-finite", steps=(facts.step,), text=text)]


def constant_weights(facts: CheckpointFacts, series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """The suspicion about matrices of a single number after step 0, and about vectors that became so in training."""
    before = [other for other in series if step_order(other.step) < step_order(facts.step)]
    names = [
        f"`{name}`"
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
    text = f"{in_words([facts.step])} has {len(names)} weights of a single number: {first_few(names)}."
    return [Suspicion(kind="constant", steps=(facts.step,), text=text)]


@dataclass(frozen=True, kw_only=True)
class Jump:
    """A step whose value is out of line with those of the steps around it."""

    low: int
    step: int
    high: int
    size: float  # above the larger of both, or below the smaller


def norm_jumps(series: Sequence[CheckpointFacts]) -> list[Suspicion]:
    """Suspicions about matrices whose norm at one step is out of line with the steps around it."""
    found: dict[tuple[int, int, int], dict[str, float]] = defaultdict(dict)
    for name in {name: None for facts in series for name, fact in facts.tensors.items() if fact.is_matrix}:
        norms = by_step(series, lambda facts, name=name: facts.tensors[name].norm if name in facts.tensors else None)
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
    """Suspicions about losses: not finite, rising at the last step, or out of line with both sides."""
    out = [
        Suspicion(kind="loss", steps=(facts.step,), text=f"{in_words([facts.step])} has a loss of {facts.loss}.")
        for facts in series
        if facts.loss is not None and not math.isfinite(facts.loss)
    ]
    finite = by_step(series, lambda facts: facts.loss)
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


def by_step(series: Sequence[CheckpointFacts], value: Callable[[CheckpointFacts], float | None]) -> dict[int, float]:
    """A finite value of each checkpoint that has one and whose step is known."""
    values = {facts.step: value(facts) for facts in series if facts.step is not None}
    return {step: x for step, x in values.items() if x is not None and math.isfinite(x)}


def jumps(values: Mapping[int, float], floor: float) -> list[Jump]:
    """Values out of line with both neighbours, the largest first.

    Each is left out before the next is sought, or it would make its neighbours look wrong.
    """
    left, out = dict(values), []
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
    """The distance of a value from the range of its neighbours; 0 where it is less than half of that range."""
    outside = float(here - max(low, high) if here > max(low, high) else min(here - min(low, high), 0))
    return outside if abs(outside) > abs(high - low) / 2 else 0.0
