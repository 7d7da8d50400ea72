"""The numbers that the paper prints in its Tables 1–4, and the models that they belong to.

Source: *Emergent Specialization: Rare Token Neurons in Language Models*, App. 5.3.2 and 5.3.3, as printed: text, so
that no digit is added. They are facts about five models; nothing here enters any computation. The paper names neither
the checkpoint, nor the matrix of Table 4, nor how activations are scaled in Table 2, and `random` is one random group.
"""

from typing import Literal

Number = Literal[1, 2, 3, 4]

GROUP_SIZE = 50  # "group size=50", of every table
N_TOKENS = 25_088  # Sec. 2: what means are taken over
LAST_STEPS = {"Pythia-70M": 143_000, "Pythia-410M": 143_000}  # of those whose steps are public

WITHIN = ("boosting", "suppressing", "random")
BETWEEN = ("boosting-random", "suppressing-random", "boosting-suppressing", "random-random")
GROUPS: dict[Number, tuple[str, ...]] = {1: (*WITHIN, *BETWEEN), 2: WITHIN, 3: (*WITHIN, *BETWEEN), 4: WITHIN}

MODELS = {  # Hub ids of the five models
    "EleutherAI/pythia-70m": "Pythia-70M",
    "EleutherAI/pythia-410m": "Pythia-410M",
    "openai-community/gpt2": "GPT2-Small",
    "openai-community/gpt2-large": "GPT2-Large",
    "openai-community/gpt2-xl": "GPT2-XL",
    "gpt2": "GPT2-Small",
    "gpt2-large": "GPT2-Large",
    "gpt2-xl": "GPT2-XL",
}

ROWS: dict[Number, str] = {
    1: """
        Pythia-70M   0.028  0.045   0.011   0.002   0.005  0.027  0.009
        Pythia-410M  0.036  0.052   0.007   0.005   0.006  0.040  0.007
        GPT2-Small   0.017  0.019   0.017  -0.001  -0.001  0.021  0.023
        GPT2-Large   0.004  0.011   0.012  -0.004  -0.004  0.010  0.016
        GPT2-XL      0.036  0.016  -0.007   0.003 -0.0004  0.020  0.008
    """,
    2: """
        Pythia-70M   33.5   32.6   36.2
        Pythia-410M    33   32.2   37.3
        GPT2-Small     37     40     45
        GPT2-Large     43     43     46
        GPT2-XL        40     42     46
    """,
    3: """
        Pythia-70M   0.141  0.165   0.021  -0.017  -0.014  0.146  0.021
        Pythia-410M  0.107  0.133   0.054  -0.032  -0.041  0.114  0.058
        GPT2-Small   0.109  0.122   0.089  -0.100  -0.105  0.120  0.099
        GPT2-Large   0.028  0.092   0.041  -0.034  -0.063  0.054  0.052
        GPT2-XL      0.095  0.095   0.009  -0.010  -0.015  0.090  0.012
    """,
    4: """
        Pythia-70M   4.30  3.97  6.37
        Pythia-410M  3.80  3.43  7.56
        GPT2-Small   2.12  1.57  6.74
        GPT2-Large   3.30  1.84  8.31
        GPT2-XL      2.01  1.68  9.33
    """,
}


def paper_row(number: Number, name: str) -> dict[str, str]:
    """Return a row of one of the paper's tables, as printed, by group."""
    for line in ROWS[number].split("\n"):
        model, *values = line.split() or [""]
        if model == name:
            return dict(zip(GROUPS[number], values, strict=True))
    raise KeyError(name)


def paper_name(model: str) -> str | None:
    """Return the paper's name of a Hub model; None for a model that it doesn't study."""
    return MODELS.get(model)


def variant_of(model: str) -> str | None:
    """Return the paper's name of the model that this one repeats on deduplicated text; None for any other model."""
    return MODELS.get(model.removesuffix("-deduped")) if model.endswith("-deduped") else None
