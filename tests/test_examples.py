"""The notebooks of `examples/` run as they stand, and what is stored in them came from such a run."""

import os
import re
from importlib import util
from pathlib import Path

import nbformat
import pytest

from rareneuron.cache import cache_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
CACHE = os.environ.get("XDG_CACHE_HOME")  # the user's own, which no other test looks into
MODELS = {"use_the_neurons": "smollm2"}  # packaged models that notebooks need


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


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["embedded_series", "use_the_neurons", "your_own_model"]


def give_model(name, patch):
    """Let a notebook find the packaged model that it needs; skip where the user hasn't fetched it."""
    if CACHE is None:
        patch.delenv("XDG_CACHE_HOME")
    else:
        patch.setenv("XDG_CACHE_HOME", CACHE)
    if not list(cache_folder("models").glob(f"{name}-*/model.safetensors")):
        pytest.skip(f"{name} isn't fetched (tests/SKIPS.md)")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(path, monkeypatch):
    if path.stem in MODELS:
        give_model(MODELS[path.stem], monkeypatch)
    assert outputs(execute()(path)) == outputs(nbformat.read(path, as_version=4))
