"""Chooses a checkpoint's groups, and measures how their neurons act together and what their weights look like.

Groups are known only after the effects, so the activations of their neurons at rare targets are read once more; their
second moments are summed in float64. Where there are too few neurons of a sign, every part holds that reason.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch

from rareneuron.errors import NotMeasured, RareNeuronError, TooFewNeurons
from rareneuron.maths.geometry import Geometry, geometry_of, members
from rareneuron.maths.groups import NeuronGroups, neuron_groups
from rareneuron.maths.modularity import BlockMoments, modularity_of_groups
from rareneuron.maths.moments import SecondMoments
from rareneuron.maths.spectrum import Spectrum
from rareneuron.maths.weights import spectrum
from rareneuron.measure.capture import TokenSource
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.groups import MATCHED_ON, MOST_CANDIDATES, ComparedGroups
from rareneuron.runs.seeds import generator


def compare_groups(config: StudyConfig, source: TokenSource, effects: pd.DataFrame, clustered: bool) -> ComparedGroups:
    """Choose the groups, and compare them with random ones; `clustered`: the modularity of their graphs, too."""
    groups = choose_groups(config, effects)
    if isinstance(groups, RareNeuronError):
        return ComparedGroups(groups=groups, balance={}, geometry=groups, spectrum=groups)
    with ThreadPoolExecutor(2) as pool:  # neither knows of the other, and numpy leaves Python free
        begun: list[Future[Any]] = [
            pool.submit(acting_together, config, source, groups, clustered),
            pool.submit(group_spectrum, config, source, groups),
        ]
    found: list[Any] = []
    for part in begun:
        try:
            found.append(part.result())
        except NotMeasured as error:
            found.append(error)
    balance = match_quality(groups, effects[MATCHED_ON].to_numpy())
    geometry, modularity = found[0] if isinstance(found[0], tuple) else (found[0], None)
    return ComparedGroups(groups=groups, balance=balance, geometry=geometry, spectrum=found[1], modularity=modularity)


def choose_groups(config: StudyConfig, effects: pd.DataFrame) -> NeuronGroups | TooFewNeurons:
    """Return the groups, or the error that says why there are none, to be recorded."""
    try:
        return neuron_groups(
            effects["delta_loss"].to_numpy(),
            effects["abs_delta_loss"].to_numpy(),
            size=config.group_size,
            n_draws=config.n_random,
            most=MOST_CANDIDATES,
            covariate=effects[MATCHED_ON].to_numpy(),
            matched_on=MATCHED_ON,
            rng=generator(config.seed, "groups"),
        )
    except TooFewNeurons as error:
        return error


def acting_together(
    config: StudyConfig, source: TokenSource, groups: NeuronGroups, clustered: bool
) -> tuple[Geometry, dict[str, np.ndarray] | None]:
    """Return the geometry of the groups at the analysed rare tokens, and their modularity where it is asked for.

    All groups are measured at the same tokens. Nothing depends on signs or scales that the model leaves open
    (`maths.gauge`).
    """
    moments = SecondMoments(members(groups))
    blocks = BlockMoments(np.concatenate([groups.boosting, groups.suppressing]))
    for batch in source.again():
        rare = torch.from_numpy(batch.rare).to(batch.act.device)
        moments.add(batch.act[rare])
        if clustered:
            blocks.add(batch.act[rare].cpu().numpy(), batch.context[batch.rare])
    gauge, W_out = source.adapter.gauge(source.layer), source.adapter.weights(source.layer).W_out
    geometry = geometry_of(
        moments,
        groups,
        generator(config.seed, "geometry"),
        definitions=config.whose_definitions,
        signed=not gauge.sign,
        lengths=W_out.double().norm(dim=1).cpu().numpy() if gauge.scale else None,
    )
    if not clustered:
        return geometry, None
    return geometry, modularity_of_groups(
        moments, blocks, groups, generator(config.seed, "modularity"), signed=not gauge.sign
    )


def group_spectrum(config: StudyConfig, source: TokenSource, groups: NeuronGroups) -> Spectrum:
    """Return the spectra of the groups in every matrix of the layer's MLP."""
    weights = source.adapter.weights(source.layer)
    given = {"W_in": weights.W_in, "W_out": weights.W_out, "W_gate": weights.W_gate}
    rng = generator(config.seed, "spectrum")
    return spectrum(
        {name: W for name, W in given.items() if W is not None},
        groups,
        definitions=config.whose_definitions,
        unit_rows=source.adapter.gauge(source.layer).open_lengths,
        rng=rng,
    )


def match_quality(groups: NeuronGroups, covariate: np.ndarray) -> dict[str, dict[str, float]]:
    """Return how well matched draws match: the mean covariate of group, matched and uniform draws, and the overlap.

    `shared` is the mean share of a matched draw that belongs to the group itself, `distinct` the number of neurons
    that occur in any draw.
    """
    return {
        role: {
            "group": float(covariate[getattr(groups, role)].mean()),
            "matched": float(covariate[drawn].mean()),
            "uniform": float(covariate[groups.random].mean()),
            "shared": float(np.isin(drawn, getattr(groups, role)).mean()),
            "distinct": len(np.unique(drawn)),
        }
        for role, drawn in groups.matched.items()
    }
