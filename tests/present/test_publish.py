"""Report, figures and tables in one go: all there, each figure drawn once, and without what only computing needs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rareneuron.present.figure import Figure
from rareneuron.present.figures import FIGURES, write_figures
from rareneuron.present.publish import publish
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]
ROOM = Path(__file__).parents[2] / "src" / "rareneuron" / "present"
MODULES = sorted(
    ".".join(("rareneuron.present", *path.relative_to(ROOM).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOM.rglob("*.py")
)


def test_everything_is_written_and_named(make_run: MakeRun) -> None:
    run = make_run()
    written = publish(run)
    paths = [written.report, *written.figures, *written.tables]
    assert all(path.is_file() for path in paths)
    assert {path.relative_to(run.path).parts[0] for path in paths} == {"report.html", "figures", "tables"}
    assert json.loads(json.dumps(written.paths))["figures"] == [str(path) for path in written.figures]


def test_every_figure_is_drawn_once_for_page_and_file(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = Figure.drawn

    def counted(self: Figure, *arguments: Any) -> Any:
        drawn.append(self.name)
        return draw(self, *arguments)

    monkeypatch.setattr(Figure, "drawn", counted)
    run = make_run()
    publish(run)
    assert sorted(drawn) == sorted(name for name, made in FIGURES.items() if not made.optional)


def test_a_figures_file_is_the_same_whether_or_not_a_page_came_first(make_run: MakeRun) -> None:
    run = make_run()
    beside_page = {path.name: path.read_bytes() for path in publish(run).figures}
    alone = {path.name: path.read_bytes() for path in write_figures(run)}
    assert alone == beside_page


def loaded(code: str) -> set[str]:
    """Return the heavy libraries that a fresh interpreter has loaded after this code."""
    code += "; print(*{'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_presenting_needs_neither_torch_nor_transformers() -> None:
    assert len(MODULES) > 30
    assert loaded(f"import {', '.join(MODULES)}") == set()


def test_the_check_sees_what_is_loaded() -> None:
    assert loaded("import matplotlib") == {"matplotlib"}
