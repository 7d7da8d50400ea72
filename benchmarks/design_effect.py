"""How many rare tokens should a context give? What a context costs beside a token, and how alike its tokens are.

With K tokens from each of C contexts, the variance of a neuron's mean |Δ| is σ²/(CK) · (1 + (K − 1)ρ), where ρ is the
correlation of |Δ| between tokens of one context (the intraclass correlation, here from a one-way analysis of variance
with groups of unequal size), and the time is C (a + bK), where a is the capture of a context and b the effects at one
rare and one common token. Their product says what a precision costs; the best K is √(a/b · (1 − ρ)/ρ). One JSON line:
seconds, ρ of the median neuron and of the 100 with the largest mean |Δ|, ρ of neighbouring tokens, and the product by
K over its least value, for contexts that hold as many rare tokens as this text's do.

    OMP_NUM_THREADS=1 python benchmarks/design_effect.py                the embedded series
    python benchmarks/design_effect.py MODEL --data TEXT --n-tokens 3000 --counts FILE
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

TOP = 100
CANDIDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
NEAR = 16  # positions


def measured(config) -> dict:
    """Return |Δ| [token, neuron] at all rare tokens of some contexts, their contexts and positions, and seconds."""
    from rareneuron.measure.capture import capture
    from rareneuron.measure.checkpoint import load_checkpoint
    from rareneuron.measure.effects import mean_activations
    from rareneuron.measure.engines import engine_kind
    from rareneuron.measure.pieces import CapturedPieces
    from rareneuron.runs.seeds import generator
    from rareneuron.study.plan import plan_study
    from rareneuron.study.tokens import choose_tokens, study_corpus

    adapter = load_checkpoint(config, plan_study(config).checkpoints[-1])
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    for batch in capture(adapter, selection):  # warm up
        del batch
        break
    source = CapturedPieces(adapter, selection, adapter.n_layers - 1, memory=2**40)
    began = time.process_time()
    means = mean_activations(source, "analysed", lambda _: None)
    capture_seconds = time.process_time() - began
    engine = engine_kind("closed-form").build(adapter, selection, source.layer, 2**31, generator(0, "audit"))
    sizes, rows, spent = [], [], []
    began = time.process_time()
    for block in engine.blocks(source.again(), means):
        spent.append((time.process_time() - began, len(block.batch.index)))
        sizes.append(block.statistics["abs_delta_loss"].float().cpu().numpy()[block.batch.rare])
        rows.append(block.batch.index[block.batch.rare])
        began = time.process_time()
    spent = spent[1:] or spent  # the first block pays for the tables
    rows = np.concatenate(rows)
    return {
        "size": np.concatenate(sizes),
        "context": selection.context[rows],
        "position": selection.position[rows],
        "context_seconds": capture_seconds / len(selection.windows),
        "token_seconds": sum(s for s, _ in spent) / sum(n for _, n in spent),
    }


def icc(size: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Return the intraclass correlation of each neuron, from the mean squares between and within contexts."""
    _, row, n = np.unique(context, return_inverse=True, return_counts=True)
    sums = np.zeros((len(n), size.shape[1]))
    np.add.at(sums, row, size)
    within = ((size - (sums / n[:, None])[row]) ** 2).sum(0) / (len(size) - len(n))
    between = (n[:, None] * (sums / n[:, None] - size.mean(0)) ** 2).sum(0) / (len(n) - 1)
    typical = (len(size) - (n**2).sum() / len(size)) / (len(n) - 1)
    return (between - within) / (between + (typical - 1) * within)


def pairs(context: np.ndarray, position: np.ndarray, *, near: bool) -> Iterator[tuple[int, int]]:
    """Yield pairs of tokens of one context, those at most or those more than `NEAR` positions apart."""
    for which in np.unique(context):
        rows = np.flatnonzero(context == which)
        for i, a in enumerate(rows):
            for b in rows[i + 1 :]:
                if (abs(position[a] - position[b]) <= NEAR) == near:
                    yield a, b


def pair_correlation(size: np.ndarray, context: np.ndarray, position: np.ndarray, *, near: bool) -> np.ndarray:
    """Return each neuron's correlation of |Δ| over such pairs, about its overall mean and variance."""
    a, b = np.array(list(pairs(context, position, near=near))).T
    z = (size - size.mean(0)) / size.std(0)
    total = sum((z[i] * z[j]).sum(0) for i, j in zip(np.array_split(a, 64), np.array_split(b, 64), strict=True))
    return total / len(a)


def cost(k: int, held: np.ndarray, rho: float, a: float, b: float) -> float:
    """Return time times variance of a mean over contexts that give at most k of the rare tokens they hold."""
    n = np.minimum(held, k)
    variance = (n * (1 + (n - 1) * rho)).mean() / n.mean() ** 2  # of one context, in units of σ²
    return variance * (a + b * n.mean())


def main() -> None:
    """Measure, print."""
    import rareneuron as rn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--counts")
    parser.add_argument("--n-tokens", type=int, default=1_500)
    parser.add_argument("--save", help="keep |Δ| by token in this .npz")
    chosen = parser.parse_args()
    config = rn.StudyConfig(
        model=chosen.model,
        steps=None if chosen.model else (4096,),
        data=chosen.data,
        counts=chosen.counts,
        n_tokens=chosen.n_tokens,
        per_context=10**6,
        out="runs/never-written",
    )
    found = measured(config)
    if chosen.save:
        np.savez(chosen.save, **found)
    size, context, position = found["size"], found["context"], found["position"]
    top = np.argsort(-size.mean(0))[:TOP]
    a, b = found["context_seconds"], 2 * found["token_seconds"]
    held = np.unique(context, return_counts=True)[1]
    rho = float(np.median(icc(size[:, top], context)))
    costs = {k: cost(k, held, rho, a, b) for k in CANDIDATES}
    out = {
        "contexts": len(held),
        "rare_tokens": len(size),
        "context_ms": 1e3 * a,
        "rare_and_common_token_ms": 1e3 * b,
        "icc_median": float(np.median(icc(size, context))),
        "icc_top": rho,
        "near_top": float(np.median(pair_correlation(size[:, top], context, position, near=True))),
        "far_top": float(np.median(pair_correlation(size[:, top], context, position, near=False))),
        "best_k": float(np.sqrt(a / b * (1 - rho) / rho)) if rho > 0 else None,
    }
    shown = {name: value if isinstance(value, int | None) else float(f"{value:.3g}") for name, value in out.items()}
    print(json.dumps(shown | {"cost_by_k": {k: round(c / min(costs.values()), 2) for k, c in costs.items()}}))


if __name__ == "__main__":
    main()
