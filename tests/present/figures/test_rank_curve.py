"""The rank curve: every neuron of every checkpoint, with axes that can be read."""

from collections.abc import Callable

import numpy as np

from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.ink import MOST_LABELS
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
