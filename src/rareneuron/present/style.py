"""Colours and type that all figures share, for light and for dark paper.

Steps are ordered, so their colours are: the plasma map, whose lightness is monotone and which the common forms of
colour blindness leave ordered, cut so that every line keeps a contrast of about 3:1 with its paper. The last step
is the one that stands out most: darkest on light paper, brightest on dark.
"""

from dataclasses import dataclass
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
        """`n` colours from first to last; a single one is the last."""
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
