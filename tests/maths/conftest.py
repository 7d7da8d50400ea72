"""Random readouts whose effects are large enough to tell right from wrong."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rareneuron.maths.readout import Readout


@dataclass(frozen=True)
class Case:
    """A readout and a few tokens and neurons; `size` scales the shifts."""

    readout: Readout
    resid: Tensor
    shift: Tensor
    target: Tensor
    W_out: Tensor


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


@pytest.fixture
def make_case():
    return random_case
