"""Numbers that don't drift: a small study of the embedded series against stored ones.

`python tests/study/test_golden.py --write` stores them anew, where numbers are meant to change (CHANGELOG: Numbers).
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rareneuron.errors import RareNeuronError
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.rankings import RANKINGS
from rareneuron.study.study import run_study

GOLDEN = Path(__file__).parents[1] / "golden" / "embedded_study.json"
SETTINGS = {"steps": (0, 512, 4096), "n_tokens": 300, "group_size": 20, "n_random": 200, "seed": 0}
# Of numbers that are computed: relative, and absolute where a number may be 0. The reasons are in the file.
TOLERANCES = {
    "effects": (1e-4, 2e-7, "float32 forward passes; rounding of another machine's matrix products"),
    "statistics": (2e-3, 1e-5, "functions of effects and activations, some of them of small differences"),
    "fits": (5e-2, 5e-3, "a line between change points, which sit on a grid: one grid point moves the fit"),
}


def golden_numbers(run):
    """What a reader of the paper would look at, per step and at the end."""
    tokens = run.tokens()
    out = {
        "exact": {
            "fingerprint": run.manifest.data.fingerprint,
            "n_rare": int(tokens["rare"].sum()),
            "n_common": int((~tokens["rare"]).sum()),
            "first_targets": tokens["text"].head(8).tolist(),
            "count_at_threshold": run.manifest.data.rarity.count_at_threshold,
        },
        "effects": {},
        "statistics": {},
        "fits": {},
    }
    for step in run.steps:
        table, record = run.effects(step), run.step_record(step)
        size = table["abs_delta_loss"].to_numpy()
        top = table.nsmallest(5, "rank")
        out["effects"] |= {
            f"{step}.loss_rare": record.loss_rare,
            f"{step}.loss_common": record.loss_common,
            f"{step}.abs_delta_loss": np.quantile(size, [0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist(),
            f"{step}.top": top["delta_loss"].tolist(),
            f"{step}.top_se": top["delta_loss_se"].tolist(),
            f"{step}.kl": float(table["kl"].mean()),
            f"{step}.direct": float(table["direct_abs_delta_loss"].mean()),
            f"{step}.common": float(table["common_abs_delta_loss"].mean()),
        }
        out["exact"][f"{step}.top"] = top["neuron"].tolist()
        rows = run.geometry(step)
        for group in ("boosting", "suppressing"):
            for statistic in ("correlation", "cosine"):
                found = rows[(rows["statistic"] == statistic) & (rows["group"] == group)]
                out["statistics"][f"{step}.{statistic}.{group}"] = found["value"].tolist()
        tails = run.spectrum(step)
        for matrix in ("W_in", "W_out"):
            found = tails[(tails["statistic"] == "alpha_hill") & (tails["matrix"] == matrix)]
            out["statistics"][f"{step}.alpha_hill.{matrix}"] = found["value"].tolist()
        for ranking in RANKINGS:
            try:
                phases = run.phases(step, ranking)
            except RareNeuronError:
                continue
            out["fits"][f"{step}.{ranking}"] = [phases.kappa, phases.beta]
    return out


@pytest.mark.slow
def test_a_study_of_the_embedded_series_gives_the_stored_numbers(tmp_path):
    """By two workers and in little memory, where the stored ones came from one process."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    run = run_study(StudyConfig(**SETTINGS, out=str(tmp_path / "run"), workers=2, memory=1))
    found = golden_numbers(run)
    if found["exact"]["fingerprint"] != golden["exact"]["fingerprint"]:
        pytest.skip("other versions of Python or the libraries have other docstrings, so other tokens (tests/SKIPS.md)")
    drifted = drift(found, golden)
    assert not drifted, "\n".join(drifted)


def drift(found, golden):
    """What is not as stored, in words."""
    out = [f"{k}: {found['exact'].get(k)} for {v}" for k, v in golden["exact"].items() if found["exact"].get(k) != v]
    for part, (relative, absolute, _) in TOLERANCES.items():
        if found[part].keys() != golden[part].keys():
            out.append(f"{part}: {sorted(found[part].keys() ^ golden[part].keys())}")
            continue
        for name, value in golden[part].items():
            now, then = np.atleast_1d(found[part][name]), np.atleast_1d(value)
            if now.shape != then.shape or not np.allclose(now, then, rtol=relative, atol=absolute, equal_nan=True):
                out.append(f"{name}: {found[part][name]} for {value}")
    return out


def test_the_comparison_sees_a_drift():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert not drift(golden, golden)
    for part in ("effects", "statistics", "fits"):
        name = next(iter(golden[part]))
        changed = (np.atleast_1d(golden[part][name]) * 1.2).tolist()
        assert len(drift(golden | {part: golden[part] | {name: changed}}, golden)) == 1
    assert len(drift(golden | {"exact": golden["exact"] | {"n_rare": 1}}, golden)) == 1


def write():
    with tempfile.TemporaryDirectory() as folder:
        run = run_study(StudyConfig(**SETTINGS, out=f"{folder}/run"))
        stored = {
            "origin": "a study of the embedded series by this package",
            "command": "python tests/study/test_golden.py --write",
            "settings": SETTINGS,
            "tolerances": {k: {"relative": r, "absolute": a, "reason": why} for k, (r, a, why) in TOLERANCES.items()},
        } | golden_numbers(run)
    GOLDEN.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("Use pytest to compare, and --write to store the numbers anew.")
    write()
