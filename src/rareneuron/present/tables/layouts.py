"""What each of the paper's Tables 1–4 shows of a run: statistics, heads, captions, words for groups and nulls."""

from collections.abc import Mapping
from dataclasses import dataclass

from rareneuron.present.published import Number
from rareneuron.present.readable import Part

NUMBERS: tuple[Number, ...] = (1, 2, 3, 4)
HEADS = {
    "boosting": "boost",
    "suppressing": "suppress",
    "random": "random",
    "boosting-random": "b–r",
    "suppressing-random": "s–r",
    "boosting-suppressing": "b–s",
    "random-random": "r–r",
}
NULLS = {"uniform": "random groups", "matched": "matched groups", "marchenko-pastur": "random directions"}
SHORT = {"uniform": "random", "matched": "matched", "marchenko-pastur": "directions"}  # at the head of a row
COVARIATES = {
    "move": "how far ablation moves the residual stream",
    "mean_abs_act": "mean |activation|",
    "W_out_norm": "the norm of their row of W_out",
}
LEGEND = (
    "boost and suppress are the groups of neurons with the largest mean |Δ| of either sign, random is the mean over "
    "random groups. Under each value stand the means of random and of matched groups, and p against them, two-sided."
)
PAIRS = "b–r and s–r are either group against random ones, b–s one against the other, r–r two random groups."
SIZES = "The paper has the signed mean, which is not defined where a model leaves the signs of its neurons open."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of the paper's tables: what it shows of a run, and how."""

    title: str
    part: Part
    statistics: Mapping[str, Mapping[str, str]]  # definitions → statistic → what is said in front of its row
    decimals: int
    about: str


LAYOUTS: dict[Number, Layout] = {
    1: Layout(
        title="Activation correlation within and between neuron groups",
        part="geometry",
        statistics={whose: {"correlation": "ρ", "abs_correlation": "|ρ|"} for whose in ("paper", "released")},
        decimals=3,
        about=f"Mean Pearson correlation ρ and mean |ρ| over pairs of neurons at rare tokens. {PAIRS} {SIZES}",
    ),
    2: Layout(
        title="Effective dimensions of neuron groups",
        part="geometry",
        statistics={
            "paper": {
                "d_eff": "covariance",
                "d_eff_share": "covariance, share",
                "d_eff_zscored": "z-scored",
                "d_eff_zscored_share": "z-scored, share",
            },
            "released": {"d_eff": "z-scored", "d_eff_share": "z-scored, share"},
        },
        decimals=1,
        about=(
            "Principal components that hold 95 % of the variance of a group's activations at rare tokens, as a count "
            "and as a share of the group, of the covariance (App. 5.3.2) and of z-scored activations. The paper's "
            "table is headed “proportion”, but its numbers up to 46 look like counts out of 50 of z-scored "
            "activations, which is what its released scripts compute. Counts grow with the number of tokens: compare "
            "equal ones only."
        ),
    ),
    3: Layout(
        title="Cosine similarity within and between neuron groups",
        part="geometry",
        statistics={whose: {"cosine": "cosine", "abs_cosine": "|cosine|"} for whose in ("paper", "released")},
        decimals=3,
        about=(
            "Mean cosine between activation vectors, uncentred, and mean |cosine|, over pairs of neurons at rare "
            f"tokens. {PAIRS} {SIZES}"
        ),
    ),
    4: Layout(
        title="α_Hill of the weights of neuron groups",
        part="spectrum",
        statistics={"paper": {"alpha_hill": ""}, "released": {"alpha_hill": ""}},
        decimals=2,
        about=(
            "α_Hill (Eq. 6) of the eigenvalues of each group's rows in each matrix of the MLP; lower is heavier. By "
            "definitions “released” it is of the Pearson matrix of the rows, over the largest tenth, against λ_{k+1}. "
            "Directions are rows of the same lengths in random directions (Marchenko–Pastur). The paper doesn't say "
            "which matrix its table is of; its released scripts take W_in of Pythia and W_out of GPT-2."
        ),
    ),
}
