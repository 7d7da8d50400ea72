"""The science: arrays in, frozen results out. Knows neither files nor models nor plots."""

from typing import Literal

Definitions = Literal["paper", "released"]  # the paper's text, or what its authors' scripts compute
