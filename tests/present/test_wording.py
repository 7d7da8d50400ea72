"""Numbers and hostile text as people read them."""

import math

import pytest

from rareneuron.present.wording import (
    at_step,
    scale_of,
    seconds,
    short_number,
    significant,
    step_name,
    unit_of,
    visible,
    with_error,
    without_hidden,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00957, "0.00957"),
        (-0.25, "−0.250"),
        (21.6, "21.6"),
        (100.0, "100"),
        (1234567.0, "1,234,567"),
        (3.2e-6, "3.20 × 10⁻⁶"),
        (-9.999e-5, "−10.00 × 10⁻⁵"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.009575, 0.011702, "+0.010 ± 0.012"),
        (-0.0215, 0.0015, "−0.0215 ± 0.0015"),
        (123.4, 34.0, "+123 ± 34"),
        (3.21e-6, 4.4e-7, "(+3.21 ± 0.44) × 10⁻⁶"),
        (-1e-9, 0.5, "+0.00 ± 0.50"),  # no minus zero
        (0.5, math.nan, "+0.500 ± –"),
        (0.0, 0.0, "0 ± 0"),
        (math.nan, 0.1, "–"),
    ],
)
def test_a_mean_with_its_error(mean: float, error: float, text: str) -> None:
    assert with_error(mean, error, sign=True) == text


def test_scales_are_powers_of_a_thousand() -> None:
    assert [scale_of(v) for v in ([0.0769, -0.002], [3e-6, 4e-7], [2.5], [0.0, math.nan], [])] == [-3, -6, 0, 0, 0]
    assert [unit_of(-3), unit_of(0)] == ["10⁻³ nats", "nats"]


def test_ticks_steps_and_times() -> None:
    assert [short_number(v) for v in (0.1, 5e-4, 2e-5, 1e-6)] == ["0.1", "0.0005", "2×10⁻⁵", "10⁻⁶"]
    assert [step_name(s) for s in (0, 143_000, None)] == ["0", "143,000", "final"]
    assert [at_step(s) for s in (512, None)] == ["at step 512", "at the final checkpoint"]
    assert [seconds(v) for v in (0.04, 72.3, 212.0, 9000.0)] == ["0.0 s", "72 s", "3.5 min", "2.5 h"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (" rare", "␣rare"),
        ("a  b ", "a  b␣"),
        ("   ", "␣␣␣"),
        ("", "⟨empty⟩"),
        ("\n\t\r", "↵⇥⟨U+000D⟩"),
        ("\x00\x1b\x7f", "⟨U+0000⟩⟨U+001B⟩⟨U+007F⟩"),
        ("\x85", "⟨U+0085⟩"),
        ("\u202eabc\u2066", "⟨U+202E⟩abc⟨U+2066⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\xa0x\u2028", "⟨U+00A0⟩x⟨U+2028⟩"),
        ("\ufffd", "\ufffd"),
        ("\u0301x", "◌\u0301x"),
        ("\ud800", "⟨U+D800⟩"),
        ("שלום", "שלום"),
        ("<b>&'\"", "<b>&'\""),  # escaping is the template's part
    ],
)
def test_nothing_in_a_token_is_hidden(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_long_tokens_are_cut_and_say_so() -> None:
    assert visible("x" * 61) == "x" * 60 + "… (61 characters)"
    assert visible("x" * 60) == "x" * 60


def test_running_text_keeps_its_spaces() -> None:
    assert without_hidden(" two words\u202e ") == " two words⟨U+202E⟩ "
