"""Figures as files and in pages: formats, bytes that repeat, ids that never clash, one drawing for both papers."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import InvalidConfig
from rareneuron.present.figure import as_svg, inline_svg
from rareneuron.present.figures import FIGURES, figure, save_figure
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


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

    monkeypatch.setattr("rareneuron.present.figure.as_svg", fails)
    with pytest.raises(ValueError, match="no ink"):
        save_figure(drawn, path)
    assert [(p.name, p.read_text()) for p in tmp_path.glob("*f.svg*")] == [("f.svg", "old")]


def test_svgs_of_one_page_share_no_id(make_run: MakeRun) -> None:
    run = make_run()
    ids = [
        set(re.findall(r'id="([^"]*)"', inline_svg(figure(run, "rank-curve"), salt)))
        for salt in ("rank-curve", "rank-curves")
    ]
    assert ids[0], "no id at all: this test would see nothing"
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("name", FIGURES)
def test_every_colour_of_a_page_can_be_changed_by_its_style_sheet(make_run: MakeRun, name: str) -> None:
    svg = inline_svg(figure(make_run(n_neurons=300), name), name)
    colours = re.findall(r"#[0-9a-f]{6}\b", " ".join(re.findall(r'style="([^"]*)"', svg)))
    assert len(colours) > 2
    assert len(colours) == len(re.findall(r"var\(--on-([0-9a-f]{6}),#\1\)", svg)), "a colour that dark paper keeps"


def test_a_file_has_plain_colours_which_are_the_pages_fallbacks(make_run: MakeRun, tmp_path: Path) -> None:
    drawn = figure(make_run(), "rank-curve")
    text = save_figure(drawn, tmp_path / "f.svg").read_text(encoding="utf-8")
    assert "var(" not in text
    page = inline_svg(drawn, "rank-curve")
    used = [set(re.findall(r"#[0-9a-f]{6}\b", svg)) for svg in (text, page)]
    assert used[0] == used[1]


def test_a_figure_without_what_it_needs_says_why() -> None:
    made = FIGURES["spectrum"]
    assert made.reason(pd.DataFrame([{"reason": "No groups."}])) == "No groups."
    assert made.reason(pd.DataFrame()) == made.empty
    assert made.reason(pd.DataFrame([{"eigenvalue": 1.0, "reason": ""}])) is None


def test_a_pages_lines_are_kept_to_hundredths_of_a_point(make_run: MakeRun) -> None:
    drawn = figure(make_run(), "rank-curve")
    exact, page = (
        re.findall(r"-?\d+(?:\.\d+)?", " ".join(re.findall(r' d="([^"]*)"', svg)))
        for svg in (as_svg(drawn, "f", "none"), inline_svg(drawn, "f"))
    )
    assert max(len(number.partition(".")[2]) for number in exact) > 2
    assert max(len(number.partition(".")[2]) for number in page) == 2
    np.testing.assert_allclose([float(x) for x in page], [float(x) for x in exact], atol=0.01)
