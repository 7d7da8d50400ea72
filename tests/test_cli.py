"""The command line: what it prints, where, and how it fails."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from rareneuron.cli import cli
from rareneuron.models.families import FAMILIES


@pytest.fixture
def invoke():
    def run(*arguments):
        return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def run_folder(series, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    done = CliRunner().invoke(cli, study_arguments(series, text_file, out), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


def study_arguments(series, text_file, out):
    options = {"--data": text_file, "--n-tokens": 80, "--context-length": 32, "--group-size": 5, "--out": out}
    options |= {"--rarity": "occurrences", "--percentile": 40}
    return ["study", str(series), "--steps", "0,10", *(str(x) for pair in options.items() for x in pair)]


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


def test_study_summarises_and_writes_the_report(invoke, series, text_file, run_folder):
    done = invoke(*study_arguments(series, text_file, run_folder))
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 6
    assert lines[-1] == f"Report: {run_folder / 'report.html'}"
    assert (run_folder / "report.html").is_file()
    assert "mean |Δ|" in done.stdout


def test_study_json(invoke, series, text_file, run_folder):
    found = json.loads(invoke(*study_arguments(series, text_file, run_folder), "--json").stdout)
    assert found["steps"] == [0, 10]
    assert found["n_rare"] == 80


def test_dry_run_plans_and_writes_nothing(invoke, series, text_file, tmp_path):
    arguments = [*study_arguments(series, text_file, tmp_path / "none"), "--dry-run"]
    assert "to compute 2" in invoke(*arguments).stdout
    plan = json.loads(invoke(*arguments, "--json").stdout)
    assert plan["open"] == ["10", "0"]
    assert plan["shape"]["d_mlp"] == 40
    assert plan["seconds"] > 0
    assert not (tmp_path / "none").exists()


def test_groups(invoke, run_folder):
    rows = json.loads(invoke("groups", run_folder, "--json").stdout)
    assert [row["role"] for row in rows] == ["boosting"] * 5 + ["suppressing"] * 5
    assert all((row["delta_loss"] > 0) == (row["role"] == "boosting") for row in rows)
    assert "boosting" in invoke("groups", run_folder, "--step", 0).stdout


def test_report_and_figure(invoke, run_folder, tmp_path):
    assert "report.html" in invoke("report", run_folder).stdout
    for suffix in ("svg", "pdf", "png"):
        assert invoke("figure", run_folder, "rank-curve", "-o", tmp_path / f"f.{suffix}").exit_code == 0
        assert (tmp_path / f"f.{suffix}").stat().st_size > 1000


def test_families_lists_every_record(invoke):
    rows = json.loads(invoke("families", "--json").stdout)
    assert {row["model_type"] for row in rows} == set(FAMILIES)
    assert next(row for row in rows if row["model_type"] == "olmo2")["engines"] == ["patching"]
    assert "gpt_neox" in invoke("families").stdout


def test_checkpoints(invoke, series):
    assert [row["step"] for row in json.loads(invoke("checkpoints", series, "--json").stdout)] == [0, 2, 10]


def test_unigrams_are_read_back_as_counts(invoke, series, text_file, tmp_path):
    done = invoke("unigrams", series, text_file, "-o", tmp_path / "u.npy")
    assert "types seen" in done.stdout
    assert np.load(tmp_path / "u.npy").sum() > 10_000
    arguments = [*study_arguments(series, text_file, tmp_path / "run"), "--counts", str(tmp_path / "u.npy")]
    assert invoke(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "./no-such-model"], "no-such-model"),
        (["study", "{series}", "--data", "nowhere.txt"], "nowhere.txt"),
        (["study", "{series}", "--n-tokens", "0"], "n_tokens"),
        (["study", "--config", "nowhere.toml"], "--config"),
        (["groups", "."], "no run folder"),
        (["report", "."], "no run folder"),
        (["figure", "{run}", "nonsense", "-o", "x.svg"], "rank-curve"),
        (["figure", "{run}", "rank-curve", "-o", "x.gif"], ".svg"),
        (["checkpoints", "./nothing"], "nothing"),
        (["unigrams", "./nothing", "x.txt", "-o", "u.npy"], "nothing"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(invoke, series, run_folder, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*(a.format(series=series, run=run_folder) for a in arguments))
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_error_itself():
    from rareneuron.errors import RunFolderError

    with pytest.raises(RunFolderError):
        CliRunner().invoke(cli, ["--debug", "report", "."], catch_exceptions=False)


def test_an_interrupt_says_how_to_continue(invoke, monkeypatch, series, text_file, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rareneuron.pipeline.study.run_study", interrupted)
    done = invoke(*study_arguments(series, text_file, tmp_path / "run"))
    assert done.exit_code == 130
    assert "same command again" in done.stderr
