"""The figures by name: what exists is listed, and everything is written beside the report."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.present.figures import FIGURES, figure, write_figures
from rareneuron.present.ink import MOST_POINTS
from rareneuron.runs.run import Run
from tests.present.reading import words

MakeRun = Callable[..., Run]


def test_a_run_without_checkpoints_says_so(make_run: MakeRun) -> None:
    run = make_run(steps=())
    with pytest.raises(RunFolderError, match="no finished checkpoint"):
        figure(run, "rank-curve")


def test_an_unknown_figure_lists_those_that_exist(make_run: MakeRun) -> None:
    with pytest.raises(InvalidConfig, match=r"no figure 'rank'.*rank-curve"):
        figure(make_run(), "rank")


def test_every_figure_is_written_beside_the_report(make_run: MakeRun) -> None:
    run = make_run()
    always = [name for name, made in FIGURES.items() if not made.optional]
    assert write_figures(run) == [run.path / "figures" / f"{name}.svg" for name in always]
    assert sorted(path.stem for path in (run.path / "figures").iterdir()) == sorted(always)


def test_the_registry_loads_no_matplotlib() -> None:
    code = "import sys, rareneuron.present.figures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_run_figures_refuse_several(make_run: MakeRun) -> None:
    with pytest.raises(InvalidConfig, match=r"'phases' shows one run, and 2 were given.*slope-distributions"):
        figure(make_run(), "phases", beside=[make_run()])


@pytest.mark.parametrize("name", FIGURES)
def test_no_line_has_more_points_than_can_be_seen(make_run: MakeRun, name: str) -> None:
    drawn = figure(make_run(steps=(3,), n_neurons=3000), name)
    assert all(len(line.get_xdata()) <= MOST_POINTS for line in drawn.axes[0].get_lines())


@pytest.mark.parametrize(
    "name", sorted(set(FIGURES) - {"rank-curve", "alpha-hill", "spectrum", "claims", "layers", "mechanism", "tasks"})
)
def test_no_effect_at_all_is_said_in_words(nothing: Run, name: str) -> None:
    assert re.search(r"mean \|Δ\| is zero|neurons with an effect|holds no phases", words(nothing, name))
