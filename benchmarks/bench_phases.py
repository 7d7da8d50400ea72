"""How often `fit_phases` says "three phases" where there are none, and where there are.

Prints one JSON line per cell and writes both tables between the markers of docs/phases.md. Planted curves:
log|Δ| = −κ log r + lift·[r ≤ p] − max(r/d − 1, 0) with d = 0.3 N, per neuron as sums over contexts whose standard error
of the mean is `noise`; `sampled`: the r are no integers but order statistics of a sample, as in the nulls. Half of the
curves are fitted with their sums per context, half without. *Found*: `three phases`, both boundaries within a factor
1.5 in rank.

    python benchmarks/bench_phases.py            every cell, into docs/phases.md: 3 hours of one core
    python benchmarks/bench_phases.py --quick    a few of each, printed alone
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from rareneuron.maths.phase_fit import fit_phases
from rareneuron.maths.phases import ContextSums
from rareneuron.maths.rank_curve import rank_curve

N_CONTEXTS = 200
TOKENS_PER_CONTEXT = 8
DECAY = 0.3  # of N
WITHIN = 1.5
PAGE = Path(__file__).resolve().parents[1] / "docs" / "phases.md"
MARKERS = ("<!-- bench_phases: begin -->\n", "<!-- bench_phases: end -->\n")

NO_PHASES = {
    "half-normal": lambda rng, n: np.abs(rng.standard_normal(n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    **{f"lognormal σ {s}": lambda rng, n, s=s: rng.lognormal(0, s, n) for s in (0.5, 1, 1.5, 2)},
    **{f"Weibull shape {k}": lambda rng, n, k=k: rng.weibull(k, n) for k in (0.5, 0.7, 1.5)},
    **{f"power law κ {k}": lambda rng, n, k=k: rng.random(n) ** -k for k in (0.2, 0.5, 1)},
    "power law and decay": lambda rng, n: np.exp(log_effects(n, 0, 0, 0.4, True, rng)),
}


@dataclass(frozen=True)
class Plant:
    """A curve with three phases."""

    n: int
    share: float  # of the neurons in the plateau
    lift: float
    noise: float
    kappa: float = 0.4
    sampled: bool = False


def log_effects(n: int, plateau: int, lift: float, kappa: float, sampled: bool, rng: np.random.Generator) -> np.ndarray:
    """Rank 1 first, before any noise of measurement."""
    rank = np.arange(1, n + 1)
    place = np.sort(rng.random(n)) * n if sampled else rank
    return -kappa * np.log(place) + lift * (rank <= plateau) - np.maximum(place / (DECAY * n) - 1, 0)


def contexts_of(plant: Plant, rng: np.random.Generator) -> ContextSums:
    """Sums per context of shuffled neurons; gamma noise, so that they are positive."""
    true = np.exp(log_effects(plant.n, round(plant.share * plant.n), plant.lift, plant.kappa, plant.sampled, rng))
    variance = plant.noise**2 * N_CONTEXTS  # of one context's sum, relative
    sums = rng.permutation(true) * rng.gamma(1 / variance, variance, (N_CONTEXTS, plant.n)) * TOKENS_PER_CONTEXT
    return ContextSums(sums=sums.astype(np.float32), n_tokens=np.full(N_CONTEXTS, TOKENS_PER_CONTEXT))


def outcome_without(job: tuple[str, int, int, int]) -> str:
    """What is said of a sample that has no phases."""
    name, n, seed, n_draws = job
    rng = np.random.default_rng([seed, n, list(NO_PHASES).index(name)])
    return fit_phases(rank_curve(NO_PHASES[name](rng, n)), rng=rng, n_draws=n_draws).outcome


def outcome_with(job: tuple[Plant, int, int]) -> tuple[str, bool]:
    """What is said of a planted curve, and whether the boundaries are right."""
    plant, seed, n_draws = job
    rng = np.random.default_rng(seed)
    contexts = contexts_of(plant, rng)
    curve = rank_curve(contexts.sums.sum(0, dtype=np.float64) / contexts.n_tokens.sum())
    found = fit_phases(curve, contexts if seed % 2 else None, rng, n_draws=n_draws)
    if found.plateau_end is None or found.decay_start is None:
        return found.outcome, False
    off = np.log([found.plateau_end / (plant.share * plant.n), found.decay_start / (DECAY * plant.n)])
    return found.outcome, bool((np.abs(off) <= np.log(WITHIN)).all())


def plants(quick: bool) -> Iterator[Plant]:
    """The cells of the power table."""
    if quick:
        yield from (Plant(n, 0.02, 0.5, 0.05) for n in (512, 2_048))
        return
    for n, share, lift, noise in product((512, 2_048, 4_096), (0.01, 0.03), (0.3, 0.5, 1.0), (0.03, 0.1)):
        yield Plant(n, share, lift, noise)
    yield from (Plant(n, 0.02, 0.5, 0.05, kappa) for n, kappa in product((512, 2_048), (0.2, 0.8)))
    yield from (Plant(n, 0.02, lift, 0.05, sampled=True) for n, lift in product((512, 2_048), (0.5, 1.0)))


def tables(without: list[dict], planted: list[dict]) -> str:
    """Markdown, both tables."""
    out = [
        "| no phases, N | three phases | no plateau | no decay | no power law | samples | draws |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in without:
        said = [row["said"].get(o, 0) for o in ("three phases", "no plateau", "no decay", "no power law")]
        out.append(f"| {row['sample']}, {row['n']} | {' | '.join(map(str, said))} | {row['seeds']} | {row['draws']} |")
    out += [
        "",
        "| N | plateau | lift | noise | κ | three phases | found | curves | draws |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    out += [
        f"| {r['n']} | {r['share']:.0%} = {round(r['share'] * r['n'])} | {r['lift']} | {r['noise']:.0%} | {r['kappa']}"
        f"{', sampled' if r['sampled'] else ''} | {r['said']:.0%} | {r['found']:.0%} | {r['seeds']} | {r['draws']} |"
        for r in planted
    ]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200, help="null samples, and bootstrap draws")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--table", type=Path, help="default: docs/phases.md; with --quick, none")
    arguments = parser.parse_args()
    seeds, draws = (10, 40) if arguments.quick else (arguments.seeds, arguments.draws)
    table = arguments.table or (None if arguments.quick else PAGE)
    without, planted = [], []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for plant in plants(arguments.quick):
            found = list(pool.map(outcome_with, [(plant, seed, draws) for seed in range(seeds)]))
            said = np.mean([outcome == "three phases" for outcome, _ in found])
            right = np.mean([inside for _, inside in found])
            planted.append(
                {**asdict(plant), "said": float(said), "found": float(right), "seeds": seeds, "draws": draws}
            )
            print(json.dumps(planted[-1]), flush=True)
        for n, name in product((512,) if arguments.quick else (512, 2_048, 4_096), NO_PHASES):
            said = Counter(pool.map(outcome_without, [(name, n, seed, draws) for seed in range(seeds)]))
            without.append({"sample": name, "n": n, "said": said, "seeds": seeds, "draws": draws})
            print(json.dumps(without[-1], ensure_ascii=False), flush=True)
    if table:
        head, rest = table.read_text(encoding="utf-8").split(MARKERS[0])
        tail = rest.split(MARKERS[1])[1]
        text = head + MARKERS[0] + "\n" + tables(without, planted) + "\n" + MARKERS[1] + tail
        table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
