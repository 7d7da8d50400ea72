"""Frames apart from ink, and ink only where it can go wrong: files, colours, empty and crowded axes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.present.figure import inline_svg
from rareneuron.present.figures import FIGURES, figure, save_figure, write_figures
from rareneuron.present.figures.rank_curve import MOST_LABELS, MOST_POINTS, labelled, thinned
from rareneuron.present.style import DARK, LIGHT, Theme
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def test_the_rank_curve_frame_holds_every_neuron_of_every_checkpoint_by_rank(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 512, None))
    frame = FIGURES["rank-curve"].frame(run)
    assert list(frame["checkpoint"].unique()) == [0, 1, 2]
    assert list(frame["step"].unique()) == ["0", "512", "final"]
    for checkpoint, step in enumerate(run.steps):
        part, effects = frame[frame["checkpoint"] == checkpoint], run.effects(step).set_index("neuron")
        assert list(part["rank"]) == list(range(1, 61))
        assert (part["abs_delta_loss"].diff().dropna() <= 0).all()
        for column in ("abs_delta_loss", "abs_delta_loss_se"):  # copied, so exactly equal
            assert (part[column].to_numpy() == effects.loc[part["neuron"], column].to_numpy()).all()


def test_a_run_without_checkpoints_says_so(make_run: MakeRun) -> None:
    run = make_run(steps=())
    with pytest.raises(RunFolderError, match="no finished checkpoint"):
        figure(run, "rank-curve")


def test_an_unknown_figure_lists_those_that_exist(make_run: MakeRun) -> None:
    with pytest.raises(InvalidConfig, match=r"no figure 'rank'.*rank-curve"):
        figure(make_run(), "rank")


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_the_suffix_chooses_the_format_and_bytes_repeat(
    make_run: MakeRun, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    run = make_run()
    first, second = (
        save_figure(figure(run, "rank-curve"), tmp_path / folder / f"f.{suffix}").read_bytes() for folder in "ab"
    )
    assert first.startswith(magic)
    assert first == second


@pytest.mark.parametrize("name", ["f.jpg", "f"])
def test_another_suffix_is_refused_with_those_that_work(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"\.svg, \.pdf, \.png"):
        save_figure(figure(make_run(), "rank-curve"), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_failed_write_leaves_the_old_figure(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, path = figure(make_run(), "rank-curve"), tmp_path / "f.svg"
    path.write_text("old")

    def fails(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(type(drawn), "savefig", fails)
    with pytest.raises(ValueError, match="no ink"):
        save_figure(drawn, path)
    assert [(p.name, p.read_text()) for p in tmp_path.glob("*f.svg*")] == [("f.svg", "old")]


def test_every_figure_is_written_beside_the_report(make_run: MakeRun) -> None:
    run = make_run()
    assert write_figures(run) == [run.path / "figures" / f"{name}.svg" for name in FIGURES]
    assert sorted(path.stem for path in (run.path / "figures").iterdir()) == sorted(FIGURES)


def test_every_line_is_drawn_and_the_last_is_heaviest(make_run: MakeRun) -> None:
    axes = figure(make_run(steps=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256)), "rank-curve").axes[0]
    widths = [line.get_linewidth() for line in axes.get_lines()]
    assert len(widths) == 10
    assert widths.index(max(widths)) == 9
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["256", "128", "64", "32", "16", "8", "4", "2", "1", "0"]


def test_the_legend_stays_clear_of_the_axes(make_run: MakeRun) -> None:
    drawn = figure(make_run(steps=tuple(range(14))), "rank-curve")
    drawn.draw_without_rendering()
    axes, legend = drawn.axes[0], drawn.axes[0].get_legend()
    assert legend is not None
    frame, box = axes.get_window_extent(), legend.get_window_extent()
    assert box.x0 >= frame.x1 - 1  # one dot for rounding
    assert box.y0 >= frame.y0
    assert box.x1 <= drawn.bbox.x1
    assert len(legend.get_texts()) == MOST_LABELS


def test_few_decades_still_have_numbers_on_the_axis(make_run: MakeRun) -> None:
    run = make_run(steps=(0,))
    frame = FIGURES["rank-curve"].frame(run)
    drawn = FIGURES["rank-curve"].drawn(frame.assign(abs_delta_loss=np.linspace(6e-3, 1.1e-3, len(frame))))
    drawn.draw_without_rendering()
    low, high = drawn.axes[0].get_ylim()
    ticks = [t for t in drawn.axes[0].get_yticklabels() if low <= t.get_position()[1] <= high and t.get_text()]
    assert len(ticks) >= 2


def test_zeros_are_left_out_and_counted(make_run: MakeRun) -> None:
    frame = FIGURES["rank-curve"].frame(make_run(steps=(7,)))
    frame.loc[frame["rank"] > 50, ["abs_delta_loss", "abs_delta_loss_se"]] = 0.0
    axes = FIGURES["rank-curve"].drawn(frame).axes[0]
    assert len(axes.get_lines()[0].get_xdata()) == 50
    assert any("10 neurons with mean |Δ| = 0" in text.get_text() for text in axes.texts)


def test_nothing_but_zeros_is_said_in_words(make_run: MakeRun) -> None:
    frame = FIGURES["rank-curve"].frame(make_run(steps=(7,))).assign(abs_delta_loss=0.0)
    drawn = FIGURES["rank-curve"].drawn(frame)
    drawn.draw_without_rendering()
    assert any("zero" in text.get_text() for text in drawn.axes[0].texts)


def test_a_single_context_has_no_band_and_no_warning(make_run: MakeRun) -> None:
    frame = FIGURES["rank-curve"].frame(make_run(steps=(7,))).assign(abs_delta_loss_se=np.nan)
    FIGURES["rank-curve"].drawn(frame).draw_without_rendering()


def test_thinning_keeps_both_ends() -> None:
    line = pd.DataFrame({"rank": np.arange(1, 5001)})
    kept = thinned(line)["rank"].tolist()
    assert len(kept) <= MOST_POINTS
    assert kept[:10] == list(range(1, 11))
    assert kept[-1] == 5000
    assert len(thinned(line.head(MOST_POINTS))) == MOST_POINTS


def test_labels_name_the_first_and_the_last() -> None:
    assert labelled(1) == [0]
    assert labelled(5) == [0, 1, 2, 3, 4]
    many = labelled(154)
    assert len(many) == MOST_LABELS
    assert (many[0], many[-1]) == (0, 153)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_line_can_be_told_from_its_paper(theme: Theme) -> None:
    """WCAG asks 3:1 of graphics; 2.7 is what the lightest, thinnest line gets, the last one far more."""
    from matplotlib.colors import to_rgb

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    paper = luminance(to_rgb(theme.paper))
    lights = [luminance(colour) for colour in theme.ordered(10)]
    contrasts = [(max(a, paper) + 0.05) / (min(a, paper) + 0.05) for a in lights]
    assert min(contrasts) >= 2.7
    assert contrasts == sorted(contrasts), "the order of steps should be an order of contrast"
    assert contrasts[-1] >= 7


def test_svgs_of_one_page_share_no_id(make_run: MakeRun) -> None:
    import re

    run = make_run()
    ids = [
        set(re.findall(r'id="([^"]*)"', inline_svg(figure(run, "rank-curve", theme), theme.name)))
        for theme in (LIGHT, DARK)
    ]
    assert ids[0], "no id at all: this test would see nothing"
    assert not ids[0] & ids[1]


def test_the_registry_loads_no_matplotlib() -> None:
    code = "import sys, rareneuron.present.figures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
