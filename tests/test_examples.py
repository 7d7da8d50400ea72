"""The notebooks of `examples/` run as they stand, and what is stored in them came from such a run."""

import re
from importlib import util
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def outputs(notebook):
    """Of every code cell, what kinds of output it has."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [(o.output_type, sorted(o.get("data", {}))) for o in cell.outputs if o.output_type != "stream"]
        for cell in cells
    ]


def execute():
    spec = util.spec_from_file_location("execute", EXAMPLES / "execute.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.executed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_whole(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    found = outputs(notebook)
    assert not [o for cell in found for o in cell if o[0] == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|Users)/", text), "a folder of somebody's machine"
    assert len(text) < 1_000_000
    data = {kind for cell in found for _, kinds in cell for kind in kinds}
    assert "text/html" in data, "results show themselves"


def test_there_are_both():
    assert [path.stem for path in NOTEBOOKS] == ["embedded_series", "your_own_model"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(path):
    assert outputs(execute()(path)) == outputs(nbformat.read(path, as_version=4))
