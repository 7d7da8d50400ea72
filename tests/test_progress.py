"""Long work shows a bar on a terminal, lines in a log file, and nothing where it ends soon or nobody asked."""

import io
import sys

import pytest

from rareneuron import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, *, total=40, seconds=0.0, **settings):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    with progress.progress_bar("step 8 effects", total, "token", **settings) as bar:
        for _ in range(4):
            bar.update(10)
    return stream.getvalue()


def test_a_log_file_gets_whole_lines(monkeypatch):
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert [line.split(" after")[0] for line in lines] == [
        f"step 8 effects: {n} of 40 tokens" for n in (0, 10, 20, 30, 40)
    ]
    assert lines[-1].endswith("about 00:00 left")


def test_without_a_total_none_is_invented(monkeypatch):
    lines = shown(monkeypatch, io.StringIO(), total=0).splitlines()
    assert lines[-1].startswith("step 8 effects: 40 tokens after ")
    assert "left" not in lines[-1]


def test_nested_bars_leave_no_cursor_moves_in_a_log(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress_bar("outer", 2, "token") as outer, progress.progress_bar("inner", 2, "token") as inner:
        inner.update(2)
        outer.update(2)
    assert {line.split(":")[0] for line in stream.getvalue().splitlines()} == {"outer", "inner"}
    assert not set(stream.getvalue()) & {"\r", "\x1b"}


@pytest.mark.parametrize("settings", [{"seconds": 60.0}, {"show": False}])
def test_short_work_and_unasked_work_say_nothing(monkeypatch, settings):
    assert shown(monkeypatch, io.StringIO(), **settings) == ""


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert "step 8 effects" in text
    assert "%|" in text
    assert text.rsplit("\r", 2)[1].strip() == ""
