"""The command line: what it prints, where, and how it fails."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rareneuron.cli import cli
from rareneuron.maths.phase_fit import fit_phases
from rareneuron.maths.phases import ContextSums
from rareneuron.maths.rank_curve import rank_curve
from rareneuron.maths.released import released_phases
from rareneuron.models.families import FAMILIES
from rareneuron.present.figures import FIGURES
from rareneuron.runs.rankings import RANKINGS
from rareneuron.runs.run import Run
from tests.tiny_series import study_arguments


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(cli.commands))])
def test_help_answers(invoke, command):
    shown = invoke(*command, "--help")
    assert shown.exit_code == 0
    assert "Usage: " in shown.output


@pytest.mark.parametrize(
    "code", ["import rareneuron", "import rareneuron.cli", "import rareneuron as rn; dir(rn); rn.__version__"]
)
def test_importing_loads_nothing_heavy(code):
    heavy = ["torch", "transformers", "matplotlib", "pandas", "scipy"]
    script = f"{code}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom rareneuron.cli import cli\ntry:\n    cli(['study', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


# Of a study of the last layer; others are drawn where the run has more.
ALWAYS_DRAWN = [name for name, made in FIGURES.items() if not made.optional or name == "mechanism"]


def test_study_summarises_and_writes_the_report(invoke, series, text_file, run_folder):
    done = invoke(*study_arguments(series, text_file, run_folder))
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 7
    assert lines[1].startswith("Counts: the corpus itself, not the training set; by their sampling error alone")
    assert lines[4].startswith("Phases (definitions: paper): unknown. The curve has 40 neurons")
    assert re.match(r"Claims: 0 supported; \d+ inconclusive; \d+ not supported", lines[5])
    assert lines[-1] == f"Report: {run_folder / 'report.html'}"
    assert (run_folder / "report.html").is_file()
    assert "mean |Δ|" in done.stdout


def test_study_draws_every_figure(run_folder):
    assert {path.name for path in (run_folder / "figures").iterdir()} == {f"{name}.svg" for name in ALWAYS_DRAWN}


@pytest.mark.slow
def test_python_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "rareneuron", "families"], capture_output=True, text=True, check=True)
    assert "gpt_neox" in done.stdout


def test_study_json(without_pages, invoke, series, text_file, run_folder):
    found = json.loads(invoke(*study_arguments(series, text_file, run_folder), "--json").stdout)
    assert found["steps"] == [0, 10]
    assert found["n_rare"] == 80


def test_dry_run_plans_and_writes_nothing(invoke, series, text_file, tmp_path):
    arguments = [*study_arguments(series, text_file, tmp_path / "none"), "--dry-run"]
    assert "to compute 2" in invoke(*arguments).stdout
    plan = json.loads(invoke(*arguments, "--json").stdout)
    assert plan["open"] == ["10", "0"]
    assert plan["shape"]["d_mlp"] == 40
    assert plan["seconds"] > 2 * plan["phases_seconds"] > 2  # two checkpoints, a second each at least
    assert " phases per checkpoint" in invoke(*arguments).stdout
    untested = json.loads(invoke(*arguments, "--definitions", "released", "--json").stdout)
    assert untested["phases_seconds"] == 0
    assert not (tmp_path / "none").exists()


def test_groups(invoke, run_folder):
    rows = json.loads(invoke("groups", run_folder, "--json").stdout)
    assert [row["role"] for row in rows] == ["boosting"] * 5 + ["suppressing"] * 5
    assert all((row["delta_loss"] > 0) == (row["role"] == "boosting") for row in rows)
    assert "boosting" in invoke("groups", run_folder, "--step", 0).stdout


def test_phases_that_cannot_be_told_are_said(invoke, run_folder):
    done = invoke("phases", run_folder, "--step", 0, "--ranking", "common")
    assert done.exit_code == 2
    assert "40 neurons" in done.stderr


def test_phases(invoke, monkeypatch, run_folder):
    """Of a curve long enough to have some, as the tiny layer's is not."""
    rank = np.arange(1, 513)
    y = -0.4 * np.log(rank) + (rank <= 24) - np.maximum(rank / 150 - 1, 0)
    curve = rank_curve(np.exp(y))
    sums = np.random.default_rng(0).gamma(400.0, 1 / 400, (20, 512))
    sums *= curve.value / sums.mean(0)  # of these contexts the curve is the mean
    contexts = ContextSums(sums=sums, n_tokens=np.ones(20, np.int64))
    monkeypatch.setattr(Run, "phases", lambda *_: fit_phases(curve, contexts, n_draws=40))
    shown = invoke("phases", run_folder).stdout
    assert shown.startswith("Step 10, ranking all, definitions paper: three phases\n")
    assert re.search(r"\nStep 0, before any training, is the null \(all\): it gives κ = 0\.\d+, three phases; ", shown)
    assert "Step 0, before" in invoke("trajectory", run_folder).stdout
    assert re.search(r"κ = 0\.\d+ \(95 % 0\.\d+ … 0\.\d+\)", shown)
    assert re.search(r"Plateau +ranks 1 … \d+ \(95 % \d+ … \d+\), 4\.\d% of them", shown)
    found = strict(invoke("phases", run_folder, "--ranking", "common", "--json").stdout)
    assert (found["step"], found["ranking"], found["outcome"]) == (10, "common", "three phases")
    assert found["definitions"] == "paper"
    assert found["plateau_share"] == found["plateau_end"] / 512


def test_phases_by_released_definitions_of_a_run_made_with_the_papers(invoke, monkeypatch, run_folder):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"delta_loss": rng.standard_normal(600)})
    monkeypatch.setattr(Run, "effects", lambda *_: table)
    for options, ranking, sign in (([], "boosting", 1), (["--ranking", "suppressing"], "suppressing", -1)):
        signed = sign * table["delta_loss"].to_numpy()
        expected = released_phases(rank_curve(signed[signed > 0]))
        arguments = ["phases", run_folder, "--definitions", "released", *options]
        found = strict(invoke(*arguments, "--json").stdout)
        assert (found["definitions"], found["ranking"], found["n_neurons"]) == ("released", ranking, (signed > 0).sum())
        assert (found["kappa"], found["beta_late"]) == (expected.kappa, expected.beta_late)
        assert "outcome" not in found
        shown = invoke(*arguments).stdout
        assert "definitions released: no outcome" in shown
        assert f"κ = {expected.kappa:.3f}, β = {expected.beta:.3f} over log rank 3.5 … 4.5" in shown
        assert f"it gives κ = {expected.kappa:.3f}; step 10 gives" in shown
    refused = invoke("phases", run_folder, "--definitions", "released", "--ranking", "all")
    assert refused.exit_code == 2
    assert "rank neurons of one sign" in refused.stderr


def test_phases_takes_every_ranking():
    choice = next(p for p in cli.commands["phases"].params if p.name == "ranking")
    assert tuple(choice.type.choices) == RANKINGS


def test_trajectory(invoke, run_folder):
    shown = invoke("trajectory", run_folder).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["step", "0", "10"]
    rows = strict(invoke("trajectory", run_folder, "--json").stdout)
    assert [row["step"] for row in rows] == [0, 10]
    assert rows[0]["rank_correlation_last"] is not None
    assert rows[1]["rank_correlation_last"] is None
    of_trends = strict(invoke("trajectory", run_folder, "--trends", "--json").stdout)
    assert next(row for row in of_trends if row["column"] == "n_eff") == {
        "column": "n_eff",
        "tau": None,  # two steps have no trend
        "p": None,
        "n": 2,
    }
    assert "loss_rare" in invoke("trajectory", run_folder, "--trends").stdout


def test_report_and_figure(invoke, run_folder, tmp_path):
    assert "report.html" in invoke("report", run_folder).stdout
    shutil.rmtree(run_folder / "figures")
    written = json.loads(invoke("report", run_folder, "--json").stdout)
    assert written["report"] == str(run_folder / "report.html")
    assert [Path(path).stem for path in written["figures"]] == ALWAYS_DRAWN
    assert all(Path(path).is_file() for path in written["figures"])
    one = invoke("figure", run_folder, "rank-curve", "-o", tmp_path / "f.svg", "--json")
    assert json.loads(one.stdout) == {"figure": str(tmp_path / "f.svg")}
    for suffix in ("svg", "pdf", "png"):
        assert invoke("figure", run_folder, "rank-curve", "-o", tmp_path / f"f.{suffix}").exit_code == 0
        assert (tmp_path / f"f.{suffix}").stat().st_size > 1000


def test_a_figure_of_several_runs(invoke, run_folder, tmp_path):
    one, two = (
        invoke("figure", *runs, "slope-distributions", "-o", tmp_path / "s.svg")
        for runs in ([run_folder], [run_folder] * 2)
    )
    assert one.stdout == two.stdout == f"{tmp_path / 's.svg'}\n"
    refused = invoke("figure", run_folder, run_folder, "rank-curve", "-o", tmp_path / "r.svg")
    assert refused.exit_code == 2
    assert "shows one run" in refused.stderr
    unnamed = invoke("figure", run_folder, "-o", tmp_path / "r.svg")
    assert unnamed.exit_code == 2
    assert "the name of a figure, one of: effect-distribution" in unnamed.stderr


def test_families_lists_every_record(invoke):
    rows = json.loads(invoke("families", "--json").stdout)
    assert {row["model_type"] for row in rows} == set(FAMILIES)
    assert next(row for row in rows if row["model_type"] == "olmo2")["engines"] == [
        "closed-form",
        "gradient",
        "patching",
    ]
    assert "gpt_neox" in invoke("families").stdout


def test_checkpoints(invoke, series):
    rows = json.loads(invoke("checkpoints", series, "--json").stdout)
    assert rows == [
        {"step": step, "checkpoint": str(series / f"step{step}"), "step_read_as": "step<N>"} for step in (0, 2, 10)
    ]


def test_unigrams_are_read_back_as_counts(without_pages, invoke, series, text_file, tmp_path):
    done = invoke("unigrams", series, text_file, "-o", tmp_path / "u.npy")
    assert "types seen" in done.stdout
    assert np.load(tmp_path / "u.npy").sum() > 10_000
    counted = json.loads(invoke("unigrams", series, text_file, "-o", tmp_path / "u.npy", "--json").stdout)
    assert counted["tokens"] == np.load(tmp_path / "u.npy").sum()
    assert f"{counted['types_seen']:,} of {counted['types']:,} types seen" in done.stdout
    arguments = [*study_arguments(series, text_file, tmp_path / "run"), "--counts", str(tmp_path / "u.npy")]
    arguments += ["--counts-from", "auto"]
    assert invoke(*arguments).exit_code == 0


def test_unigrams_says_what_a_folder_leaves_out(invoke, series, text_file, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt.gz").write_bytes(gzip.compress(text_file.read_bytes()))
    (folder / "LICENSE.txt").write_text("Permission is hereby granted.")
    (folder / "b.lz4").write_bytes(b"?")
    done = invoke("unigrams", series, folder, "-o", tmp_path / "u.npy")
    assert done.stderr == "Text: 1 file in texts (1 .txt.gz); left out: 1 .lz4, LICENSE.txt\n"


def test_train_prints_where_the_series_is(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr("rareneuron.embedded.recipe.train_series", lambda recipe, out: out)
    arguments = ["train", "--steps", 10, "--out", tmp_path]
    assert invoke(*arguments).stdout == f"{tmp_path}\n"
    assert json.loads(invoke(*arguments, "--json").stdout) == {"series": str(tmp_path), "steps": [0, 8, 10]}


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_takes_json(command):
    assert "as_json" in {parameter.name for parameter in cli.commands[command].params}


def test_the_flags_of_the_contract_are_there():
    words = "--revision R --steps 0,512 --data D --counts F --n-tokens 9 --context-length 64 --layer -1"
    words += " --definitions released --engine patching --group-size 50"
    words += " --seed 0 --device auto --dtype float32 --out O --config c --dry-run"
    cli.commands["study"].make_context("study", ["MODEL", *words.split()])


# --- what cannot be had


def said_in(page):
    """The words of a report."""
    return re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_a_layer_without_any_effect_is_reported_in_words(invoke, llama, text_file, tmp_path, request):
    shutil.copytree(llama, tmp_path / "model")
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    arguments = study_arguments(tmp_path / "model", text_file, tmp_path / "run")
    arguments = [a for a in arguments if a not in ("--steps", "0,10")]
    assert "no neuron's ablation changes the loss" in invoke(*arguments).stdout
    request.getfixturevalue("without_pages")
    assert strict(invoke(*arguments, "--json").stdout)["top_abs_delta_loss"] == 0
    assert "No neuron is boosting." in said_in(tmp_path / "run" / "report.html")
    for path in (tmp_path / "run").rglob("*.json"):
        strict(path.read_text())


def test_a_single_context_is_reported_in_words(invoke, llama, text_file, tmp_path, request):
    (tmp_path / "short.txt").write_text(" ".join(text_file.read_text().split()[:60]))
    options = "--context-length 50 --n-tokens 40 --group-size 2 --n-random 200 --rarity none --words off"
    arguments = ["study", llama, "--data", tmp_path / "short.txt", *options.split(), "--out", tmp_path / "run"]
    done = invoke(*arguments)
    assert "from 1 contexts" in done.stdout
    assert "a single context gives no standard error" in done.stdout
    request.getfixturevalue("without_pages")
    strict(invoke(*arguments, "--json").stdout)
    assert "nan" not in said_in(tmp_path / "run" / "report.html").lower().split()
    rows = strict(invoke("groups", tmp_path / "run", "--json").stdout)
    assert {row["delta_loss_se"] for row in rows} == {None}
    assert "NaN" not in invoke("groups", tmp_path / "run").stdout


# --- what a user can do wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "./no-such-model"], "no-such-model"),
        (["study", "{series}", "--data", "nowhere.txt", "--group-size", "5"], "nowhere.txt"),
        (["study", "{series}", "--n-tokens", "0"], "n_tokens"),
        (["study", "--config", "nowhere.toml"], "--config"),
        (["study", "{series}", "--data", ""], "data = ''"),
        (["study", ""], "model = ''"),
        (["study", "{series}@main"], "only models on the Hub have revisions"),
        (["study", "{series}", "--memory", "inf"], "memory must be a positive number of GiB, not inf"),
        (["study", "{series}", "--memory", "nan"], "memory must be a positive number of GiB, not nan"),
        (["study", "{series}", "--memory", "1e308"], "memory must be a positive number of GiB, not 1e+308"),
        (["study", "{series}", "--steps", "1,-3"], "steps = '1,-3'"),
        (["study", "{series}", "--steps", "2,0,2"], "each once"),
        (["study", "{series}", "--group-size", "1"], "group_size = 1"),
        (["checkpoints", ""], "name of the model is empty"),
        (["unigrams", "{series}", "", "-o", "u.npy"], "name of the corpus is empty"),
        (["unigrams", "{series}", "nowhere.txt", "-o", "u.xyz"], ".npy, .npz, .parquet"),
        (["unigrams", "{series}", "nowhere.txt", "-o", "u.npy", "--max-tokens", "9"], "--max-tokens 9"),
        (["train", "--steps", "-3"], "--steps"),
        (["train", "--steps", "0"], "--steps"),
        (["checkpoints", "{long}"], "File name too long"),
        (["groups", "."], "not a run folder"),
        (["report", "."], "not a run folder"),
        (["phases", "."], "not a run folder"),
        (["trajectory", "."], "not a run folder"),
        (["phases", "{run}", "--step", "7"], "no results for step 7"),
        (["figure", "{run}", "nonsense", "-o", "x.svg"], "rank-curve"),
        (["figure", "{run}", "rank-curve", "-o", "x.gif"], ".svg"),
        (["checkpoints", "./nothing"], "nothing"),
        (["unigrams", "./nothing", "x.txt", "-o", "u.npy"], "nothing"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(invoke, series, run_folder, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*(a.format(series=series, run=run_folder, long="x" * 5000) for a in arguments))
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there(invoke, series, text_file, tmp_path, device):
    done = invoke(*study_arguments(series, text_file, tmp_path / "run"), "--device", device)
    assert done.exit_code == 2
    assert re.search(rf"no device '{device}'.*This machine has cpu", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("steps = []", "steps = ''"),
        ("steps = [1, -3]", "steps = '1,-3'"),
        ("steps = [5, 5]", "each once"),
        ("memory = inf", "memory must be a positive number of GiB, not inf"),
        ('model = ""', "model = ''"),
        ('data = "a\\u0000b"', "data = "),
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("steps = " + "[" * 100_000, "not valid TOML"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_settings_in_a_file_are_one_paragraph(invoke, tmp_path, content, said):
    (tmp_path / "study.toml").write_text(content)
    done = invoke("study", "--config", tmp_path / "study.toml", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("n_words", "rule", "remedy"), [(12_000, "types", "--rarity occurrences"), (40, "occurrences", "--percentile")]
)
def test_a_small_corpus_is_told_what_would_help(invoke, series, text_file, tmp_path, n_words, rule, remedy):
    """Most of a vocabulary never occurs in it, so a percentile falls among types never seen."""
    (tmp_path / "small.txt").write_text(" ".join(text_file.read_text().split()[:n_words]))
    arguments = study_arguments(series, tmp_path / "small.txt", tmp_path / "run")
    done = invoke(*arguments, "--rarity", rule)
    assert done.exit_code == 2
    assert re.search(r"More than half of the vocabulary never occurs in this text \(\d+ of \d+ types\)", done.stderr)
    assert "--counts FILE" in done.stderr
    assert remedy in done.stderr
    assert "--words" not in done.stderr


@pytest.mark.parametrize("available", [True, False])
def test_too_few_rare_tokens_are_blamed_on_what_was_asked_or_on_the_corpus(
    invoke, series, text_file, tmp_path, available
):
    arguments = study_arguments(series, text_file, tmp_path / "run")
    if available:
        arguments[arguments.index("--n-tokens") + 1] = "4"
    else:
        (tmp_path / "short.txt").write_text(" ".join(text_file.read_text().split()[:12]))
        arguments[arguments.index("--data") + 1] = str(tmp_path / "short.txt")
        arguments += ["--group-size", "13", "--context-length", "8", "--rarity", "none"]
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert ("Raise `--n-tokens`" in done.stderr) == available
    assert ("Give more text (`--data`)" in done.stderr) == (not available)


def test_the_count_at_the_threshold_is_recorded(run_folder):
    data = json.loads((run_folder / "run.json").read_text())["data"]
    rarity, n_tokens = data["rarity"], data["counts"]["n_tokens"]
    # Good–Turing takes what types never seen have from the others; N₁/N is 0.1 % of this text.
    assert rarity["threshold"] == pytest.approx(rarity["count_at_threshold"] / n_tokens, rel=0.01)
    assert rarity["count_at_threshold"] > 1


def test_what_the_system_refuses_is_one_paragraph(invoke, series, text_file, tmp_path, monkeypatch):
    original = Path.open

    def refuse(self, *arguments, **options):
        if self == text_file:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run the tests, may read anything
    done = invoke(*study_arguments(series, text_file, tmp_path / "run"))
    assert done.exit_code == 2
    assert re.search(rf"Permission denied: '{text_file}'.*--debug", done.stderr)
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_error_itself():
    from rareneuron.errors import RunFolderError

    with pytest.raises(RunFolderError):
        CliRunner().invoke(cli, ["--debug", "report", "."], catch_exceptions=False)


def test_an_interrupt_says_how_to_continue(invoke, monkeypatch, series, text_file, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rareneuron.study.study.run_study", interrupted)
    done = invoke(*study_arguments(series, text_file, tmp_path / "run"))
    assert done.exit_code == 130
    assert "same command again" in done.stderr
