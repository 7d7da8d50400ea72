"""Tests whether the last layer is unlike the others, by resampling contexts."""

from functools import partial

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.layers import rare_over_common, shares, stacked
from rareneuron.errors import Unavailable
from rareneuron.maths.claims import bootstrap_test
from rareneuron.runs.layers import Layers, read_layers


def compared(case: Case) -> Layers | Unavailable:
    """Return the effects of all layers, or why the last can't be compared with others."""
    found = read_layers(case.run.folder())
    layers = found.record.layers
    if case.run.manifest.n_layers - 1 not in layers or len(layers) < 2:
        return Unavailable(f"The study looked at layers {', '.join(map(str, layers))}: the last or all others miss.")
    if "neurons.layer" not in found.sums:
        return Unavailable("The study looked at attention heads alone.")
    if (found.table["certainty"] == "screen").any():
        return Unavailable("Effects of earlier layers are a screen here, and nothing verified them (--verify 0).")
    if not found.sums["common.n_tokens"].any():
        return Unavailable("There are no common targets to compare with.")
    return found


def last_layer_special(case: Case, rng: np.random.Generator) -> Evidence:
    """Return a test of the last layer's |Δ| at rare over common targets, per move, against each earlier layer's."""
    found = compared(case)
    if isinstance(found, Unavailable):
        return found
    sums = stacked(found)
    layers = found.sums["neurons.layer"]
    state = rng.bit_generator.state
    tests = []
    for i in np.argsort(-rare_over_common(*sums.sum(0))[:-1], kind="stable"):
        rng.bit_generator.state = state  # the same contexts for every layer
        tests.append(
            bootstrap_test(
                f"|Δ| for the distance moved at rare over common targets, last layer over layer {layers[i]}, less 1",
                None,
                sums.reshape(len(sums), -1),
                partial(above_layer, n_layers=len(layers), i=int(i)),
                rng,
                n_tokens=rare_tokens(found),
            )
        )
    return tests


def rare_tokens(found: Layers) -> int:
    """Return how many rare tokens stand behind the sums."""
    return int(found.sums["rare.n_tokens"].sum())


def above_layer(totals: np.ndarray, *, n_layers: int, i: int) -> np.ndarray:
    """Return the last layer's rare over common less layer i's, relative to that; `totals` is [draw, 4 · layer]."""
    of = rare_over_common(*totals.reshape(len(totals), 4, n_layers).transpose(1, 0, 2))
    return np.asarray(of[:, -1] / of[:, i] - 1)


def layers_share(case: Case, rng: np.random.Generator) -> Evidence:
    """Return a test that the last layer's share of all effects is larger at rare targets than at common ones."""
    found = compared(case)
    if isinstance(found, Unavailable):
        return found
    sums = stacked(found)
    n_layers = sums.shape[2]

    def more(totals: np.ndarray) -> np.ndarray:
        of = totals.reshape(len(totals), 4, n_layers)
        return np.asarray(shares(of[:, 0])[:, -1] - shares(of[:, 2])[:, -1])

    statistic = "the last layer's share of Σ |Δ| at rare targets, less that at common ones"
    return [bootstrap_test(statistic, None, sums.reshape(len(sums), -1), more, rng, n_tokens=rare_tokens(found))]


LAYERS: dict[str, Maker] = {"last-layer-special": last_layer_special, "layers-share": layers_share}
