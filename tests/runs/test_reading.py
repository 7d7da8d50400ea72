"""Reading a finished run loads neither torch nor transformers, from Python and from commands that print."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers"}
ATTRIBUTES = {
    "claims": "run.claims()",
    "effects": "run.effects()",
    "trajectory": "run.trajectory()",
    "groups": "run.groups()",
    "phases": "run.phases()",
    "rank_curve": "run.rank_curve()",
    "geometry": "run.geometry()",
    "spectrum": "run.spectrum()",
    "manifest": "run.manifest, run.step_record()",
}
COMMANDS = [
    *(("claims", "RUN"), ("tables", "RUN"), ("report", "RUN"), ("trajectory", "RUN"), ("groups", "RUN")),
    *(("geometry", "RUN"), ("spectrum", "RUN"), ("phases", "RUN"), ("card", "RUN"), ("compare", "RUN", "RUN")),
    ("figure", "RUN", "rank-curve", "-o", "curve.svg"),
]


EACH = """
import sys
def look(what):
    print("LOADED", what, *sorted({"torch", "transformers"} & set(sys.modules)))
"""


def loaded_by(code, *arguments, cwd):
    """Run code in a fresh interpreter, and return which heavy libraries were there after each step."""
    done = subprocess.run([sys.executable, "-c", EACH + code, *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("LOADED")]
    return {what: set(found) for what, *found in lines}


def test_a_run_is_read_without_what_computed_it(run_folder, tmp_path):
    code = "import rareneuron as rn\nrun = rn.open_run(sys.argv[1])\n"
    for what, read in ATTRIBUTES.items():  # of a tiny layer there is not all
        code += f"try: {read}\nexcept rn.RareNeuronError: pass\nlook({what!r})\n"
    assert loaded_by(code, str(run_folder), cwd=tmp_path) == {key: set() for key in ATTRIBUTES}


def test_a_command_that_prints_loads_neither(run_folder, tmp_path):
    code = "from rareneuron.cli import cli\n"
    for command in COMMANDS:
        arguments = [str(run_folder) if word == "RUN" else word for word in command]
        code += f"cli({arguments!r}, standalone_mode=False)\nlook({command[0]!r})\n"
    assert loaded_by(code, cwd=tmp_path) == {command[0]: set() for command in COMMANDS}


@pytest.mark.slow
def test_the_check_sees_what_computes(tmp_path):
    found = loaded_by("import rareneuron as rn\nlook('before')\nrn.load_model\nlook('after')", cwd=tmp_path)
    assert found == {"before": set(), "after": HEAVY}
