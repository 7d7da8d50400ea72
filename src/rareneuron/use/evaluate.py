"""Evaluates a run's groups on tasks: which groups, beside which random ones, and what is kept of it in the run."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Int

from rareneuron.data.swaps import SwapPairs
from rareneuron.errors import InvalidConfig, Unavailable
from rareneuron.maths.significance import FEWEST_CONTEXTS
from rareneuron.models.adapter import Adapter
from rareneuron.runs.evaluations import SWAP, Evaluation, write_evaluation
from rareneuron.runs.groups import mostly_itself
from rareneuron.runs.records import EvaluationRecord
from rareneuron.runs.run import Run
from rareneuron.use.model import run_model
from rareneuron.use.scores import UNIFORM, draws_table, items_table, summary
from rareneuron.use.swap import Groups, made_pairs, swap_scores, swap_text
from rareneuron.use.units import opened_run

ROLES = ("boosting", "suppressing")
RANDOM_GROUPS = 1000  # of each kind, where a group costs two logits an item
RANDOM_RUNS = 20  # of each kind, where a group costs a forward pass of all items
SHOWN_BEFORE = 24  # tokens of an item's context that its table shows


def evaluate_swap(
    run: Run | str | Path,
    *,
    groups: Sequence[str] = ROLES,
    n_random: int | None = None,
    n_items: int = 500,
    n_following: int = 0,
    to: str = "mean",
    data: str | Path | None = None,
    text_field: str | None = None,
    max_tokens: int = 2_000_000,
    step: int | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Evaluation:
    """Score the rare-word swap with and without a run's groups, and keep the result in the run folder.

    Args:
        run: A run, or its folder.
        groups: Which groups of the run to switch off: boosting, suppressing.
        n_random: Random groups of each kind; by default the run's own, up to 1,000, or 20 where the layer has no
            closed form and every group costs a forward pass.
        n_items: Items with a rare word at most, and as many with a common one.
        n_following: Tokens behind the word that are scored, too; each costs two readouts for every item and group.
        to: What replaces the group: its mean over rare targets, or zero.
        data: A text to make items of, in place of what the study left of its own.
        text_field: Where its records have the text.
        max_tokens: How much of the text is read.
        step: The run's checkpoint; the last one by default.
        seed: Which items are drawn.
        adapter: The run's model, if it is loaded already.

    Returns:
        A summary with paired differences, every item, and every random group.

    Raises:
        InvalidConfig: A group or a replacement isn't known.
        MissingText: The text has changed since the study, or no document is left.
        NotMeasured: The run has no groups.

    Source:
        The paper's limitations, which ask for tasks.

    Example:
        >>> import rareneuron as rn
        >>> config = rn.StudyConfig(
        ...     steps=(4096,), n_tokens=200, max_corpus_tokens=200_000, group_size=20, n_random=200, out="runs/small"
        ... )
        >>> run = rn.run_study(config, progress=False)
        >>> found = rn.evaluate_swap(run, n_items=60, max_tokens=300_000)
        >>> sorted(found.table["measure"].unique())
        ['accuracy', 'log p', 'margin']
    """
    opened = opened_run(run)
    assert opened is not None, "a run is given"
    refuse_unknown(groups, to)
    began = perf_counter()
    adapter = run_model(opened, step) if adapter is None else adapter
    text = swap_text(opened, data, text_field)
    pairs = made_pairs(
        opened, adapter, text, n_items=n_items, n_following=n_following, max_tokens=max_tokens, seed=seed
    )
    made = perf_counter()
    runs_again = isinstance(adapter.readout_behind(opened.manifest.layer), Unavailable)
    n = (RANDOM_RUNS if runs_again else RANDOM_GROUPS) if n_random is None else n_random
    named, random = compared_groups(opened, groups, n, step)
    scores, how = swap_scores(opened, adapter, pairs, named, random, n_following=n_following, to=to, step=step)
    ended = perf_counter()
    record = EvaluationRecord(
        name=SWAP,
        tasks=(SWAP,),
        **of_run(opened, step),
        groups=tuple(groups),
        replaced_by=to,
        n_random=max(map(len, random.values()), default=0),
        seed=seed,
        scored=how,
        text=text.corpus.name,
        n_items_asked=n_items,
        n_following=n_following,
        n_places=pairs.n_places,
        n_alone=pairs.n_alone,
        n_documents_left=pairs.n_documents,
        seconds={"items": made - began, "scores": ended - made},
        warnings=warnings_of(pairs) + shared_members(named, random),
    )
    found = Evaluation(
        record=record,
        table=summary(scores),
        items=items_table(scores).assign(**words_of(pairs, adapter)),
        draws=draws_table(scores),
    )
    write_evaluation(opened.path, found)
    return found


def refuse_unknown(groups: Sequence[str], to: str) -> None:
    """Refuse groups that a run doesn't have, and replacements that aren't constants."""
    unknown = [group for group in groups if group not in ROLES]
    if unknown or not groups:
        found = f"There is no group {unknown[0]!r} to evaluate" if unknown else "No group was named"
        raise InvalidConfig(f"{found}. Those of a run that can be: {', '.join(ROLES)}.")
    if to not in ("mean", "zero"):
        raise InvalidConfig(f"to = {to!r} is not known. Use mean or zero.")


def of_run(run: Run, step: int | None) -> dict[str, Any]:
    """Return what an evaluation's record says of the run that it is of."""
    record = run.step_record(step)
    return {
        "step": record.step,
        "layer": run.manifest.layer,
        "model": record.model.source,
        "weights_sha256": record.model.weights_sha256,
        "rareneuron": version("rareneuron"),
    }


def compared_groups(
    run: Run, groups: Sequence[str], n_random: int, step: int | None
) -> tuple[dict[str, Int[np.ndarray, "one size"]], dict[str, Int[np.ndarray, "_ size"]]]:
    """Return the groups to evaluate, and the first random ones of the run: uniform, and matched to each."""
    found = run.groups(step)
    named = {group: getattr(found, group)[None] for group in groups}
    random = {UNIFORM: found.random[:n_random]} if n_random else {}
    random |= {f"matched-{group}": found.matched[group][:n_random] for group in groups if group in found.matched}
    return named, {name: drawn for name, drawn in random.items() if len(drawn)}


def warnings_of(pairs: SwapPairs) -> tuple[str, ...]:
    """Return what to know about the items before anything is read from them."""
    out = []
    n_documents, n_rare = len(np.unique(pairs.document)), int(pairs.rare.sum())
    if n_documents < FEWEST_CONTEXTS:
        out.append(
            f"The items come from {n_documents} documents, and {FEWEST_CONTEXTS} are needed for intervals to be right. "
            "Read more text (--max-tokens), or give other text (--data)."
        )
    if n_rare < FEWEST_CONTEXTS:
        out.append(f"Only {n_rare} items have a rare word.")
    return tuple(out)


def shared_members(named: Groups, random: Groups) -> tuple[str, ...]:
    """Return a warning for each group whose matched random groups are mostly made of its own neurons."""
    found = (
        mostly_itself(group, np.unique(members), random.get(f"matched-{group}")) for group, members in named.items()
    )
    return tuple(warning for warning in found if warning is not None)


def words_of(pairs: SwapPairs, adapter: Adapter) -> dict[str, list[str]]:
    """Return the text before each item's word, the word, and the other one."""
    decode = adapter.tokenizer.decode
    windows = pairs.windows[pairs.context]
    before = [
        decode(window[max(0, t + 1 - SHOWN_BEFORE) : t + 1].tolist())
        for window, t in zip(windows, pairs.position, strict=True)
    ]
    return {
        "before": before,
        "original": [decode([i]) for i in pairs.original.tolist()],
        "swap": [decode([i]) for i in pairs.swap.tolist()],
    }
