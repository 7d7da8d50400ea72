"""What was measured and the main numbers, in plain words and without a verdict."""

import pandas as pd

from rareneuron.maths.significance import t_quantile
from rareneuron.present.blocks import Block, Paragraph, Section
from rareneuron.present.findings import Findings
from rareneuron.present.wording import at_step, significant, step_name, with_error

BEYOND = 0.05  # share of neurons without an effect whose 95 % interval misses zero


def summary_section(found: Findings) -> Section:
    """Return what was done and the largest effects as sentences."""
    blocks: list[Block] = [Paragraph(text=measurement(found)), Paragraph(text=strongest(found))]
    if found.has_common:
        blocks.append(Paragraph(text=contrast(found.last)))
    return Section(name="summary", title="In words", blocks=tuple(blocks))


def measurement(found: Findings) -> str:
    """Say what was done, on how much."""
    data, steps = found.data, found.steps
    words = found.tokens.loc[found.tokens["rare"], "target"].nunique()
    series = (
        f"at {len(steps)} checkpoints, step {step_name(steps[0])} to {step_name(steps[-1])}, on the same tokens"
        if len(steps) > 1
        else at_step(steps[0])
    )
    return (
        f"Each of the {len(found.last):,} neurons of layer {found.subject.layer} was replaced by its mean activation, "
        f"one at a time, and the change in loss, Δ, measured at {data.n_rare:,} rare tokens ({words:,} different "
        f"targets, {data.n_contexts:,} contexts), {series}. A positive Δ means that the loss rises without the "
        "neuron: it boosts these tokens. A negative Δ: it suppresses them."
    )


def signs(found: Findings) -> str:
    """Say how many neurons have a mean Δ that this sample tells from zero."""
    table = found.last
    if table["delta_loss_se"].isna().all():
        return "With a single context there is no standard error."
    beyond = table["delta_loss"].abs() > t_quantile(found.data.n_contexts) * table["delta_loss_se"]
    return (
        f"{at_step(found.steps[-1]).capitalize()} the 95 % interval of mean Δ leaves out zero for "
        f"{int(beyond.sum()):,} of the {len(table):,} neurons ({int((beyond & (table['delta_loss'] > 0)).sum()):,} "
        f"above, {int((beyond & (table['delta_loss'] < 0)).sum()):,} below); if no neuron had an effect, about "
        f"{len(table) * BEYOND:.0f} would by chance."
    )


def strongest(found: Findings) -> str:
    """Name the boosting and the suppressing neuron with the largest mean |Δ|."""
    sentences = []
    for name, chosen in (
        ("boosting", found.last[found.last["delta_loss"] > 0]),
        ("suppressing", found.last[found.last["delta_loss"] < 0]),
    ):
        if chosen.empty:
            sentences.append(f"No neuron is {name}.")
            continue
        row = chosen.sort_values("rank").iloc[0]
        sentences.append(
            f"The {name} neuron with the largest mean |Δ| is {row['neuron']}: mean Δ "
            f"{with_error(row['delta_loss'], row['delta_loss_se'], sign=True)}, mean |Δ| "
            f"{with_error(row['abs_delta_loss'], row['abs_delta_loss_se'])} nats per token (rank {row['rank']:,})."
        )
    return " ".join(sentences)


def contrast(table: pd.DataFrame) -> str:
    """Compare sizes at rare and at common targets, each kind ranked on its own, so that selection favours neither."""
    rare, common = table["abs_delta_loss"], table["common_abs_delta_loss"]
    n_top = max(1, round(len(table) / 100))
    rare_top, common_top = rare.nlargest(n_top).mean(), common.nlargest(n_top).mean()
    return (
        f"The median neuron's mean |Δ| is {significant(rare.median())} at rare and {significant(common.median())} at "
        f"common targets{ratio(rare.median(), common.median())}. The top 1 % of neurons by mean |Δ| ({n_top:,} of "
        f"{len(table):,}, chosen for each kind of target on its own) average {significant(rare_top)} at rare and "
        f"{significant(common_top)} at common targets{ratio(rare_top, common_top)}. All in nats per token."
    )


def ratio(a: float, b: float) -> str:
    """Return a ratio in parentheses; nothing where it would divide by 0."""
    return f" (ratio {significant(a / b, 2)})" if b > 0 else ""
