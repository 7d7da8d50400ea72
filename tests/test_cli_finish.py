"""What makes the command line pleasant: what to do next, colours that can be refused, completion, stable JSON."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rareneuron.cli import cli
from rareneuron.cli.base import is_finished, runs_here
from rareneuron.cli.results import colour_verdicts

GOLDEN = Path(__file__).parent / "golden" / "json_keys.json"
WITHOUT_EXAMPLE = {"families"}  # takes nothing


# --- nothing but the name


def test_alone_it_says_how_to_begin(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke()
    assert done.exit_code == 0
    assert "No runs here yet" in done.stdout
    assert "rareneuron study" in done.stdout


def test_alone_it_lists_runs_and_what_to_do_with_them(invoke, tmp_path, monkeypatch, run_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "run.json").write_text("{}")
    os.utime(tmp_path / "runs" / "broken" / "run.json", (0, 0))
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / "good").symlink_to(run_folder)
    assert [run.name for run in runs_here()] == ["good", "broken"]
    assert [is_finished(run) for run in runs_here()] == [True, False]
    begun = tmp_path / "asked-for-more"  # finished once, then asked for a step that isn't there yet
    begun.mkdir()
    (begun / "claims.json").write_text("{}")
    (begun / "run.json").write_text('{"planned": ["0"]}')
    assert not is_finished(begun)
    (begun / "steps" / "0").mkdir(parents=True)
    assert is_finished(begun)
    said = invoke().stdout
    assert "runs/good\n" in said
    assert "runs/broken   not finished: the same `rareneuron study` continues it" in said
    assert "compare runs/good runs/broken" in said
    assert "no-run" not in said
    for line in said.splitlines():
        words = line.split()
        if words[:1] == ["rareneuron"] and words[1] in cli.commands:
            cli.commands[words[1]].make_context(
                words[1], [w for w in words[2:] if w.startswith("runs/")], resilient_parsing=True
            )


@pytest.mark.parametrize("command", sorted(set(cli.commands) - WITHOUT_EXAMPLE))
def test_help_has_an_example(invoke, command):
    said = invoke(command, "--help").stdout
    assert re.search(rf"^  rareneuron {command}( |$)|\$\(rareneuron {command}", said, re.M)


# --- colours


def run_in_a_terminal(arguments, **environment):
    """What a terminal would be sent."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | environment
    command = [sys.executable, "-m", "rareneuron", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env)
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end has closed
            break
        if not part:
            break
        sent += part
    os.close(ours)
    return process.wait(), sent.decode()


@pytest.mark.slow
def test_an_error_is_red_in_a_terminal_unless_refused(tmp_path):
    code, sent = run_in_a_terminal(["report", tmp_path], TERM="xterm")
    assert code == 2
    assert "\x1b[31m" in sent, "the check can see a colour"
    code, sent = run_in_a_terminal(["report", tmp_path], TERM="xterm", NO_COLOR="1")
    assert code == 2
    assert "\x1b[" not in sent
    assert "is not a run folder" in sent


def test_verdicts_have_colours_and_files_none(invoke, run_folder):
    text = "A claim: supported.\n    It is supported.\nAnother: not supported.\nA third: inconclusive.\n"
    painted = colour_verdicts(text)
    assert painted.count("\x1b[32m") == 1
    assert painted.count("\x1b[33m") == 1
    assert "Another: not supported." in painted
    assert "\x1b" not in invoke("claims", run_folder).stdout


# --- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell(invoke, shell):
    script = invoke("completion", shell).stdout
    assert f"_RARENEURON_COMPLETE={shell}_complete" in script
    assert json.loads(invoke("completion", shell, "--json").stdout)["script"].strip() == script.strip()
    assert invoke("completion", "tcsh").exit_code == 2


def completed(words, tmp_path):
    """What bash is offered for the last word."""
    env = os.environ | {
        "_RARENEURON_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    script = "from rareneuron.cli import cli; cli(prog_name='rareneuron')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_commands_runs_and_figures_are_completed(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    assert completed(["rareneuron", "com"], tmp_path) == ["compare", "completion"]
    assert completed(["rareneuron", "claims", "ru"], tmp_path) == ["runs/mine"]
    assert completed(["rareneuron", "figure", "runs/mine", "rank"], tmp_path) == ["rank-curve", "rank-curves"]
    assert "--n-tokens" in completed(["rareneuron", "study", "--n"], tmp_path)


# --- pages and cards


def test_compare(invoke, run_folder, tmp_path):
    page = tmp_path / "both.html"
    done = invoke("compare", run_folder, run_folder, "-o", page)
    assert done.stdout.endswith(f"Page: {page}\n")
    assert page.stat().st_size > 10_000
    found = json.loads(invoke("compare", run_folder, run_folder, "--json").stdout)
    assert found["agreement"][0]["spearman"] == 1
    assert found["settings"] == []
    refused = invoke("compare", run_folder)
    assert refused.exit_code == 2
    assert "two run folders or more" in refused.stderr
    assert invoke("compare", run_folder, run_folder, "-o", tmp_path / "x.pdf").exit_code == 2
    assert not (tmp_path / "x.pdf").exists()


def test_card(invoke, run_folder, tmp_path):
    printed = invoke("card", run_folder).stdout
    assert printed.startswith("## Rare-token neurons of ")
    done = invoke("card", run_folder, "-o", tmp_path / "card.md")
    assert done.stdout == f"{tmp_path / 'card.md'}\n"
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == printed
    assert json.loads(invoke("card", run_folder, "--json").stdout)["card"] == printed


# --- JSON that scripts rely on


def keys(content):
    """Names at the first level, and of the rows of a table."""
    if isinstance(content, list):
        return sorted({name for row in content for name in row})
    return {
        name: keys(value) if isinstance(value, list) and value and isinstance(value[0], dict) else None
        for name, value in content.items()
    }


@pytest.mark.slow
def test_json_has_the_names_it_had(invoke, run_folder, series, tmp_path):
    """Scripts read these. A name that goes is a breaking change: say so in the CHANGELOG, then write it anew."""
    commands = {
        "groups": [run_folder],
        "geometry": [run_folder],
        "spectrum": [run_folder],
        "claims": [run_folder],
        "tables": [run_folder],
        "trajectory": [run_folder],
        "report": [run_folder],
        "figure": [run_folder, "rank-curve", "-o", tmp_path / "f.svg"],
        "compare": [run_folder, run_folder],
        "card": [run_folder],
        "completion": ["bash"],
        "checkpoints": [series],
        "families": [],
    }
    found = {}
    for name, arguments in commands.items():
        done = CliRunner().invoke(cli, [name, *map(str, arguments), "--json"])
        found[name] = keys(json.loads(done.stdout)) if done.exit_code == 0 else done.stderr
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())
