"""Run the notebooks of this folder in place, each in a folder of its own: `python examples/execute.py [NAME …]`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 900  # of a cell, on two busy cores


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; a cell that fails is an error. Progress and times are left out."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb")):
        nbformat.write(executed(HERE / f"{name}.ipynb"), HERE / f"{name}.ipynb")
