"""What claims need beyond every neuron's effect, at the last checkpoint only: groups ablated at once, zero-ablation.

A seeded sample of whole contexts, since these cost a full readout a group and token. Kept per neuron: zero- beside
mean-ablation at the same tokens; per context and neuron, effects and shifts at rare and at common targets, once more at
equal clean loss; of either group at every rare token of the sample, and of random groups over some of them: the joint
effect beside the sum of single ones.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.clustered import sums_by_context
from rareneuron.maths.equal_loss import effective_number, weights_at_equal_loss
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.joint import JointAblation
from rareneuron.maths.readout import Readout
from rareneuron.measure.capture import TokenSource
from rareneuron.runs.options import with_option
from rareneuron.runs.seeds import generator

RARE_TOKENS = 600  # of the sample, at most, but for the rest of the last context
JOINT_TOKENS = 128  # of those, at most, at which random groups are ablated, too
JOINT_SHARE = 4  # and at most one in so many: a small study would spend most of its time on these
JOINT_OPERATIONS = 1.2e12  # over all groups: ten seconds of two cores; fewer tokens where the vocabulary is large
TOKENS_AT_ONCE = 128  # whose distributions are held
RANDOM_GROUPS = 400  # of each kind
GROUPS_AT_ONCE = 32  # whose moves are held


def experiments(
    source: TokenSource,
    effects: pd.DataFrame,
    groups: NeuronGroups | RareNeuronError,
    memory: int,
    seed: int,
) -> dict[str, np.ndarray] | Unavailable:
    """Return the arrays of docs/run-folder.md; or why there are none."""
    if isinstance(groups, RareNeuronError):
        return Unavailable(with_option(groups))
    readout, W_out = source.adapter.readout_behind(source.layer), source.adapter.weights(source.layer).W_out
    if isinstance(readout, Unavailable):
        return Unavailable(f"Groups are ablated at once by the readout behind their layer. {readout.why}")
    sample = Sample(source, generator(seed, "experiments"))
    device = W_out.device
    act, resid, target, rare = sample.act, sample.resid, sample.target, sample.rare
    mean = torch.tensor(effects["mean_act"].to_numpy()).to(device)
    common_mean = torch.tensor(effects["common_mean_act"].to_numpy()).to(device)
    on_rare = torch.from_numpy(np.flatnonzero(rare)).to(device)
    on_common = torch.from_numpy(np.flatnonzero(~rare)).to(device)
    whole = AblationEngine(readout, W_out, memory=memory)
    shift = mean - act[on_rare].double()
    found = whole.effects(resid[on_rare], shift, target[on_rare])
    zeroed = whole.effects(resid[on_rare], -act[on_rare].double(), target[on_rare], direct=False).delta_loss
    assert found.direct_delta_loss is not None
    members = {"boosting": groups.boosting, "suppressing": groups.suppressing}
    both = np.concatenate(list(members.values()))
    out: dict[str, Any] = {
        "mean_ablation": found.delta_loss.double().abs().mean(0),
        "zero_ablation": zeroed.double().abs().mean(0),
    }
    size, direct = found.delta_loss.double().abs(), found.direct_delta_loss.double()
    rows, n_contexts = sample.rows, sample.n_contexts
    out |= by_context("rare", "", size, shift, rows[rare], n_contexts)
    if len(on_common):
        common_shift = common_mean - act[on_common].double()
        found_common = whole.effects(resid[on_common], common_shift, target[on_common], direct=False)
        of_common = found_common.delta_loss.double().abs()
        weights = weights_at_equal_loss(found.loss.double().cpu().numpy(), found_common.loss.double().cpu().numpy())
        at_rare, at_common = (torch.from_numpy(w).to(device)[:, None] for w in weights)
        out |= by_context("common", "", of_common, common_shift, rows[~rare], n_contexts)
        out |= by_context("rare", "_equal_loss", at_rare * size, at_rare * shift, rows[rare], n_contexts)
        out |= by_context(
            "common", "_equal_loss", at_common * of_common, at_common * common_shift, rows[~rare], n_contexts
        )
        out["common_n_eff"] = np.array([effective_number(w) for w in (np.ones(len(on_common)), weights[1])])
    out |= {
        "context": sample.context[rare],
        "rare_total": size[:, both].mean(1),
        "rare_norm_part": (found.delta_loss.double() - direct)[:, both].abs().mean(1),
    }
    out |= joint_effects(readout, resid[on_rare], target[on_rare], shift, W_out, groups, found.delta_loss.double())
    return {name: x.cpu().numpy() if isinstance(x, Tensor) else x for name, x in out.items()}


def by_context(
    kind: str,
    suffix: str,
    size: Float[Tensor, "token neuron"],
    shift: Float[Tensor, "token neuron"],
    row: Int[np.ndarray, " token"],
    n_contexts: int,
) -> dict[str, Any]:
    """Sums of |Δ| and of |shift| over the tokens of each context, in float32 as the effects' own."""
    rows = torch.from_numpy(row).to(size.device)
    sums = {"ablation": size, "shift": shift.abs()}
    return {f"{kind}_{name}{suffix}": sums_by_context(x, rows, n_contexts).float() for name, x in sums.items()}


class Sample:
    """Whole contexts until there are enough rare tokens, in the selection's order."""

    def __init__(self, source: TokenSource, rng: np.random.Generator) -> None:
        selection = source.selection
        n_rare = np.bincount(selection.context[selection.rare], minlength=len(selection.windows))
        order = rng.permutation(len(selection.windows))
        # At most half of the contexts: groups are chosen on the others where the sample judges them.
        enough = max(1, min(int(np.searchsorted(n_rare[order].cumsum(), RARE_TOKENS)) + 1, len(order) // 2))
        chosen = np.zeros(len(selection.windows), bool)
        chosen[order[:enough]] = True
        parts: list[tuple[Tensor, Tensor, Tensor, np.ndarray, np.ndarray]] = []
        for batch in source.again():
            rows = np.flatnonzero(chosen[batch.context])
            at = torch.from_numpy(rows).to(batch.act.device)
            parts.append((batch.act[at], batch.resid[at], batch.target[at], batch.context[rows], batch.rare[rows]))
        act, resid, target, context, rare = zip(*parts, strict=True)
        self.act, self.resid, self.target = torch.cat(act), torch.cat(resid), torch.cat(target)
        self.context, self.rare = np.concatenate(context).astype(np.int64), np.concatenate(rare)
        contexts, self.rows = np.unique(self.context, return_inverse=True)  # of the sums per context
        self.n_contexts = len(contexts)


def joint_effects(
    readout: Readout,
    resid: Float[Tensor, "token d_model"],
    target: Int[Tensor, " token"],
    shift: Float[Tensor, "token neuron"],
    W_out: Float[Tensor, "neuron d_model"],
    groups: NeuronGroups,
    single: Float[Tensor, "token neuron"],
) -> dict[str, Any]:
    """Of either group per token: joint Δ, sum of single Δ, sum of single |Δ|. Of random groups their means over some.

    `joint_at` says which tokens these are, evenly spread over the sample.
    """
    drawn = {"uniform": groups.random[:RANDOM_GROUPS]}
    drawn |= {f"matched_{role}": of[:RANDOM_GROUPS] for role, of in groups.matched.items()}
    vocab, d_model = readout.W_U.shape
    n_groups = 2 + sum(len(of) for of in drawn.values())
    affordable = min(JOINT_OPERATIONS / (2 * vocab * d_model * n_groups), len(resid) / JOINT_SHARE)
    n = min(len(resid), int(np.clip(affordable, 16, JOINT_TOKENS)))
    W = W_out.double()

    def moves(at: Tensor, of: Iterable[np.ndarray]) -> tuple[Tensor, Tensor]:
        """How far each group moves each token, and single Δ: [group, token, d_model] and [group, token, neuron]."""
        moved, alone = shift[at], single[at]
        members = [torch.from_numpy(group).to(shift.device) for group in of]
        return torch.stack([moved[:, i] @ W[i] for i in members]), torch.stack([alone[:, i] for i in members])

    parts: dict[str, list[Tensor]] = {}
    for at in torch.arange(len(resid), device=shift.device).split(TOKENS_AT_ONCE):
        joint = JointAblation(readout, resid[at], target[at])
        for role in ("boosting", "suppressing"):
            move, alone = moves(at, [getattr(groups, role)])
            together = joint.delta_loss(move).double()
            for name, x in (("joint", together), ("sum", alone.sum(-1)), ("abs_sum", alone.abs().sum(-1))):
                parts.setdefault(f"{name}_{role}", []).append(x[0])
    out: dict[str, Any] = {name: torch.cat(xs) for name, xs in parts.items()}
    some = torch.linspace(0, len(resid) - 1, n, dtype=torch.float64).round().long().to(shift.device)
    joint, out["joint_at"] = JointAblation(readout, resid[some], target[some]), some
    for name, of in drawn.items():
        rows = []
        for first in range(0, len(of), GROUPS_AT_ONCE):
            move, alone = moves(some, of[first : first + GROUPS_AT_ONCE])
            sizes = joint.delta_loss(move).double(), alone.sum(-1), alone.abs().sum(-1)
            rows.append(torch.stack([x.mean(-1) for x in sizes], 1).cpu().numpy())
        out[f"joint_{name}"] = np.concatenate(rows)
    return out
