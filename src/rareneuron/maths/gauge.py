r"""What a model leaves open about its neurons: changes of weights that change nothing else, and so mean nothing.

An MLP adds $\sum_i n_i w_{out,i}$ to the residual stream, so $n_i \to c\, n_i$ with $w_{out,i} \to w_{out,i} / c$
changes nothing where the weights before the activation can make the first. In a gated MLP, $n = \varphi(g) u$, scaling
the row of u (`W_in`) does it for every $c \ne 0$. Without a gate it depends on φ: an odd one allows c = −1, one with
$\varphi(a z) = a^k \varphi(z)$ for a > 0, such as ReLU (k = 1) or its square (k = 2), every c > 0; GELU and SiLU
neither. Neurons may change places in every model. Oracle: tests/models/test_gauge.py, the models themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Activation = Callable[[Float[np.ndarray, " z"]], Float[np.ndarray, " z"]]

TOLERANCE = 1e-6  # relative; float32 activations round to 1e-7, and GELU is off by tenths
DEGREES = (1, 2)  # of homogeneity: ReLU and its square


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Which factors c of a neuron's activation its model undoes in the neuron's row of W_out."""

    sign: bool = False  # c = −1: no sign of an activation, and no direction of its row, means anything by itself
    scale: bool = False  # every c > 0: nor do the lengths of its rows of W_in and W_out
    gate_scale: bool = False  # nor that of its row of W_gate

    @property
    def open_lengths(self) -> tuple[str, ...]:
        """Names of the matrices whose rows may be scaled."""
        return (*(("W_in", "W_out") if self.scale else ()), *(("W_gate",) if self.gate_scale else ()))


def gauge_of(activation: Activation, *, gated: bool) -> Gauge:
    """Return what a layer with this nonlinearity φ leaves open; φ is tried out, whatever its name.

    >>> gauge_of(lambda z: np.maximum(z, 0), gated=False)
    Gauge(sign=False, scale=True, gate_scale=False)
    >>> gauge_of(lambda z: z / (1 + np.exp(-z)), gated=True)
    Gauge(sign=True, scale=True, gate_scale=False)
    """
    if gated:
        return Gauge(sign=True, scale=True, gate_scale=is_homogeneous(activation))
    return Gauge(sign=is_odd(activation), scale=is_homogeneous(activation))


def is_odd(activation: Activation) -> bool:
    """Return whether φ(−z) = −φ(z)."""
    z = np.linspace(0.05, 6, 120)
    return bool(np.allclose(activation(-z), -activation(z), rtol=TOLERANCE, atol=TOLERANCE))


def is_homogeneous(activation: Activation) -> bool:
    """Return whether φ(a z) = a^k φ(z) for a > 0 and one of the degrees k."""
    z = np.linspace(-3, 3, 121)
    return any(
        all(np.allclose(activation(a * z), a**k * activation(z), rtol=TOLERANCE, atol=TOLERANCE) for a in (0.5, 2.0))
        for k in DEGREES
    )
