"""What the pages say of each engine; tests hold the table against `measure.engines.ENGINES`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineWords:
    """How an engine computes effects, and why a run of it may have no audit."""

    method: str
    without_audit: str = "The engine that computed these effects has no audit, so their error is not known."
    in_short: str = "none, so the error of the effects is not known"
    audited: str = "recomputed in float64"  # what was done to the pairs of the audit
    audit: str = (
        "a seeded sample of (token, neuron) pairs ({n_pairs} at the last checkpoint) was computed again in float64 by "
        "the direct formula. The columns give the largest and the root-mean-square difference in Δ per pair;"
    )
    audit_is_about: str = "The audit speaks of arithmetic alone:"


ENGINE_WORDS = {
    "closed-form": EngineWords(
        method=(
            "Engine: closed form. After the last block there is only the final norm and the unembedding, and removing "
            "a neuron moves the residual stream along one row of W_out, so Δ is computed exactly and as a difference, "
            "not by subtracting two losses."
        )
    ),
    "gradient": EngineWords(
        method=(
            "Engine: gradient. Effects of all neurons are estimated from the gradient of each token's loss and of a "
            "random readout, and verified: in some of the cells (one neuron in one context), and in all of neurons "
            "that move the residual stream far and may be among the largest, the rest of the network ran again. Mean "
            "effects, their ranks and sums per context are verified; the columns ending in half_width have the 95 % "
            "interval of what is not known about them at these tokens, which widens intervals of phases and is not "
            "part of standard errors. KL is estimated only (screen). There is no direct effect."
        ),
        audited="in patched cells, whose mean Δ was estimated before",
        audit=(
            "the rest of the network ran again for some neurons in some contexts ({n_pairs} pairs of a token and a "
            "neuron at the last checkpoint). The columns give the largest and the root-mean-square error there of a "
            "context's mean Δ as the gradient estimated it, before exact values took its place;"
        ),
        audit_is_about="The audit speaks of estimates; intervals of verified means are in the table of effects, and",
    ),
    "patching": EngineWords(
        method=(
            "Engine: patching. The rest of the network runs again for every neuron, which serves every layer and "
            "architecture. There is no direct effect, as there is no single norm to freeze."
        ),
        without_audit=(
            "The patching engine runs the model itself again for every neuron; there is no shortcut whose error could "
            "be measured, and its results are what the closed form is checked against."
        ),
        in_short="none, the patching engine is itself the standard",
    ),
}


def engine_words(name: str) -> EngineWords:
    """Return what pages say of an engine; of one that another program registered, no more than its name."""
    return ENGINE_WORDS.get(name, EngineWords(method=f"Engine: {name}, which another program registered."))
