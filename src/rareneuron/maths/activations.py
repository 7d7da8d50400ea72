r"""The geometry of activations that fit in memory (Eq. 5, Tables 1-3): `geometry` and `moments` in one call.

A study streams its activations instead and calls `geometry.geometry_of`. Oracle: tests/geometry_oracle.py.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rareneuron.errors import NotMeasured
from rareneuron.maths import Definitions
from rareneuron.maths.geometry import Geometry, effective_dimensions, geometry_of, members, refuse_unusable
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.moments import SecondMoments


def effective_dimension(
    acts: Float[Tensor, "token neuron"] | Float[np.ndarray, "token neuron"],
    variance: float = 0.95,
    *,
    zscore: bool = False,
) -> int:
    r"""Smallest d with $\sum_{i \le d} \lambda_i / \sum_j \lambda_j \ge$ `variance`, λ of the activations' covariance.

    `zscore`: of their correlation. It grows with the number of tokens: 50 independent neurons have 37 over 80 tokens,
    47 over 1,000 and more. Compare values of equal numbers of tokens only.
    """
    moments = SecondMoments()
    moments.add(acts if isinstance(acts, Tensor) else np.asarray(acts))
    refuse_unusable(moments, variance)
    if moments.constant(moments.neurons).all():
        raise NotMeasured(
            f"None of {len(moments.neurons)} neurons varies over these {moments.n_tokens} tokens, so there is no "
            "variance to share out. Use other neurons or more tokens."
        )
    matrix = (moments.correlation if zscore else moments.covariance)(moments.neurons, moments.neurons)
    return int(effective_dimensions(matrix, variance))


def geometry(
    acts: Float[Tensor, "token neuron"] | Float[np.ndarray, "token neuron"],
    groups: NeuronGroups,
    rng: np.random.Generator | None = None,
    *,
    variance: float = 0.95,
    definitions: Definitions = "paper",
) -> Geometry:
    """`geometry_of` activations that fit in memory. Without `rng` the seed is 0."""
    moments = SecondMoments(members(groups))
    moments.add(acts)
    rng = np.random.default_rng(0) if rng is None else rng
    return geometry_of(moments, groups, rng, variance=variance, definitions=definitions)
