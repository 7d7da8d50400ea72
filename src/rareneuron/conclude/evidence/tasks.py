"""Tests whether a task needs the boosting group: the rare-word swap without it, beside random ones, over documents.

Only runs whose last checkpoint was evaluated (`rareneuron evaluate`) are asked. Means are replaced, as in the study.
"""

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.errors import Unavailable
from rareneuron.maths.claims import Comparison, against_groups, bootstrap_test
from rareneuron.maths.significance import FEWEST_CONTEXTS, FEWEST_DRAWS, against_null
from rareneuron.runs.evaluations import SWAP, Evaluation, evaluation_names, read_evaluation
from rareneuron.runs.run import Run

GROUP, WORDS, MEASURE = "boosting", "rare", "margin"
STATISTIC = "change of the margin of rare words over others as frequent, nats"


def evaluated(run: Run) -> Evaluation | None:
    """Return the rare-word swap of a run's last checkpoint without the boosting group; None where it wasn't made."""
    if SWAP not in evaluation_names(run.path) or not run.steps:
        return None
    found = read_evaluation(run.path)
    record = found.record
    fits = record.step == run.steps[-1] and record.layer == run.manifest.layer
    return found if fits and GROUP in record.groups and record.replaced_by == "mean" else None


def tasks_need_the_group(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests that the margin of rare words falls without the group, further than without random ones."""
    found = evaluated(case.run)
    if found is None:
        return Unavailable("The run's last checkpoint was not evaluated on the rare-word swap.")
    items = found.items[found.items["words"] == WORDS]
    if items.empty:
        return Unavailable("The rare-word swap has no item with a rare word.")
    change = (items[f"{MEASURE}_without_{GROUP}"] - items[MEASURE]).to_numpy(np.float64)
    nulls = {null: draws_of(found, null) for null in ("uniform", f"matched-{GROUP}")}
    few = min(map(len, nulls.values()))
    if few < FEWEST_DRAWS:
        return Unavailable(
            f"The evaluation has {few} random groups of a kind, and a p-value from fewer than {FEWEST_DRAWS} cannot "
            "come near 5 %. Evaluate the run with more (--random 1000)."
        )
    n_documents = items["document"].nunique()
    if n_documents < FEWEST_CONTEXTS:
        return Unavailable(
            f"The items with a rare word come from {n_documents} documents, and {FEWEST_CONTEXTS} are needed for a "
            "p-value. Evaluate the run on more text (--max-tokens, --data)."
        )
    mean = float(change.mean())
    tests = [
        against_groups(against_null(mean, draws), STATISTIC, GROUP, null.partition("-")[0], above=False)
        for null, draws in nulls.items()
    ]
    return [*tests, over_documents(change, items["document"].to_numpy(), rng)]


def draws_of(found: Evaluation, null: str) -> np.ndarray:
    """Return the mean change of the margin at rare words without each random group of a kind."""
    draws = found.draws
    chosen = (draws["words"] == WORDS) & (draws["measure"] == MEASURE) & (draws["null"] == null)
    return draws.loc[chosen, "change"].to_numpy(np.float64)


def over_documents(change: np.ndarray, document: np.ndarray, rng: np.random.Generator) -> Comparison:
    """Return the test that the margin falls, documents resampled."""
    _, row = np.unique(document, return_inverse=True)
    sums = np.stack([np.bincount(row, -change), np.bincount(row)], 1).astype(np.float64)
    return bootstrap_test(f"fall in the {STATISTIC.removeprefix('change of the ')}", GROUP, sums, mean_of, rng)


def mean_of(totals: np.ndarray) -> np.ndarray:
    """Return sums over counts."""
    return np.asarray(totals[:, 0] / totals[:, 1])


TASKS: dict[str, Maker] = {"tasks-need-the-group": tasks_need_the_group}
