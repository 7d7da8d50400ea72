"""How the numbers are defined, briefly, with the paper's equation numbers."""

from rareneuron.present.blocks import Definitions, Paragraph, Section
from rareneuron.present.engines import engine_words
from rareneuron.present.findings import Findings

DEFINITIONS = {
    "paper": "Definitions: “paper”, every quantity as the paper's text defines it.",
    "released": (
        "Definitions: “released” for phases, for the geometry of groups and for the spectra of their weights, as the "
        "authors' released scripts compute them. The analysed tokens, their effects and the choice of groups are the "
        "same by either definitions."
    ),
}
REFERENCES = {"analysed": "over the analysed rare tokens, as in the paper", "all": "over all positions of the contexts"}
COMMON_REFERENCES = {
    "analysed": " Common targets are ablated to a mean of their own, over the analysed common tokens.",
    "all": " It is the same for common targets.",
}


def method_section(found: Findings) -> Section:
    """Return the definitions that this run used."""
    reference = found.config.reference
    items = [
        (
            "neuron l.i",
            (
                "entry i of the input of the MLP's output projection in layer l: the activation after the "
                "nonlinearity, in a gated MLP the product with the gate."
            ),
        ),
        (
            "token, target",
            (
                "a token is one position t of one context; its target is the token at t + 1, whose loss is measured. "
                "A token is rare if its target is (App. 5.3.1)."
            ),
        ),
        (
            "mean ablation",
            f"x̃ = x + (n̄ − n)·w_out (Eq. 3), with n̄ the neuron's mean {REFERENCES[reference]}."
            + (COMMON_REFERENCES[reference] if found.has_common else ""),
        ),
        (
            "Δ",
            (
                "L(x̃) − L(x) at one token, in nats. Mean Δ keeps the sign: positive, the ablation hurts and the "
                "neuron boosts; negative, it suppresses."
            ),
        ),
        ("mean |Δ|", "the mean of the absolute change (Eq. 4). Ranks, the rank curve (Eq. 1) and groups go by it."),
        (
            "±",
            "one standard error of a mean over tokens, clustered by context, as tokens of one context aren't "
            "independent.",
        ),
    ]
    if "direct_delta_loss" in found.last:
        items.append(
            (
                "direct Δ",
                (
                    "the same with the final norm's scale held at its clean value: what the neuron writes towards the "
                    "logits, without its effect through the norm."
                ),
            )
        )
    items += [
        (
            "KL",
            "mean Kullback–Leibler divergence of the ablated from the clean prediction, KL(clean ‖ ablated), in nats.",
        ),
        (
            "common",
            (
                "the same statistics at targets that are not rare, from the same contexts and behind the same word "
                "filter, as many as there are rare ones in each context where there are that many."
            ),
        ),
    ]
    return Section(
        name="method",
        title="Method and definitions",
        blocks=(
            Definitions(items=tuple(items)),
            Paragraph(text=engine_words(found.config.engine).method),
            Paragraph(text=DEFINITIONS[found.run.definitions]),
        ),
    )
