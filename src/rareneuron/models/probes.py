"""Whether the closed form holds for this very model: two questions, asked at every load.

(a) Is the rest of the network the final norm and the unembedding, with a soft cap where the readout has one: does
`readout(resid)` equal the model's logits?
(b) Does switching one neuron off move the residual stream as the data say: by exactly −n·w_out, or by what the
readout's output norm makes of that?
A cap that the readout doesn't have fails (a); an output norm that it doesn't have, or has from elsewhere, fails (b):
Eq. 3 would be off by up to tenths of a nat, and nothing would show it. Both gaps are relative errors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rareneuron.errors import UnsupportedModel
from rareneuron.maths.output_norm import OutputNorm
from rareneuron.maths.readout import Readout
from rareneuron.models.anatomy import Anatomy
from rareneuron.models.faults import refuse_overflow, why_readout_differs

CONTEXTS, POSITIONS, NEURONS = 2, 8, 4

# Rounding of a float32 product of width d is about eps·√d of the largest logit: 1e-5 at d = 10,000. float64 gets
# the same bound, as transformers computes some norms in float32 whatever the dtype. A soft cap of 30 shows from
# logits of 0.5 on: tanh differs from its argument by a third of its square.
READOUT_TOLERANCE = 1e-4
# A normalised MLP output taken for a plain one rescales the whole move, by its size again: gaps are near 1 (0.92 to
# 1.26 on tiny random models). A right model leaves rounding only, and that of the residual stream is taken out
# beforehand.
ABLATION_TOLERANCE = 1e-3
ROUNDING = 16  # units of rounding of its largest component by which a right residual stream may be off


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Whether the closed form holds behind the last layer, and how well. A gap that couldn't be measured is None."""

    ok: bool
    readout_gap: float | None  # largest |readout − logits| over the largest |logit|
    ablation_gap: float | None  # largest |move − expected| over the largest |expected|, per token
    reason: str  # empty where ok


def closed_form(anatomy: Anatomy) -> ClosedForm:
    """Ask both questions of a model, on seeded random ids."""
    name = anatomy.family.model_type
    W_out = anatomy.weights(-1).W_out  # before the attempt below: a model without it can't be loaded at all
    refuse_overflow(anatomy, probe_ids(anatomy))
    try:
        readout = anatomy.readout()
    except UnsupportedModel as error:
        return ClosedForm(ok=False, readout_gap=None, ablation_gap=None, reason=str(error))
    of_readout = readout_gap(anatomy, readout)
    of_ablation = ablation_gap(anatomy, W_out, readout.output_norm)
    reasons = []
    if not of_readout <= READOUT_TOLERANCE:
        reasons.append(
            f"final norm and unembedding don't give the model's own logits (off by {of_readout:.2g} of their size; "
            f"{why_readout_differs(anatomy, readout, probe_ids(anatomy))})"
        )
    if not of_ablation <= ABLATION_TOLERANCE:
        reasons.append(
            "switching a neuron off doesn't move the residual stream as its row of W_out says (off by "
            f"{of_ablation:.2g} of the move; usual cause: the MLP output is normalised before it is added)"
        )
    return ClosedForm(
        ok=not reasons,
        readout_gap=of_readout,
        ablation_gap=of_ablation,
        reason=f"{name}: {', and '.join(reasons)}" if reasons else "",
    )


def probe_ids(anatomy: Anatomy) -> Tensor:
    """A few random ids, the same at every load."""
    rows = anatomy.model.get_input_embeddings().weight.shape[0]
    longest = getattr(anatomy.model.config, "max_position_embeddings", None) or POSITIONS
    shape = (CONTEXTS, min(POSITIONS, longest))
    return anatomy.token_ids(np.random.default_rng(0).integers(rows, size=shape))


@torch.inference_mode()
def readout_gap(anatomy: Anatomy, readout: Readout) -> float:
    """The largest difference between the readout and the model's own logits, over the largest logit."""
    with anatomy.reading(-1) as seen:
        logits = anatomy.model(probe_ids(anatomy), use_cache=False).logits.flatten(0, 1)
    error = (readout(seen["resid"].flatten(0, 1)) - logits).abs().max()
    return float(error / logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny))


@torch.inference_mode()
def ablation_gap(
    anatomy: Anatomy, W_out: Float[Tensor, "neuron d_model"], output_norm: OutputNorm | None = None
) -> float:
    """The relative error of the residual stream's move as the data say it, over the neurons that move it most.

    That move is −n·w_out, or what the norm between MLP and residual stream makes of it.
    """
    ids = probe_ids(anatomy)
    with anatomy.reading(-1) as seen:
        anatomy.backbone(ids, use_cache=False)
    clean, act = seen["resid"].flatten(0, 1), seen["act"].reshape(ids.numel(), -1)
    if act.shape[1] != len(W_out):
        return float("inf")
    rounding, mlp_out = ROUNDING * torch.finfo(clean.dtype).eps * clean.abs().amax(-1), None
    if output_norm is not None:  # which transformers computes in float32, whatever the dtype
        mlp_out = output_norm.mlp_output(act, W_out)
        eps = max(torch.finfo(clean.dtype).eps, torch.finfo(torch.float32).eps)
        rounding += ROUNDING * eps * output_norm(mlp_out).abs().amax(-1).to(clean)
    worst = 0.0
    for neuron in (act.abs().amax(0) * W_out.norm(dim=1)).topk(min(NEURONS, len(W_out))).indices.tolist():
        with anatomy.replacing(-1, neuron, 0.0), anatomy.reading(-1) as seen:
            anatomy.backbone(ids, use_cache=False)
        expected = -act[:, neuron, None] * W_out[neuron]
        if output_norm is not None and mlp_out is not None:
            expected = output_norm.move(mlp_out, expected).to(clean)
        error = (seen["resid"].flatten(0, 1) - clean - expected).abs().amax(-1)
        # Per token: the first one's residual often dwarfs the others' and would hide them in its rounding.
        size = expected.abs().amax(-1) + rounding / ABLATION_TOLERANCE
        worst = max(worst, float((error / size.clamp_min(torch.finfo(size.dtype).tiny)).max()))
    return worst
