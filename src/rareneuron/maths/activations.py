r"""The geometry of activations that fit in memory (Eq. 5, Tables 1-3): `geometry` and `moments` in one call.

A study streams its activations instead and calls `geometry.geometry_of`. Oracle: tests/geometry_oracle.py.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rareneuron.errors import NotMeasured
from rareneuron.maths import Definitions
from rareneuron.maths.eigen import effective_dimensions
from rareneuron.maths.geometry import Geometry, geometry_of, members, refuse_unusable
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.moments import SecondMoments


def effective_dimension(
    acts: Float[Tensor, "token neuron"] | Float[np.ndarray, "token neuron"],
    variance: float = 0.95,
    *,
    zscore: bool = False,
) -> int:
    r"""Return how many directions hold most of the variance of some neurons' activations.

    That is the smallest d with $\sum_{i \le d} \lambda_i / \sum_j \lambda_j \ge$ `variance`, λ the eigenvalues of the
    activations' covariance. It grows with the number of tokens: 50 independent neurons have 37 over 80 tokens, 47 over
    1,000 and more. Compare values of equal numbers of tokens only.

    Args:
        acts: activations, [token, neuron], two tokens or more.
        variance: share τ of the variance, above 0 and up to 1.
        zscore: whether each neuron is divided by its standard deviation, so that loud neurons don't decide.

    Returns:
        The number of directions, from 1 to the number of neurons.

    Raises:
        NotMeasured: no neuron varies.
        InvalidConfig: there are fewer than two tokens, or `variance` is out of its range.

    Source:
        App. 5.3.2 and Table 2 of “Emergent Specialization: Rare Token Neurons in Language Models”.

    Example:
        Fifty neurons that mix three signals:

        >>> import numpy as np
        >>> import rareneuron as rn
        >>> rng = np.random.default_rng(0)
        >>> rn.effective_dimension(rng.normal(size=(100, 3)) @ rng.normal(size=(3, 50)))
        3
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
    signed: bool = True,
    lengths: Float[np.ndarray, " neuron"] | None = None,
) -> Geometry:
    """Measure how the neurons of each group act together, beside the same of random groups.

    Within groups: mean correlation and cosine over pairs and the means of their sizes, clusters by 1 − |ρ|, effective
    dimensions. Between groups: mean correlation and cosine and those of their sizes. Each value stands beside its
    distribution over uniform and over matched random groups. For activations that don't fit in memory, add them to
    `maths.moments.SecondMoments` and call `maths.geometry.geometry_of`.

    Args:
        acts: activations of the whole layer, [token, neuron], the same tokens for all groups.
        groups: groups of at least 3 neurons, with 99 random draws or more.
        rng: source of the random pairs of groups; without it the seed is 0.
        variance: share τ of the effective dimensions.
        definitions: `paper`, or `released` for what its authors' scripts compute.
        signed: False where the model leaves the signs of its activations open, as gated MLPs do; mean correlation and
            mean cosine are not defined there, and only their sizes are measured.
        lengths: length of each neuron's row of W_out, [neuron], where the model leaves the scale of its activations
            open, as gated MLPs and ReLU do; covariances are then of activation times length.

    Returns:
        Every statistic of every group and pair, with its nulls; `rows()` makes a table of it.

    Raises:
        TooFewNeurons: groups or the random neurons are too few.
        NotMeasured: a group has no two neurons that vary.
        InvalidConfig: there are fewer than two tokens, or too few random draws.

    Source:
        App. 5.3.2, Eq. 5 and Tables 1 to 3 of “Emergent Specialization: Rare Token Neurons in Language Models”; the
        nulls are this package's (docs/geometry.md).

    Example:
        Neurons 0 to 4 share a signal, and have the largest effects:

        >>> import numpy as np
        >>> import rareneuron as rn
        >>> rng = np.random.default_rng(0)
        >>> acts = rng.normal(size=(500, 40))
        >>> acts[:, :5] += rng.normal(size=(500, 1))
        >>> delta = np.where(np.arange(40) < 20, 1.0, -1.0) / np.arange(1, 41)
        >>> groups = rn.neuron_groups(delta, np.abs(delta), size=5, n_draws=200, rng=rng)
        >>> found = rn.geometry(acts, groups).within["correlation"]["boosting"]
        >>> round(found.value, 2), round(found.uniform.null_mean, 1), found.uniform.p < 0.05
        (0.53, 0.0, True)
    """
    moments = SecondMoments(members(groups))
    moments.add(acts)
    rng = np.random.default_rng(0) if rng is None else rng
    return geometry_of(moments, groups, rng, variance=variance, definitions=definitions, signed=signed, lengths=lengths)
