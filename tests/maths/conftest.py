"""Random readouts whose effects are large enough to tell right from wrong."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rareneuron.maths.output_norm import OutputNorm
from rareneuron.maths.readout import Readout


@dataclass(frozen=True)
class Case:
    """A readout and a few tokens and neurons; `size` scales the shifts."""

    readout: Readout
    resid: Tensor
    shift: Tensor
    target: Tensor
    W_out: Tensor
    mlp_out: Tensor | None = None


def random_case(norm="layer", size=0.3, seed=0, d_model=16, vocab=50, neurons=12, tokens=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    readout = Readout(
        norm=norm,
        weight=normal(d_model),
        bias=normal(d_model) if norm == "layer" else None,
        eps=1e-5,
        W_U=normal(vocab, d_model),
        b_U=normal(vocab),
        scale=0.7,
    )
    return Case(
        readout=readout,
        resid=normal(tokens, d_model),
        shift=size * normal(tokens, neurons),
        target=torch.randint(vocab, (tokens,), generator=generator),
        W_out=normal(neurons, d_model),
    )


def behind_norm_case(output_norm=True, softcap=None, norm="rms", size=0.3, seed=0, scale=0.7, **shape):
    """A random case with a norm behind the MLP, whose output is part of the residual stream, a soft cap, or both."""
    case = random_case(norm, size, seed, **shape)
    generator = torch.Generator().manual_seed(seed + 10_000)
    tokens, d_model = case.resid.shape
    m, gain = (
        torch.randn(tokens + 1, d_model, generator=generator, dtype=torch.float64).to(case.resid).split([tokens, 1])
    )
    of_output = OutputNorm(weight=1 + 0.3 * gain[0], eps=1e-5) if output_norm else None
    readout = replace(case.readout, softcap=softcap, output_norm=of_output, scale=scale)
    resid = case.resid if of_output is None else case.resid + of_output(3 * m)
    return replace(case, readout=readout, resid=resid, mlp_out=3 * m if output_norm else None)


@pytest.fixture
def make_case():
    return random_case
