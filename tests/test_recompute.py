"""A stranger's script, written from the docs, gives the digits of every table of a run (docs/reproduce.md)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

import rareneuron as rn
from rareneuron.embedded.recipe import make_tokenizer
from rareneuron.runs.seeds import STREAMS
from tests.models.conftest import tiny_model
from tests.tiny_series import SHAPE, study_config

SCRIPT = Path(__file__).parent / "recompute"
LAST = Path("steps/10")
FILES = {  # what a finished step holds besides effects: the names under which the script reports it
    "effects.parquet": "effects: ",
    "rank_curve.parquet": "rank curve: ",
    "context_sums.safetensors": "context_sums: ",
    "token_loss.safetensors": "token_loss: ",
    "groups.json": "groups: ",
    "groups.safetensors": "groups: ",
    "geometry.json": "geometry: ",
    "modularity.safetensors": "modularity: ",
    "spectrum.json": "spectrum: ",
    "phases.json": "phases: ",
    "phases.safetensors": "phases: ",
    "experiments.safetensors": "experiments: ",
    "layers.parquet": "layers: ",
    "layers.safetensors": "layers: ",
    "routing.safetensors": "claims: no-routing",
}
ELSEWHERE = {"step.json", "weights.json", "experiments.json", "explorer.json", "explorer.safetensors"}  # see the page
ELSEWHERE |= {"layers.json", "routing.json", "routing.parquet"}


@pytest.fixture(scope="module")
def made(text_file, tmp_path_factory) -> tuple[Path, Path]:
    """A run of a GPT-NeoX of 160 neurons, enough for phases, and of short contexts, enough to resample; its series."""
    series, out = tmp_path_factory.mktemp("series"), tmp_path_factory.mktemp("recomputed") / "run"
    tokenizer = make_tokenizer([text_file.read_text(encoding="utf-8")], vocab_size=400)
    tokenizer.save_pretrained(series)
    for step in (0, 10):
        model = tiny_model("gpt_neox", seed=step, vocab_size=len(tokenizer) + 4, **SHAPE | {"intermediate_size": 160})
        tame(model).save_pretrained(series / f"step{step}")
    few = {
        "n_tokens": 400,
        "context_length": 12,
        "dtype": "float64",
        "layers": "all",
        "units": "neurons",
        "verify": 0.003,
    }
    rn.run_study(study_config(series, text_file, out=str(out), **few))
    return out, series


def tame(model):
    """Let earlier neurons move little, as those of trained models do: otherwise most are patched in every context."""
    with torch.no_grad():
        for layer in model.gpt_neox.layers[:-1]:
            layer.mlp.dense_4h_to_h.weight *= 0.3
    return model


def recomputed(run: Path, series: Path) -> tuple[int, dict[str, dict[str, float]]]:
    """What the script found, run alone: no path but its own and the installed libraries'."""
    done = subprocess.run([sys.executable, "-I", SCRIPT, run, series], capture_output=True, text=True, timeout=300)
    assert not done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert not report["loaded"], "the script shares code with what it checks"
    return done.returncode, report["found"]


@pytest.mark.slow  # 15 s: a study, and all of it once more in loops
def test_a_script_that_knows_the_docs_alone_gives_every_digit(made):
    code, found = recomputed(*made)
    assert not {name: of for name, of in found.items() if not of["agrees"]}
    assert code == 0
    for file in (made[0] / LAST).iterdir():
        assert file.name in ELSEWHERE or any(name.startswith(FILES[file.name]) for name in found), file.name
    assert {"trajectory: kappa", "claims: p_holm", "checks: split-half"} <= set(found)
    tested = {claim.name for claim in rn.open_run(made[0]).claims().claims if claim.tests}
    assert len(tested) == 23, "the run has no tests of some claims, so the script had nothing to compare"


@pytest.mark.slow  # the same once more
def test_one_wrong_number_in_a_file_is_noticed(made, tmp_path):
    run = shutil.copytree(made[0], tmp_path / "run")
    spoil_table(run / LAST / "effects.parquet", "kl")
    spoil_table(run / LAST / "layers.parquet", "common_moved")
    spoil_table(run / "trajectory.parquet", "n_eff")
    for file, name in (("experiments", "rare_norm_part"), ("context_sums", "common_delta_loss")):
        spoil_tensor(run / LAST / f"{file}.safetensors", name)
    spoil_tensor(run / "steps/0/phases.safetensors", "all.band")
    swap(run / "steps/0/groups.safetensors", "matched_pairs")
    spoil_row(run / LAST / "geometry.json", {"statistic": "clusters_ward", "group": "boosting", "null": "matched"})
    spoil_row(run / LAST / "spectrum.json", {"statistic": "pl_alpha_hat", "group": "random"})
    claims = json.loads((run / "claims.json").read_text(encoding="utf-8"))
    claims["claims"][-1]["p_holm"] /= 2
    (run / "claims.json").write_text(json.dumps(claims), encoding="utf-8")
    code, found = recomputed(run, made[1])
    wrong = {name for name, of in found.items() if not of["agrees"]}
    expected = {"effects: kl", "trajectory: n_eff", "experiments: rare_norm_part", "checks: direct", "phases: band"}
    expected |= {"effects from sums: common_delta_loss", "effects from sums: common_delta_loss_se"}
    expected |= {"context_sums: common_delta_loss", "groups: matched_pairs", "claims: p_holm"}
    assert (code, wrong) == (1, expected | {"geometry: p_above", "spectrum: p_above", "layers: common_moved"})


def spoil_table(path: Path, column: str) -> None:
    table = pd.read_parquet(path)
    table.loc[0, column] += 2e-3 * table[column].abs().max()
    table.to_parquet(path)


def spoil_tensor(path: Path, name: str) -> None:
    """Move the largest number by a thousandth; the first may be that of a context without such tokens."""
    tensors = load_file(path)
    tensors[name].flat[np.abs(tensors[name]).argmax()] *= 1.001
    save_file(tensors, path)


def swap(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name][0, :2] = tensors[name][0, 1::-1]
    save_file(tensors, path)


def spoil_row(path: Path, where: dict[str, str]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    row = next(row for row in record["rows"] if where.items() <= row.items())
    row["p_above"] += 1 / 201
    path.write_text(json.dumps(record), encoding="utf-8")


def test_the_page_has_every_stream_with_its_number():
    page = (Path(__file__).parents[1] / "docs/reproduce.md").read_text(encoding="utf-8")
    for name, number in STREAMS.items():
        assert f"| {number} | `{name}` |" in page, f"docs/reproduce.md lacks stream {name}"
