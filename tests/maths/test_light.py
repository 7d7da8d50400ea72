"""Reading results loads no torch: which modules of maths work on numpy alone, and which take tensors."""

import json
import re
import subprocess
import sys

import pytest

import rareneuron.maths
from tests.test_floors import SOURCE

NUMPY_ALONE = {
    *("certificate", "claims", "clusters", "eigen", "equal_loss", "equivalence", "exchange", "frequency", "gauge"),
    *("geometry", "groups", "intraclass", "kink", "known_kinds", "modularity", "nulls", "paired", "phase_fit"),
    *("phases", "plateau", "power", "rank_curve", "ranks", "released", "reliability", "routing", "segments"),
    *("shares", "significance", "spacings", "specificity", "spectrum", "trend", "verdicts"),
}  # fmt: skip
TENSORS = {
    *("ablation", "activations", "behind_norm", "capped_expansion", "clustered", "engine_blocks", "expansion"),
    *("first_order", "full_sum", "fused", "head", "interventions", "joint", "joint_sampled", "margins", "mechanism"),
    *("moments", "neuron_kinds", "neuron_tables", "output_norm", "pair_effects", "readout", "softcap", "table_memory"),
    "weights",
}  # fmt: skip
LOOK = """
import json, sys
from importlib import import_module
loaded = {}
for name in sys.argv[1:]:
    import_module(f"rareneuron.maths.{name}")
    loaded[name] = sorted({"torch", "transformers"} & set(sys.modules))
print(json.dumps(loaded))
"""


def loaded_by(*names):
    """Which of torch and transformers are there after the import of each module, one after the other."""
    done = subprocess.run([sys.executable, "-c", LOOK, *names], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_what_reads_results_loads_neither_torch_nor_transformers():
    loaded = loaded_by(*sorted(NUMPY_ALONE))
    assert loaded == {name: [] for name in NUMPY_ALONE}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moments", "weights"])
def test_the_check_sees_torch(name):
    assert loaded_by(name) == {name: ["torch"]}


def options_in(source):
    """Every option of a command line that a text names."""
    return re.findall(r"(?<![\w-])--[a-z][a-z-]+", source)


@pytest.mark.parametrize("name", sorted(NUMPY_ALONE | TENSORS))
def test_maths_names_no_option_of_the_command_line(name):
    assert not options_in((SOURCE / "maths" / f"{name}.py").read_text(encoding="utf-8"))


def test_the_check_sees_an_option():
    assert options_in('"Draw more random groups (--n-random)."') == ["--n-random"]


def test_every_module_of_maths_is_in_one_of_the_tables():
    modules = {path.stem for path in (SOURCE / "maths").glob("*.py")} - {"__init__"}
    assert not NUMPY_ALONE & TENSORS
    assert modules == NUMPY_ALONE | TENSORS
    assert rareneuron.maths.__file__ == str(SOURCE / "maths" / "__init__.py")
