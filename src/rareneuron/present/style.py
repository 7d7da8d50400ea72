"""Colours and type that all figures share, for light and for dark paper.

Steps are ordered, so their colours are: the plasma map, whose lightness is monotone and which the common forms of
colour blindness leave ordered, cut so that every line keeps a contrast of about 3:1 with its paper. The last step
is the one that stands out most: darkest on light paper, brightest on dark.

Figures are drawn on light paper. In a page a style sheet turns each of their colours into the one that it has on dark
paper, so a colour of one theme stands for exactly one of the other.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

Colour = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Paper, ink and the ends of the ordered colour scale."""

    name: str
    paper: str
    ink: str
    faint: str  # grid
    first: float  # of the colour map, for the first step
    last: float  # for the last one

    def ordered(self, n: int) -> list[Colour]:
        """Return `n` colours from the first step's to the last one's; a single one is the last."""
        from matplotlib import colormaps

        colormap = colormaps["plasma"]
        return [colormap(self.last + (self.first - self.last) * (n - 1 - i) / max(n - 1, 1)) for i in range(n)]

    @property
    def settings(self) -> dict[Any, Any]:
        """Matplotlib's settings, to be used in an `rc_context`."""
        return {
            "font.family": "sans-serif",
            "font.size": 9.5,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.titley": 1.0,  # no ticks stand above, so there is nothing that a title would have to avoid
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.facecolor": self.paper,
            "figure.facecolor": self.paper,
            "text.color": self.ink,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
            "grid.color": self.faint,
            "grid.linewidth": 0.6,
            "lines.solid_capstyle": "round",
            "text.parse_math": False,  # names may hold dollar signs
        }


LIGHT = Theme(name="light", paper="#ffffff", ink="#22272e", faint="#e3e6ea", first=0.68, last=0.0)
DARK = Theme(name="dark", paper="#1b1e23", ink="#dfe3e8", faint="#353a41", first=0.42, last=0.96)

STYLE = re.compile(r'style="[^"]*"')
HEX = re.compile(r"#[0-9a-f]{6}\b")
VARIABLE = re.compile(r"var\(--on-([0-9a-f]{6}),")


@cache
def dark_colours() -> dict[str, str]:
    """Map every colour that a figure has on light paper to its colour on dark paper, both as `#rrggbb`."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    plasma = colormaps["plasma"]
    out = {LIGHT.paper: DARK.paper, LIGHT.ink: DARK.ink, LIGHT.faint: DARK.faint}
    for level in range(round(LIGHT.last * plasma.N), round(LIGHT.first * plasma.N) + 1):
        part = min((level / plasma.N - LIGHT.last) / (LIGHT.first - LIGHT.last), 1)  # of the way to the first step
        out[to_hex(plasma(level))] = to_hex(plasma(DARK.last + part * (DARK.first - DARK.last)))
    return out


def with_variables(svg: str) -> str:
    """Turn the colours of an SVG into CSS variables that fall back to them, so that a page can change them."""
    known = dark_colours()

    def variable(colour: re.Match[str]) -> str:
        return f"var(--on-{colour[0][1:]},{colour[0]})" if colour[0] in known else colour[0]

    return STYLE.sub(lambda style: HEX.sub(variable, style[0]), svg)


def dark_rules(svgs: str) -> str:
    """Return the CSS that gives the variables of these SVGs their colours on dark screens; empty without any."""
    used = sorted(set(VARIABLE.findall(svgs)))
    if not used:
        return ""
    rules = " ".join(f"--on-{name}: {dark_colours()['#' + name]};" for name in used)
    return f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {rules} }} }}"
