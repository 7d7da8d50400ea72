"""Measures what claims need beyond every neuron's effect, at the last checkpoint only.

It uses a seeded sample of whole contexts, since a joint effect costs a full readout per group and token. It keeps, per
neuron, zero- beside mean-ablation at the same tokens; per context and neuron, effects and shifts at rare and at common
targets, once more at equal clean loss; and the joint effect of a group beside the sum of single effects, for either
group at every rare token of the sample, and for random groups over some of these tokens; and how much of a neuron's
effect belongs to the target's type.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.ablation import AblationEngine, ablation_engine
from rareneuron.maths.behind_norm import BehindNormEngine
from rareneuron.maths.clustered import sums_by_context
from rareneuron.maths.equal_loss import effective_number, weights_at_equal_loss
from rareneuron.maths.fused import compiling_pays
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.intraclass import PairedTokens, type_correlations
from rareneuron.maths.joint import JointAblation
from rareneuron.maths.joint_sampled import SampledJointAblation, types_summed
from rareneuron.maths.pair_effects import AblationEffects
from rareneuron.maths.readout import Readout
from rareneuron.maths.significance import FEWEST_CONTEXTS
from rareneuron.maths.specificity import ROLES
from rareneuron.measure.capture import TokenSource
from rareneuron.runs.options import with_option
from rareneuron.runs.seeds import generator

RARE_TOKENS = 600  # of the sample, at least, and of 40 contexts; the last context is taken whole
JOINT_TOKENS = 128  # of these, at most, at which random groups are ablated, too
JOINT_SHARE = 4  # and at most one in so many: a small study would spend most of its time on these
JOINT_OPERATIONS = 1.2e12  # over all groups: ten seconds of two cores; fewer tokens where the vocabulary is large
TOKENS_AT_ONCE = 128  # whose distributions are in memory
RANDOM_GROUPS = 600  # of each null: with fewer, Holm over 30 claims would ask for a p that none can have
GROUPS_AT_ONCE = 32  # whose moves are in memory
MOVES_AT_ONCE = 2**24  # group · token · d_model where a token's types are gathered anew for each set of groups


def experiments(
    source: TokenSource,
    effects: pd.DataFrame,
    groups: NeuronGroups | RareNeuronError,
    memory: int,
    seed: int,
) -> dict[str, np.ndarray] | Unavailable:
    """Return the arrays that docs/run-folder.md describes, or why there are none."""
    if isinstance(groups, RareNeuronError):
        return Unavailable(with_option(groups))
    readout, W_out = source.adapter.readout_behind(source.layer), source.adapter.weights(source.layer).W_out
    if isinstance(readout, Unavailable):
        return Unavailable(f"Groups are ablated at once by the readout behind their layer. {readout.why}")
    sample = Sample(source, readout, W_out, generator(seed, "experiments"))
    n_tokens = len(sample.rare) + int(sample.rare.sum())  # at rare ones twice: to the mean, and to zero
    compiled = None if compiling_pays(n_tokens, len(W_out), len(readout.W_U)) else False
    engine = ablation_engine(readout, W_out, memory=memory, compiled=compiled)
    rare = ablate(engine, sample, sample.rare, effects["mean_act"], direct=True)
    out = both_ablations(engine, sample, rare)
    out |= by_context("rare", "", rare.size, rare.shift, rare.row, sample.n_contexts)
    if not sample.rare.all():
        common = ablate(engine, sample, ~sample.rare, effects["common_mean_act"], direct=False)
        out |= beside_common(rare, common, sample.n_contexts)
    out |= {"context": sample.context[sample.rare], "target": rare.target} | norm_share(rare, groups)
    out |= of_types(rare, groups)
    del engine  # before other tables over the vocabulary are made
    out |= joint_effects(readout, W_out, rare, groups)
    return {name: x.cpu().numpy() if isinstance(x, Tensor) else x for name, x in out.items()}


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """Tokens of the sample of one kind, and the effects of ablating each neuron to its mean there, one at a time."""

    resid: Float[Tensor, "token d_model"]
    target: Int[Tensor, " token"]
    mlp_out: Float[Tensor, "token d_model"] | None  # before its norm, where there is one
    row: Int[np.ndarray, " token"]  # of the sums by context
    shift: Float[Tensor, "token neuron"]  # n̄ − n
    effects: AblationEffects
    size: Float[Tensor, "token neuron"]  # |Δ| in nats


def ablate(
    engine: AblationEngine | BehindNormEngine,
    sample: "Sample",
    chosen: Bool[np.ndarray, " token"],
    mean: pd.Series,
    *,
    direct: bool,
) -> Ablated:
    """Ablate every neuron to its mean at some tokens of the sample."""
    at = torch.from_numpy(np.flatnonzero(chosen)).to(sample.act.device)
    shift = torch.tensor(mean.to_numpy()).to(sample.act.device) - sample.act[at].double()
    resid, target = sample.resid[at], sample.target[at]
    mlp_out = None if sample.mlp_out is None else sample.mlp_out[at]
    effects = engine.effects(resid, shift, target, direct=direct, mlp_out=mlp_out)
    return Ablated(
        resid=resid,
        target=target,
        mlp_out=mlp_out,
        row=sample.rows[chosen],
        shift=shift,
        effects=effects,
        size=effects.delta_loss.double().abs(),
    )


def both_ablations(engine: AblationEngine | BehindNormEngine, sample: "Sample", rare: Ablated) -> dict[str, Any]:
    """Return each neuron's mean |Δ| by mean- and by zero-ablation, at the rare tokens of the sample."""
    at = torch.from_numpy(np.flatnonzero(sample.rare)).to(sample.act.device)
    shift = -sample.act[at].double()
    zero = engine.effects(rare.resid, shift, rare.target, direct=False, mlp_out=rare.mlp_out).delta_loss
    return {"mean_ablation": rare.size.mean(0), "zero_ablation": zero.double().abs().mean(0)}


def beside_common(rare: Ablated, common: Ablated, n_contexts: int) -> dict[str, Any]:
    """Return effects at common targets by context, both kinds at equal clean loss, and how many tokens that is worth.

    `common_n_eff`: the effective number of common tokens, as they are and weighted to equal loss.
    """
    losses = (x.effects.loss.double().cpu().numpy() for x in (rare, common))
    weights = weights_at_equal_loss(*losses)
    out = by_context("common", "", common.size, common.shift, common.row, n_contexts)
    for kind, of_kind, weight in (("rare", rare, weights[0]), ("common", common, weights[1])):
        w = torch.from_numpy(weight).to(of_kind.size.device)[:, None]
        out |= by_context(kind, "_equal_loss", w * of_kind.size, w * of_kind.shift, of_kind.row, n_contexts)
    out["common_n_eff"] = np.array([effective_number(w) for w in (np.ones(len(common.target)), weights[1])])
    return out


def norm_share(rare: Ablated, groups: NeuronGroups) -> dict[str, Any]:
    """Return, per rare token, mean |Δ| and mean |Δ − direct Δ| (the final norm's part) of both groups' neurons."""
    assert rare.effects.direct_delta_loss is not None
    both = np.concatenate([groups.boosting, groups.suppressing])
    by_norm = rare.effects.delta_loss.double() - rare.effects.direct_delta_loss.double()
    return {"rare_total": rare.size[:, both].mean(1), "rare_norm_part": by_norm[:, both].abs().mean(1)}


def of_types(rare: Ablated, groups: NeuronGroups) -> dict[str, Any]:
    """Return each neuron's correlation over pairs of rare tokens of one type, and the ranks of both groups' effects."""
    tokens = PairedTokens(rare.target.cpu().numpy(), rare.row)
    found, ranks = type_correlations(tokens, rare.effects.delta_loss.cpu().numpy())
    of_groups = {f"delta_rank_{role}": ranks[:, getattr(groups, role)].astype(np.float32) for role in ROLES}
    return {"type_correlation": found} | of_groups


def by_context(
    kind: str,
    suffix: str,
    size: Float[Tensor, "token neuron"],
    shift: Float[Tensor, "token neuron"],
    row: Int[np.ndarray, " token"],
    n_contexts: int,
) -> dict[str, Any]:
    """Return sums of |Δ| and of |shift| over the tokens of each context, in float32 like those of the effects."""
    rows = torch.from_numpy(row).to(size.device)
    sums = {"ablation": size, "shift": shift.abs()}
    return {f"{kind}_{name}{suffix}": sums_by_context(x, rows, n_contexts).float() for name, x in sums.items()}


class Sample:
    """Tokens of whole contexts drawn until there are enough rare ones, in the selection's order."""

    def __init__(
        self, source: TokenSource, readout: Readout, W_out: Float[Tensor, "neuron d_model"], rng: np.random.Generator
    ) -> None:
        selection = source.selection
        n_rare = np.bincount(selection.context[selection.rare], minlength=len(selection.windows))
        order = rng.permutation(len(selection.windows))
        # At most half of the contexts: groups that the sample judges are chosen on the others.
        enough = max(int(np.searchsorted(n_rare[order].cumsum(), RARE_TOKENS)) + 1, FEWEST_CONTEXTS)
        enough = max(1, min(enough, len(order) // 2))
        chosen = np.zeros(len(selection.windows), bool)
        chosen[order[:enough]] = True
        parts: list[tuple[Tensor, Tensor, Tensor, np.ndarray, np.ndarray, np.ndarray]] = []
        for batch in source.again():
            rows = np.flatnonzero(chosen[batch.context])
            at = torch.from_numpy(rows).to(batch.act.device)
            tensors = batch.act[at], batch.resid[at], batch.target[at]
            parts.append((*tensors, batch.context[rows], batch.rare[rows], batch.index[rows]))
        act, resid, target, context, rare, index = zip(*parts, strict=True)
        order = np.argsort(np.concatenate(index))  # batches come in the order of their contexts' ends
        self.act, self.resid, self.target = (torch.cat(x)[torch.from_numpy(order)] for x in (act, resid, target))
        self.mlp_out = readout.mlp_output(self.act, W_out)
        self.context, self.rare = np.concatenate(context).astype(np.int64)[order], np.concatenate(rare)[order]
        contexts, self.rows = np.unique(self.context, return_inverse=True)  # of the sums by context
        self.n_contexts = len(contexts)


def joint_effects(
    readout: Readout, W_out: Float[Tensor, "neuron d_model"], rare: Ablated, groups: NeuronGroups
) -> dict[str, Any]:
    """Return the joint effects of groups beside the sums of their neurons' single effects.

    For either group per rare token: joint Δ, sum of single Δ, sum of single |Δ|. For random groups the means of these
    over the tokens `joint_at`, which are evenly spread over the sample; in large vocabularies, over some types.
    """
    A = readout.logits_per_direction(torch.float32)
    moves = GroupMoves(shift=rare.shift, single=rare.effects.delta_loss.double(), W_out=W_out.double())
    random = {"uniform": groups.random[:RANDOM_GROUPS]}
    random |= {f"matched_{role}": drawn[:RANDOM_GROUPS] for role, drawn in groups.matched.items()}
    n = n_joint_tokens(readout, len(rare.resid), 2 + sum(len(drawn) for drawn in random.values()))
    some = torch.linspace(0, len(rare.resid) - 1, n, dtype=torch.float64).round().long().to(rare.shift.device)
    out: dict[str, Any] = joint_effects_of_roles(readout, A, rare, moves, groups) | {"joint_at": some}
    whole = joint_ablation(readout, A, rare, some)
    joint = whole if types_summed(len(A)) == len(A) else SampledJointAblation(whole)
    return out | {f"joint_{name}": mean_joint_effects(joint, moves, some, drawn) for name, drawn in random.items()}


def joint_ablation(
    readout: Readout, A: Float[Tensor, "vocab d_model"], rare: Ablated, at: Int[Tensor, " token"]
) -> JointAblation:
    """Return what ablates whole groups at some of the rare tokens; `A` is the readout's, in float32."""
    mlp_out = None if rare.mlp_out is None else rare.mlp_out[at]
    return JointAblation(readout, rare.resid[at], rare.target[at], mlp_out=mlp_out, A=A)


def n_joint_tokens(readout: Readout, n_rare: int, n_groups: int) -> int:
    """Return at how many rare tokens the random groups can be ablated within `JOINT_OPERATIONS`."""
    vocab, d_model = readout.W_U.shape
    an_effect = 2 * types_summed(vocab) * d_model
    affordable = min(JOINT_OPERATIONS / (an_effect * n_groups), n_rare / JOINT_SHARE)
    return min(n_rare, int(np.clip(affordable, 16, JOINT_TOKENS)))


@dataclass(frozen=True, kw_only=True)
class GroupMoves:
    """How far ablating each neuron moves the MLP's output at each token, added up over groups."""

    shift: Float[Tensor, "token neuron"]
    single: Float[Tensor, "token neuron"]  # Δ of each neuron alone
    W_out: Float[Tensor, "neuron d_model"]

    def at(
        self, tokens: Int[Tensor, " token"], groups: Iterable[Int[np.ndarray, " member"]]
    ) -> tuple[Float[Tensor, "group token d_model"], Float[Tensor, "group token member"]]:
        """Return how far each group moves each token, and the single effects of its neurons there."""
        shift, single = self.shift[tokens], self.single[tokens]
        members = [torch.from_numpy(group).to(shift.device) for group in groups]
        moves = torch.stack([shift[:, i] @ self.W_out[i] for i in members])
        return moves, torch.stack([single[:, i] for i in members])


def joint_effects_of_roles(
    readout: Readout, A: Float[Tensor, "vocab d_model"], rare: Ablated, moves: GroupMoves, groups: NeuronGroups
) -> dict[str, Float[Tensor, " token"]]:
    """Return the joint Δ, the sum of single Δ and of single |Δ| of both groups at every rare token."""
    parts: dict[str, list[Tensor]] = {}
    for at in torch.arange(len(rare.resid), device=rare.shift.device).split(TOKENS_AT_ONCE):
        joint = joint_ablation(readout, A, rare, at)
        for role in ROLES:
            move, single = moves.at(at, [getattr(groups, role)])
            together = joint.delta_loss(move).double()
            for name, x in (("joint", together), ("sum", single.sum(-1)), ("abs_sum", single.abs().sum(-1))):
                parts.setdefault(f"{name}_{role}", []).append(x[0])
    return {name: torch.cat(values) for name, values in parts.items()}


def mean_joint_effects(
    joint: JointAblation | SampledJointAblation,
    moves: GroupMoves,
    tokens: Int[Tensor, " token"],
    drawn: Int[np.ndarray, "group member"],
) -> Float[np.ndarray, "group 3"]:
    """Return each group's joint Δ, sum of single Δ and of single |Δ|, as means over some tokens."""
    rows, at_once = [], GROUPS_AT_ONCE
    if isinstance(joint, SampledJointAblation):
        at_once = max(at_once, MOVES_AT_ONCE // (len(tokens) * moves.W_out.shape[1]))
    for first in range(0, len(drawn), at_once):
        move, single = moves.at(tokens, drawn[first : first + at_once])
        sizes = joint.delta_loss(move).double(), single.sum(-1), single.abs().sum(-1)
        rows.append(torch.stack([x.mean(-1) for x in sizes], 1).cpu().numpy())
    return np.concatenate(rows)
