"""Colours: each can be told from its paper, and each has its twin on dark paper."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from rareneuron.present.style import DARK, LIGHT, Theme, dark_colours, dark_rules, with_variables
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


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


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 60])
def test_a_steps_colour_on_dark_paper_is_that_of_the_same_step(n: int) -> None:
    from matplotlib.colors import to_hex, to_rgb

    for light, dark in zip(LIGHT.ordered(n), DARK.ordered(n), strict=True):
        twin = to_rgb(dark_colours()[to_hex(light)])
        np.testing.assert_allclose(twin, dark[:3], atol=0.02)  # one place of the colour map's 256


def test_paper_ink_and_grid_have_twins_and_no_two_colours_share_one() -> None:
    twins = dark_colours()
    assert [twins[getattr(LIGHT, name)] for name in ("paper", "ink", "faint")] == [DARK.paper, DARK.ink, DARK.faint]
    assert len(twins) > 150


def test_colours_become_variables_and_text_does_not() -> None:
    svg = f'<path style="fill: {LIGHT.ink}; stroke: #123456"/><text>{LIGHT.ink} style=x</text>'
    page = with_variables(svg)
    name = LIGHT.ink[1:]
    assert f'style="fill: var(--on-{name},{LIGHT.ink}); stroke: #123456"' in page
    assert f"<text>{LIGHT.ink} style=x</text>" in page


def test_rules_define_the_variables_in_use_for_dark_screens_alone() -> None:
    rules = dark_rules(with_variables(f'<path style="fill: {LIGHT.ink}"/>'))
    assert rules.startswith("@media screen and (prefers-color-scheme: dark)")
    assert re.findall(r"--on-(\w+): (#\w+);", rules) == [(LIGHT.ink[1:], DARK.ink)]
    assert dark_rules("<svg/>") == ""
