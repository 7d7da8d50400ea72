"""Is an effect of the size that a test says it would find found in 80 % of cases, and what do runs take to find theirs?

Without arguments: one line for each null, level and direction. Groups: many sets of draws, each with fresh values moved
by the size found for that set. Contexts: skewed sums, every time new ones, moved by the mean size. "By sd": the share
found of what standard deviations would say, (z_p + z_0.8) sd. With a run: for each claim, what its tests find
with their groups and with their contexts, and how many contexts the effect that matters would take; `study --dry-run`
has these numbers (`study.power`).

    OMP_NUM_THREADS=1 python benchmarks/power.py
    OMP_NUM_THREADS=1 python benchmarks/power.py RUN
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from rareneuron.conclude.evidence import evidence_for
from rareneuron.conclude.evidence.case import Case
from rareneuron.conclude.hypotheses import hypotheses
from rareneuron.errors import Unavailable
from rareneuron.maths.claims import against_groups, bootstrap_test
from rareneuron.maths.power import POWER, contexts_needed, critical_p
from rareneuron.maths.significance import FEWEST_CONTEXTS, against_null
from rareneuron.maths.verdicts import seen_by
from rareneuron.runs.run import open_run

DRAWS, SETS, VALUES = 999, 150, 400
LEVELS = (1, 4, 15, 25)  # claims of a table
SAMPLES: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "gamma 2": lambda rng, n: rng.gamma(2, size=n),
    "means of 5 lognormal": lambda rng, n: rng.lognormal(size=(n, 5)).mean(1),
    "whole numbers, sd 1": lambda rng, n: np.round(rng.normal(size=n)),
}


def found_of_groups(name: str, n_tests: int, above: bool) -> tuple[float, float, float]:
    """Return the share found of groups moved by the detectable size, its error, and the same by standard deviations."""
    rng, sample, counts = np.random.default_rng(0), SAMPLES[name], name.startswith("whole")
    p, sign, shares = critical_p(1 / (1 + DRAWS), n_tests), 1 if above else -1, []
    for _ in range(SETS):
        drawn = np.sort(sample(rng, DRAWS))
        test = against_groups(against_null(0.0, drawn), "", "", "", above=above, step=float(counts))
        assert test.noise is not None
        size = test.noise.detectable(p, POWER)
        sizes = (np.ceil(size) if counts else size, (ndtri(1 - p) + ndtri(POWER)) * drawn.std())
        values = sample(rng, VALUES)
        shares.append([share_beyond(drawn, values + sign * x, p, above=above) for x in sizes])
    mean, error = np.mean(shares, 0), np.std(shares, 0) / np.sqrt(SETS)
    return float(mean[0]), float(error[0]), float(mean[1])


def share_beyond(drawn: np.ndarray, values: np.ndarray, p: float, *, above: bool) -> float:
    """Return the share of values whose one-sided p among sorted draws is at most p."""
    beyond = len(drawn) - np.searchsorted(drawn, values) if above else np.searchsorted(drawn, values, "right")
    return float(((1 + beyond) / (1 + len(drawn)) <= p).mean())


def found_of_contexts(n_contexts: int, sign: int, n_tests: int, repeats: int = 600) -> tuple[float, float]:
    """Return the share found of effects of the detectable size over contexts whose sums are skewed, and its error."""
    rng, p = np.random.default_rng(0), critical_p(1 / (1 + DRAWS), n_tests)

    def test(effect: float):
        tokens = rng.integers(1, 8, n_contexts)
        sums = np.stack([sign * (rng.gamma(0.5 * tokens) - 0.5 * tokens) + effect * tokens, tokens], 1)
        return bootstrap_test("", None, sums, lambda t: t[:, 0] / t[:, 1], rng, n_draws=DRAWS)

    size = float(np.mean([test(0.0).noise.detectable(p, POWER) for _ in range(repeats // 4)]))
    share = float(np.mean([test(size).p <= p for _ in range(repeats)]))
    return share, float(np.sqrt(share * (1 - share) / repeats))


def simulations() -> None:
    """Print what is found of effects of the detectable size."""
    print("| null | claims | direction | found, % | by sd, % |\n|---|---|---|---|---|")
    for name in SAMPLES:
        for n_tests in LEVELS:
            for above in (True, False):
                share, error, by_sd = found_of_groups(name, n_tests, above)
                side = "above" if above else "below"
                print(f"| {name} | {n_tests} | {side} | {100 * share:.1f} ± {100 * error:.1f} | {100 * by_sd:.0f} |")
    for n_contexts in (40, 80, 240):
        for sign in (1, -1):
            for n_tests in (4, 15):
                share, error = found_of_contexts(n_contexts, sign, n_tests)
                side = "right" if sign > 0 else "left"
                what = f"{n_contexts} contexts, skewed to the {side}"
                print(f"| {what} | {n_tests} | above | {100 * share:.1f} ± {100 * error:.1f} | |")


def of_run(path: Path) -> None:
    """Print what each claim's tests find with their groups and with their contexts, and what they would take."""
    run = open_run(path)
    case = Case(run)
    asked = hypotheses(gated=case.has_gate, signed=not case.gauge.sign, layers=run.has_layers())
    evidence = {h.name: (h, evidence_for(case, h.name)) for h in asked}
    n_tested = sum(not isinstance(tests, Unavailable) for _, tests in evidence.values())
    print(f"{n_tested} claims tested\n| claim | matters | found from, groups | contexts | needed | rare tokens |")
    for name, (hypothesis, tests) in evidence.items():
        if isinstance(tests, Unavailable):
            continue
        parts = {over: [test for test in tests if test.over == over] for over in ("groups", "contexts")}
        size = {over: seen_by(hypothesis, part, n_tested).detectable for over, part in parts.items() if part}
        row = [name, f"{hypothesis.smallest:g}", f"{size['groups']:.3g}" if "groups" in size else ""]
        if "contexts" in size:
            test = parts["contexts"][0]
            n, n_tokens = test.n_contexts or 0, test.n_tokens or 0
            needed = max(FEWEST_CONTEXTS, contexts_needed(n, size["contexts"], hypothesis.smallest))
            row += [f"{size['contexts']:.3g} with {n}", str(needed), str(round(needed * n_tokens / n))]
        print("|", " | ".join(row), "|")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder")
    run = parser.parse_args().run
    simulations() if run is None else of_run(run)


if __name__ == "__main__":
    main()
