"""Says why what a model computes is of no use: numbers beyond its precision, and logits that aren't the readout's.

Weights that are finite can still carry activations beyond the largest number of a precision, and a sentence must not
blame what another fault causes: half precision overflows (compute in float32), float32 overflows (the checkpoint
diverged), the unembedding is out of proportion (it is damaged), logits are scaled or soft-capped (an architecture of
another kind), or half precision rounds so much that no difference can be seen.
"""

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from rareneuron.errors import BrokenCheckpoint
from rareneuron.maths.readout import Readout
from rareneuron.models.anatomy import Anatomy

HALF = (torch.float16, torch.bfloat16)
IN_FLOAT32 = "Compute in float32 (`--dtype float32`, the default), which holds what half precision rounds away."
ROUNDINGS = 16  # of half precision, by which logits of a right model may be off: 1.5 on tiny random models
SAME_SHAPE = 0.05  # of the gap, to which a scale or a cap must explain it


def precision(dtype: torch.dtype) -> str:
    """Return a dtype's name."""
    return str(dtype).removeprefix("torch.")


def overflow_remedy(dtype: torch.dtype) -> str:
    """Return the usual cause of numbers that aren't finite, where all weights are, and what to do about it."""
    if dtype in HALF:
        return (
            f"The usual cause is overflow in {precision(dtype)}, whose largest number is "
            f"{torch.finfo(dtype).max:,.3g}: use --dtype float32."
        )
    wider = "" if dtype == torch.float64 else " `--dtype float64` may compute this one, if it is to be studied."
    return (
        f"All its weights are finite, so its activations go beyond the largest {precision(dtype)} number "
        f"({torch.finfo(dtype).max:.0e}), as they do where training has diverged. Take an earlier checkpoint.{wider}"
    )


@torch.inference_mode()
def refuse_overflow(anatomy: Anatomy, ids: Tensor) -> None:
    """Refuse a model with finite weights whose activations or logits overflow, and say where it begins.

    A residual stream whose squares overflow is refused, too: the next norm would make zeros of it.
    """
    finite: dict[str, bool] = {}
    # transformers computes RMSNorm in float32 whatever the model's precision.
    exact = anatomy.model.dtype == torch.float64 and anatomy.family.norm == "layer"

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, _args: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            assert isinstance(value, Tensor), f"{name} puts out {type(value).__name__}"
            squares = value.to(torch.float64 if exact else torch.float32).square().sum(-1)
            finite[name] = bool(torch.isfinite(squares).all())

        return module.register_forward_hook(keep)

    handles = [watch(f"layer {i}", block) for i, block in enumerate(anatomy.blocks)]
    try:
        logits = anatomy.model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    dtype = anatomy.model.dtype
    where = next((name for name, good in finite.items() if not good), None)
    if where is not None:
        raise BrokenCheckpoint(
            f"What the model computes is infinite, or too large to be normalised, from {where} on, already for a few "
            f"random tokens, so no loss can be measured. {overflow_remedy(dtype)}"
        )
    if bool(torch.isfinite(logits).all()):
        return
    head = anatomy.unembedding.weight
    if dtype in HALF:
        raise BrokenCheckpoint(f"The logits are not finite, and all layers are. {overflow_remedy(dtype)}")
    raise BrokenCheckpoint(
        f"All layers are finite, and the logits are not: the unembedding is damaged (its weights are finite, the "
        f"largest {head.abs().max():.1e}), so no loss can be measured. Save or download the checkpoint again."
    )


@torch.inference_mode()
def why_readout_differs(anatomy: Anatomy, readout: Readout, ids: Tensor) -> str:
    """Return the likeliest reason for which a model's logits aren't those of its readout."""
    with anatomy.reading(-1) as seen:
        logits = anatomy.model(ids, use_cache=False).logits.flatten(0, 1)
    return why_logits_differ(logits, readout(seen["resid"].flatten(0, 1)))


def why_logits_differ(logits: Tensor, read_out: Tensor) -> str:
    """Return the likeliest reason for which logits differ from others: a scale and a soft cap have their own shapes."""
    dtype = logits.dtype
    gap = float((read_out - logits).abs().max() / logits.abs().max())
    if dtype in HALF and gap <= ROUNDINGS * torch.finfo(dtype).eps:
        return f"{precision(dtype)} rounds by {torch.finfo(dtype).eps:.1g}, so whether they do can't be seen"
    z, r = logits.double().flatten(), read_out.double().flatten()
    close = SAME_SHAPE * float((r - z).abs().max())
    scale = float((z @ r) / (r @ r))
    if float((scale * r - z).abs().max()) <= close:
        return f"the logits are scaled by {scale:.4g}"
    cap = soft_cap(z, r)
    if cap is not None and float((cap * torch.tanh(r / cap) - z).abs().max()) <= close:
        return f"the logits are soft-capped at {cap:.3g}"
    return "usual cause: a step between the last block and the logits that isn't a norm, a soft cap among others"


def soft_cap(logits: Tensor, read_out: Tensor) -> float | None:
    """Return the κ for which κ tanh(r/κ) gives the logit of the largest r; None where there is none."""
    at = int(read_out.abs().argmax())
    r, z = abs(float(read_out[at])), float(logits[at] * read_out[at].sign())
    if not 0 < z < r:
        return None
    try:
        # tanh(x)/x falls from 1 to 0, so there is one x = r/κ.
        x = brentq(lambda x: float(torch.tanh(torch.tensor(x, dtype=torch.float64))) / x - z / r, 1e-6, 1e6)
    except ValueError:
        return None
    return r / x
