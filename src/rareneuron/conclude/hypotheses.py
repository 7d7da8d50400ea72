"""Lists the hypotheses: each finding of the paper and the questions that follow from it, with the smallest effect
that matters.

They were stated before any data; docs/claims.md gives the reasons. Effects are in the unit of the statistic: a
correlation, a cosine, a number of dimensions, α, a ratio less 1, a share of the sum of single effects, nats. Of an
absence it is the margin.
"""

from dataclasses import replace

from rareneuron.maths.claims import Hypothesis

HYPOTHESES = (
    Hypothesis(
        name="three-phases",
        title="The rank curve has a plateau, a power law and a decay",
        source="Sec. 3.1, Fig. 1b",
        smallest=1.0,
    ),
    Hypothesis(
        name="plateau-grows",
        title="The plateau grows over training",
        source="Fig. 3b",
        smallest=0.3,
    ),
    Hypothesis(
        name="slope-kink",
        title="The slope has a kink that smooth curves lack (“second-order transition”)",
        source="Fig. 2a",
        smallest=0.0,
    ),
    Hypothesis(
        name="correlation-within",
        title="Neurons of either group are correlated more than random ones",
        source="Table 1",
        smallest=0.01,
    ),
    Hypothesis(
        name="correlation-random",
        title="Either group is correlated with random neurons less than these are with each other",
        source="Table 1",
        smallest=0.002,
    ),
    Hypothesis(
        name="dimension",
        title="Either group spans fewer dimensions than random groups",
        source="Table 2",
        smallest=1.0,
    ),
    Hypothesis(
        name="cosine-within",
        title="Activations within either group point the same way more than random ones",
        source="Table 3",
        smallest=0.02,
    ),
    Hypothesis(
        name="cosine-across",
        title="Activations of the boosting and the suppressing group point the same way more than random pairs'",
        source="Table 3",
        smallest=0.02,
    ),
    Hypothesis(
        name="cosine-random",
        title="Activations of either group point away from random neurons' more than these do from each other",
        source="Table 3",
        smallest=0.01,
    ),
    Hypothesis(
        name="heavy-tail-W_in",
        title="Weights of either group in W_in are heavier-tailed than random groups'",
        source="Table 4, Fig. 2b",
        smallest=0.2,
    ),
    Hypothesis(
        name="heavy-tail-W_gate",
        title="Weights of either group in W_gate are heavier-tailed than random groups'",
        source="Table 4, Fig. 2b",
        smallest=0.2,
    ),
    Hypothesis(
        name="heavy-tail-W_out",
        title="Weights of either group in W_out are heavier-tailed than random groups'",
        source="Table 4, Fig. 2b",
        smallest=0.2,
    ),
    Hypothesis(
        name="rare-specific",
        title="For the distance moved, the groups matter more at rare than at common targets than other neurons do",
        source="beyond the paper",
        smallest=0.1,
    ),
    Hypothesis(
        name="rare-specific-loss",
        title="The groups matter more at rare than at common targets at equal clean loss, too",
        source="beyond the paper",
        smallest=0.1,
    ),
    Hypothesis(
        name="joint-sum",
        title="Ablating a group at once does more than its neurons one at a time, added up",
        source="beyond the paper",
        smallest=0.05,
    ),
    Hypothesis(
        name="joint-random",
        title="This excess is larger than in random groups",
        source="beyond the paper",
        smallest=0.05,
    ),
    Hypothesis(
        name="frequency-explains",
        title="More of either group's effect goes along token frequency than of other neurons'",
        source="beyond the paper: token-frequency neurons",
        smallest=0.1,
    ),
    Hypothesis(
        name="norm-explains",
        title="More of either group's effect goes through the final norm than of other neurons'",
        source="beyond the paper: entropy neurons",
        smallest=0.1,
    ),
    Hypothesis(
        name="rare-beyond-frequency",
        title="Without what goes along token frequency, too, the groups matter more at rare than at common targets",
        source="beyond the paper",
        smallest=0.1,
    ),
    Hypothesis(
        name="type-specific",
        title="Effects of either group belong to the target's type, more than to its context and than those of others",
        source="beyond the paper",
        smallest=0.05,
    ),
    Hypothesis(
        name="rare-only-plateau",
        title="The largest effects stand out more at rare than at common targets",
        source="beyond the paper",
        smallest=0.1,
    ),
    Hypothesis(
        name="no-clustering",
        title="Neurons of either group form no more clusters, and no fewer, than other neurons do (modularity)",
        source="beyond the paper: an absence that follow-up work claims",
        smallest=0.1,
        absence=True,
    ),
)


OF_LAYERS = (  # asked of studies of several layers
    Hypothesis(
        name="last-layer-special",
        title="For the distance moved, the last layer's neurons matter more at rare than at common targets than those "
        "of any earlier layer do",
        source="beyond the paper, whose limits name it",
        smallest=0.1,
    ),
    Hypothesis(
        name="layers-share",
        title="The last layer has a larger share of all effects at rare targets than at common ones",
        source="beyond the paper, whose limits name it",
        smallest=0.02,
    ),
)

OF_ROUTING = (  # asked of studies of several layers whose neurons stand behind attention heads
    Hypothesis(
        name="no-routing",
        title="Attention heads of earlier layers write to the groups at rare targets no more, and no less, than to "
        "other neurons",
        source="beyond the paper: an absence that follow-up work claims",
        smallest=0.1,
        absence=True,
    ),
)

OF_TASKS = (  # asked of runs whose last checkpoint was evaluated on the rare-word swap
    Hypothesis(
        name="tasks-need-the-group",
        title="Without the boosting group the model prefers a rare word that was written less to another as frequent",
        source="beyond the paper, whose limits name it",
        smallest=0.1,
    ),
)

OF_SIZES = {  # titles where the model leaves the signs of its neurons open, and |correlation| and |cosine| are judged
    "correlation-within": "Neurons of either group are correlated, with either sign, more than random ones",
    "correlation-random": (
        "Either group is correlated with random neurons, with either sign, less than these are with each other"
    ),
    "cosine-within": "Activations within either group lie along one line more than random ones",
    "cosine-across": (
        "Activations of the boosting and the suppressing group lie along one line more than random pairs'"
    ),
    "cosine-random": "Activations of either group lie along random neurons' lines less than these along each other's",
}


def hypotheses(
    *, gated: bool, signed: bool, layers: bool = False, routing: bool = False, tasks: bool = False
) -> list[Hypothesis]:
    """Return those that are asked of a model with or without a gate, whose neurons have signs or leave them open.

    `layers`: whether the study looked at several layers; `routing`: at heads before the groups; `tasks`: whether its
    groups were evaluated.
    """
    asked = [h for h in HYPOTHESES if gated or h.name != "heavy-tail-W_gate"]
    asked += [*(OF_LAYERS if layers else ()), *(OF_ROUTING if routing else ()), *(OF_TASKS if tasks else ())]
    return asked if signed else [replace(h, title=OF_SIZES.get(h.name, h.title)) for h in asked]


def hypothesis(name: str) -> Hypothesis:
    """Return the hypothesis of this name."""
    return next(h for h in (*HYPOTHESES, *OF_LAYERS, *OF_ROUTING, *OF_TASKS) if h.name == name)
