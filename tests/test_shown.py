"""How results look in a notebook: every one of them, whatever its values, as a table of escaped text."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import rareneuron as rn
from rareneuron.errors import Unavailable
from rareneuron.maths.claims import Check, Claims
from rareneuron.maths.verdicts import judge
from rareneuron.shown import MOST_SHOWN, Shown, html_table, value_text


class Table(HTMLParser):
    """Cells of a table, and whether its elements close."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.rows, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def shown(result):
    table = Table(result._repr_html_())
    assert table.open == []
    return table.rows


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (12345, "12,345"),
        (True, "True"),
        ((0.5, None), "0.5, –"),
        ({"a": 1, "b": 2.0}, "a: 1, b: 2"),
        ({}, "none"),
        (np.arange(6.0).reshape(2, 3), "2 × 3, float64, 0 … 5"),
        (torch.tensor([True, False]), "2, bool, 0 … 1"),
        (np.array([np.nan, 1]), "2, float64"),
        (np.zeros((0, 3)), "0 × 3, float64"),
        (np.float32(0.5), "0.5"),
        (np.int64(12345), "12,345"),
        (-0.0, "0"),
        (np.array(["a", "b"]), "2, <U1"),
        (tuple(range(9)), "0, 1, 2, 3, 4, 5, … 9 in all"),
    ],
)
def test_values_are_told_in_a_line(value, said):
    assert value_text(value) == said
    assert MOST_SHOWN == 6


def test_markup_stays_text():
    page = html_table("<b>title</b>", ["<i>"], [("<script>alert(1)</script>",)])
    assert "<script>" not in page
    assert "<b>" not in page
    assert Table(page).rows == [["<i>"], ["<script>alert(1)</script>"]]


def test_a_dataclass_shows_its_fields():
    @dataclass(frozen=True, kw_only=True)
    class Thing(Shown):
        """A thing. And more."""

        size: int
        inner: object = None

    thing = Thing(size=3, inner=Thing(size=4))
    assert "Thing: A thing. And more." in thing._repr_html_()
    assert shown(thing) == [["size", "3"], ["inner", "Thing"]]


def test_every_public_result_shows_itself():
    results = {"RareTypes", "AblationEffects", "RankCurve", "NeuronGroups", "ReleasedPhases", "Readout", "Phases"}
    results |= {"Geometry", "Spectrum", "Claims", "Run", "SideBySide"}
    assert results <= set(rn.__all__)
    for name in results:
        assert issubclass(getattr(rn, name), Shown), name


def test_phases_show_the_outcome_first_and_intervals_beside():
    rng = np.random.default_rng(0)
    phases = rn.fit_phases(rn.rank_curve(np.abs(rng.standard_normal(300))), rng=rng)
    rows = shown(phases)
    assert rows[1][:2] == ["outcome", phases.outcome]
    assert ["p against half-normal", value_text(phases.null_p["half-normal"]), ""] in rows


def test_groups_geometry_and_spectrum_show_themselves():
    rng = np.random.default_rng(0)
    delta = rng.standard_normal(60)
    groups = rn.neuron_groups(delta, np.abs(delta), size=5, n_draws=99, rng=rng)
    assert ["boosting", f"5, int64, {groups.boosting.min()} … {groups.boosting.max()}"] in shown(groups)
    acts = rng.standard_normal((30, 60))
    geometry = rn.geometry(acts, groups, rng)
    assert len(shown(geometry)) == 1 + len(geometry.rows())
    spectrum = rn.spectrum({"W_out": rng.standard_normal((60, 16))}, groups, rng=rng)
    assert shown(spectrum)[0][:3] == ["matrix", "statistic", "group"]


def test_claims_show_a_row_each_and_what_is_missing_as_such():
    from rareneuron.conclude.hypotheses import HYPOTHESES

    hypothesis = HYPOTHESES[0]
    check = Check(name="c", title="Held?", value=0.5, low=None, high=None, at_least=0.9, sentence="")
    claims = Claims(claims=judge([(hypothesis, Unavailable("too few"))]), checks=(check,), step=3)
    rows = shown(claims)
    assert rows[1] == [hypothesis.title, "–", "–", "–", "inconclusive"]
    assert rows[2] == ["Held?", "0.5", "–", "–", "not measured"]
    assert not re.search(r"\bNone\b|\bnan\b", claims._repr_html_())
