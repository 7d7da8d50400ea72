"""The figure of claims: effects in spreads of their null, verdicts by shape and colour."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rareneuron.errors import RunFolderError
from rareneuron.maths.claims import Hypothesis, against_groups
from rareneuron.maths.significance import against_null
from rareneuron.maths.verdicts import judge
from rareneuron.present.blocks import Notice
from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.figures.claims import VERDICTS, look
from rareneuron.present.findings import findings
from rareneuron.present.readable import NO_CLAIMS
from rareneuron.present.sections.claims import claims_section
from rareneuron.present.style import DARK, LIGHT, Theme
from rareneuron.runs.run import Run
from tests.present.claimed import Made

MakeRun = Callable[..., Run]


def test_the_frame_scales_intervals_as_it_does_effects(claimed: Callable[..., Run]) -> None:
    frame = FIGURES["claims"].frame(claimed()).set_index("name")
    assert frame.index.tolist() == ["apart", "together", "unknown", "none"]
    together = frame.loc["together"]
    assert (together["low"], together["high"]) == (pytest.approx(0.01 * 200), pytest.approx(0.04 * 200))
    assert frame.loc["apart", "low"] == pytest.approx(-4.0)
    assert frame.loc["unknown", ["effect_size", "low", "high", "p_holm"]].isna().all()
    assert frame.loc["none", ["low", "high"]].isna().all(), "an effect of 0 has no scale"
    assert frame.loc["none", "effect_size"] == 0


def test_what_is_claimed_lies_to_the_right_where_less_is_claimed_too(claimed: Callable[..., Run]) -> None:
    hypothesis = Hypothesis(name="lower", title="α is lower", source="Table 4", smallest=0.1)
    other = Hypothesis(name="higher", title="ρ is higher", source="Table 1", smallest=0.1)
    draws = np.random.default_rng(0).normal(2, 0.1, 999)
    less, more = (
        against_groups(against_null(value, draws), "x", "boosting", "matched", above=above)
        for value, above in ((1.0, False), (3.0, True))
    )
    frame = FIGURES["claims"].frame(claimed(judge([(hypothesis, [less]), (other, [more])]))).set_index("name")
    for name in ("lower", "higher"):
        low, size, high = frame.loc[name, ["low", "effect_size", "high"]]
        assert 0 < low < size < high


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_verdicts_differ_by_shape_and_by_colour(theme: Theme) -> None:
    looks = [look(verdict, theme) for verdict in VERDICTS]
    assert len({style["marker"] for style in looks}) == 3
    assert len({str(style["color"]) for style in looks}) == 3
    assert look("inconclusive", theme)["markerfacecolor"] == theme.paper


def test_every_claim_has_a_mark_and_its_p_and_those_with_an_effect_a_point(claimed: Callable[..., Run]) -> None:
    drawn = figure(claimed(), "claims")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    places = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() in VERDICTS.values()]
    assert sorted(x for x in places if x != 1.05) == [-2.0, 0.0, 4.0]
    assert places.count(1.05) == 4
    assert [t.get_text() for t in axes.texts] == ["0.021", "0.021", "no p", "1.0", "p, Holm"]
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["1 supported", "2 not supported", "1 inconclusive"]
    low, high = axes.get_xlim()
    assert low < -4, "intervals find room"
    assert high > 8, "intervals find room"


@pytest.mark.parametrize("n", [1, 25])
def test_nothing_overlaps_however_many_claims(claimed: Callable[..., Run], n: int) -> None:
    drawn = figure(claimed(tuple(Made(name=f"c{i}", verdict=list(VERDICTS)[i % 3]) for i in range(n))), "claims")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    labels = [t.get_window_extent() for t in axes.get_yticklabels()]
    assert len(labels) == n
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])
    for text in (*axes.texts, *axes.get_yticklabels()):
        box = text.get_window_extent()
        assert box.x0 >= -1
        assert box.x1 <= drawn.bbox.x1 + 1


def test_a_run_without_verdicts_says_so(make_run: MakeRun, claimed: Callable[..., Run], monkeypatch: Any) -> None:
    damaged = claimed()

    def fails(_: Run) -> None:
        raise RunFolderError("claims.json is damaged")

    monkeypatch.setattr(Run, "claims", fails, raising=False)
    for run in (make_run(), damaged):
        assert FIGURES["claims"].frame(run)["reason"].tolist() == [NO_CLAIMS]
        drawn = figure(run, "claims")
        assert "holds no verdicts" in drawn.axes[0].texts[0].get_text()
        assert claims_section(findings(run)).blocks == (Notice(text=NO_CLAIMS),)
