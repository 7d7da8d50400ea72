"""α_Hill over training: the rule of onsets, and any number of checkpoints can be read."""

from collections.abc import Callable

import pandas as pd
import pytest

from rareneuron.conclude.trajectory import onsets
from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.figures.alpha_hill import since
from rareneuron.present.style import DARK, LIGHT, Theme
from rareneuron.runs.files import write_json
from rareneuron.runs.run import Run
from tests.present.reading import legends

MakeRun = Callable[..., Run]


def alpha(p: list[float], value: float = 1.0) -> pd.DataFrame:
    """One line of the alpha-hill figure with these p."""
    n = len(p)
    table = pd.DataFrame(
        {"checkpoint": range(n), "step": [0, 64, 512, 4096][:n], "matrix": "W_in", "group": "boosting"}
    )
    table = table.assign(value=value, null_mean=2.0, null_low=1.5, null_high=2.5, matched_mean=1.8, p=p, reason="")
    return table.assign(since=since(table))


def test_the_alpha_hill_frame_is_the_spectrums(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 512))
    frame = FIGURES["alpha-hill"].frame(run)
    assert len(frame) == 2 * 2 * 2
    for _, row in frame.iterrows():
        rows = run.spectrum(int(row["step"])).set_index(["matrix", "statistic", "group", "null"])
        uniform, matched = (
            rows.loc[(row["matrix"], "alpha_hill", row["group"], null)] for null in ("uniform", "matched")
        )
        for name in ("value", "null_mean", "null_low", "null_high"):
            assert row[name] == uniform[name]
        assert row["matched_mean"] == matched["null_mean"]
        assert row["p"] == max(uniform["p"], matched["p"])


@pytest.mark.parametrize(
    ("p", "first", "words"),
    [
        ([0.5, 0.01, 0.04, 0.05], 1, "boost: lower since 64"),
        ([0.01, 0.2, 0.3, 0.01], 3, "boost: lower at 4,096"),
        ([0.01, 0.01, 0.01, 0.06], None, "boost: no difference"),
        ([0.01], 0, "boost: lower at 0"),
    ],
)
def test_since_when_is_the_rule_of_onsets(p: list[float], first: int | None, words: str) -> None:
    frame = alpha(p)
    assert frame["since"].isna().all() if first is None else set(frame["since"]) == {first}
    ours = onsets(
        pd.DataFrame({"step": [0, 64, 512, 4096][: len(p)], "a": 1.0, "a_null": 2.0, "a_matched": 2.0, "a_p": p})
    )
    assert pd.isna(ours["since"].iloc[0]) if first is None else ours["since"].iloc[0] == [0, 64, 512, 4096][first]
    suppressing = frame.assign(group="suppressing", value=3.0)
    drawn = FIGURES["alpha-hill"].drawn(pd.concat([frame, suppressing], ignore_index=True))
    drawn.draw_without_rendering()
    assert legends(drawn) == [words, words.replace("boost", "suppress").replace("lower", "higher")]


def test_only_points_unlike_both_kinds_of_groups_are_filled() -> None:
    both = pd.concat([alpha([0.5, 0.01, 0.2, 0.01]), alpha([1.0] * 4).assign(group="suppressing")], ignore_index=True)
    axes = FIGURES["alpha-hill"].drawn(both).axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() in ("o", "s") and line.get_linestyle() == "None"]
    filled = [p for p in points if p.get_markerfacecolor() != LIGHT.paper]
    assert [list(p.get_xdata()) for p in filled] == [[1, 3]]
    assert sorted(x for p in points for x in p.get_xdata()) == sorted([0, 1, 2, 3] * 2)


def test_a_checkpoint_without_groups_is_named_beside_the_others(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 64, 512))
    write_json(run.path / "steps" / "64" / "spectrum.json", {"unavailable": "3 boosting neurons."})
    drawn = figure(run, "alpha-hill")
    drawn.draw_without_rendering()
    assert "No spectrum at step 64." in [t.get_text() for t in drawn.axes[-1].texts]
    assert [t.get_text() for t in drawn.axes[-1].get_xticklabels()] == ["0", "64", "512"]
    assert {tuple(line.get_xdata()) for line in drawn.axes[0].get_lines() if line.get_linestyle() == "-"} >= {(0, 2)}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("n", [1, 4, 154])
def test_any_number_of_checkpoints_can_be_read(make_run: MakeRun, theme: Theme, n: int) -> None:
    one = FIGURES["alpha-hill"].frame(make_run(steps=(0,)))
    frame = pd.concat([one.assign(checkpoint=i, step=1000 * i, since=n // 2) for i in range(n)], ignore_index=True)
    frame = pd.concat([frame, frame[frame["matrix"] == "W_in"].assign(matrix="W_gate")], ignore_index=True)
    drawn = FIGURES["alpha-hill"].drawn(frame, theme)
    drawn.draw_without_rendering()
    boxes = [t.get_window_extent() for t in drawn.axes[-1].get_xticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for axes in drawn.axes:
        legend = axes.get_legend()
        assert legend is not None
        matrix = next(t for t in axes.texts if t.get_text().startswith("W_"))
        assert not legend.get_texts()[0].get_window_extent().overlaps(matrix.get_window_extent())


@pytest.mark.parametrize("name", ["alpha-hill", "spectrum"])
def test_no_groups_are_said_in_words(make_run: MakeRun, name: str) -> None:
    drawn = figure(make_run(unavailable="There are 3 boosting neurons."), name)
    drawn.draw_without_rendering()
    assert "There are 3 boosting neurons." in " ".join(t.get_text() for t in drawn.axes[0].texts)
