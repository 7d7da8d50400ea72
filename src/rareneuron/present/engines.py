"""What the pages say of each engine; tests hold the table against `measure.engines.ENGINES`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineWords:
    """How an engine computes effects, and why a run of it may have no audit."""

    method: str
    without_audit: str = "The engine that computed these effects has no audit, so their error is not known."
    in_short: str = "none, so the error of the effects is not known"


ENGINE_WORDS = {
    "closed-form": EngineWords(
        method=(
            "Engine: closed form. After the last block there is only the final norm and the unembedding, and removing "
            "a neuron moves the residual stream along one row of W_out, so Δ is computed exactly and as a difference, "
            "not by subtracting two losses."
        )
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
