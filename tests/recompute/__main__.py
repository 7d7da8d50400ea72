"""Computes every table of a run folder again from docs alone, as in `python -I tests/recompute RUN SERIES`.

The report is JSON on stdout: what was compared, the largest difference and whether it may be; exit 1 where something
differs. SERIES is the folder of a GPT-NeoX's checkpoints, `step<N>`, that the run is of.
"""

import json
import sys
from pathlib import Path

import claims
import effects
import experiments
import geometry
import groups
import layers
import mechanism
import modularity
import phases
import spectrum
import trajectory
from folder import Report, Run
from gpt_neox import Model


def main(root, series):
    run, report = Run(root), Report()
    for step in run.steps:
        effects.from_sums(run, step, report)
        drawn = groups.check(run, step, report)
    model = Model(Path(series) / f"step{step}")  # the last one
    tokens = effects.from_model(run, step, model, report)
    geometry.check(run, step, drawn, tokens["act"][tokens["rare"]], report)
    modularity.check(run, step, drawn, tokens["act"][tokens["rare"]], tokens["context"][tokens["rare"]], report)
    spectrum.check(run, step, drawn, model, report)
    experiments.check(run, step, drawn, model, tokens, report)
    phases.check(run, run.steps[0], report)
    layers.check(run, step, report)
    trajectory.check(run, report)
    claims.check(run, mechanism.TESTS | layers.TESTS, report)
    loaded = sorted({name.split(".")[0] for name in sys.modules} & {"rareneuron", "torch", "transformers"})
    json.dump({"loaded": loaded, "found": report.found}, sys.stdout, indent=1)
    return int(bool(loaded) or not all(found["agrees"] for found in report.found.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
