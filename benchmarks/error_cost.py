"""What a smaller error costs: the engine at tolerances from 1e-3 to 1e-7 nats, beside recomputation, as a plot.

The tolerance bounds what an expansion leaves out; pairs that it does not certify are summed over the vocabulary. Every
point is one engine on the same pairs: microseconds a pair, and the rms error of some pairs against float64.

    python benchmarks/error_cost.py --plot docs/images/error-cost.png      three minutes on 2 idle cores
"""

import argparse
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_effects import CHUNK, MEDIAN, SHAPES, Case, embedded, recomputed, rms, seconds, synthetic
from torch import Tensor

from rareneuron.maths.ablation import TOLERANCE, AblationEngine

TOLERANCES = (1e-3, 1e-4, 2e-5, TOLERANCE, 1e-6, 1e-7)
AUDITED = slice(0, 64), 4 * CHUNK  # tokens, neurons


def measure(name: str, case: Case) -> list[dict]:
    """A record for each tolerance, and those of full sums and of recomputation."""
    tokens, n_neurons = AUDITED
    neurons = torch.randperm(len(case.W_out), generator=torch.Generator().manual_seed(1))[:n_neurons]
    few = slice(0, 4)
    reference = AblationEngine(case.readout, case.W_out[neurons], precision="reference", memory=2**62)
    exact = AblationEngine(case.readout, case.W_out[neurons], precision="exact")
    engines = [AblationEngine(case.readout, case.W_out, tolerance=tolerance) for tolerance in TOLERANCES]

    def summed(engine: AblationEngine, at: slice) -> Tensor:
        return engine.effects(case.resid[at], case.shift[at][:, neurons], case.target[at]).delta_loss

    truth = summed(reference, tokens)
    *fast, full, slow = seconds(
        *[partial(engine.effects, case.resid, case.shift, case.target) for engine in engines],
        lambda: summed(exact, few),
        lambda: recomputed(case, few, neurons),
    )
    rows = []
    for tolerance, engine, taken in zip(TOLERANCES, engines, fast, strict=True):
        found = engine.effects(case.resid, case.shift, case.target)
        told = {"case": name, "kind": "expansion", "tolerance": tolerance, "full_sum_share": found.full_share}
        rows.append(told | record(taken / case.shift.numel(), found.delta_loss[tokens][:, neurons] - truth))
    for kind, taken, delta in (
        ("full sums", full, summed(exact, tokens)),
        ("recomputed", slow, recomputed(case, tokens, neurons)),
    ):
        rows.append({"case": name, "kind": kind} | record(taken / (few.stop * n_neurons), delta - truth))
    return rows


def record(taken: float, error: Tensor) -> dict[str, float]:
    """Cost and error of a pair."""
    return {"us_per_pair": 1e6 * taken, "rms": rms(error), "max": error.abs().max().item()}


def plot(rows: list[dict], path: Path) -> None:
    """A panel a case: cost to the right, error upwards."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), sharey=True, layout="constrained")
    for panel, name in zip(panels, names, strict=True):
        of = [row for row in rows if row["case"] == name]
        curve = [row for row in of if row["kind"] == "expansion"]
        panel.loglog([r["us_per_pair"] for r in curve], [r["rms"] for r in curve], "o-", color="C0", label="expansion")
        for n, row in enumerate(curve):
            default = " (default)" if row["tolerance"] == TOLERANCE else ""
            text = f"{row['tolerance']:.0e}".replace("e-0", "e-") + default
            offset, side = ((6, 2), "left") if n % 2 else ((-6, -4), "right")  # by turns, since points lie close
            place = row["us_per_pair"], row["rms"]
            panel.annotate(text, place, offset, textcoords="offset points", fontsize=7, ha=side)
        for kind, marker, colour in (("full sums", "s", "C2"), ("recomputed", "D", "C1")):
            row = next(row for row in of if row["kind"] == kind)
            panel.plot(row["us_per_pair"], row["rms"], marker, color=colour, label=f"{kind}, float32")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("µs per pair")
        panel.margins(x=0.22, y=0.12)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("rms error of a pair's Δ, nats")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="image to write")
    parser.add_argument("--tokens", type=int, default=320)
    arguments = parser.parse_args()
    shape, rows = SHAPES["pythia-70m"], []
    for size in ("realistic", "heavy"):
        rows += measure(f"Pythia-70M's shape, {size}", synthetic(shape, arguments.tokens, MEDIAN[size]))
    rows += measure("embedded series", embedded(arguments.tokens))
    for row in rows:
        print(json.dumps(row))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
