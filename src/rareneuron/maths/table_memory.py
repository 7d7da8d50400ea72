"""How many bytes the tables of `maths.ablation` take, how many neurons' fit, and in which number format they are fast.

Counted from the shapes alone, so a plan can refuse what wouldn't fit. Oracle: tests/maths/test_ablation.py.
"""

import math
from dataclasses import dataclass

import torch

from rareneuron.errors import InvalidConfig

TOKENS_PER_BLOCK = 512  # at most; fewer where the vocabulary is large
ELEMENTS_PER_BLOCK = 2**24  # token · vocab: 64 MB in float32
BLOCK_COPIES = 6  # arrays [token, vocab] of a block: the five of the workspace, and weights in the fast dtype
PAIR_COPIES = 24  # arrays [token, neuron] of a block, in single precision, before any result is returned
FEWEST_NEURONS = 32  # at once; with fewer, matrix products are no longer products of matrices


def tokens_per_block(vocab: int) -> int:
    """Return how many tokens' clean distributions are held at once."""
    return max(1, min(TOKENS_PER_BLOCK, ELEMENTS_PER_BLOCK // vocab))


def engine_memory(
    vocab: int,
    d_model: int,
    dtype: torch.dtype = torch.float32,
    product_dtype: torch.dtype = torch.float32,
    block_copies: int = BLOCK_COPIES,
) -> tuple[int, int]:
    """Return the bytes that the engine takes whatever the layer's width, and those that each neuron adds."""
    return fixed_and_per_neuron(
        vocab, d_model, tokens_per_block(vocab), dtype.itemsize, product_dtype.itemsize, block_copies
    )


def fixed_and_per_neuron(
    vocab: int, d_model: int, tokens: int, item: int, squared_item: int, block_copies: int
) -> tuple[int, int]:
    """Return the same for blocks of so many tokens, from the bytes of a number in B and in the table of its squares."""
    fixed = vocab * item * (d_model + block_copies * tokens)
    return fixed, vocab * (item + squared_item) + item * (PAIR_COPIES * tokens + 2 * d_model)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an engine uses its memory."""

    neurons: int  # at a time
    tokens: int  # in a block
    holds_squares: bool  # whether the table of B² is held beside B, or its pieces are formed again for every block


def best_layout(
    memory: int,
    vocab: int,
    d_model: int,
    n_neurons: int,
    dtype: torch.dtype,
    product_dtype: torch.dtype,
    block_copies: int,
) -> Layout:
    """Return the fastest layout that fits into `memory` bytes; raises where next to none does.

    The clean tokens are computed once for every set of neurons that is held, which costs as much as all the rest. So
    all neurons are held at once if at all possible, be it without their squares, be it with smaller blocks.
    """
    most = tokens_per_block(vocab)
    squared = product_dtype.itemsize
    for tokens in (most, -(-most // 2)):
        for holds_squares in (True, False):
            fixed, per_neuron = fixed_and_per_neuron(
                vocab, d_model, tokens, dtype.itemsize, squared * holds_squares, block_copies
            )
            if fixed + n_neurons * per_neuron <= memory:
                return Layout(neurons=n_neurons, tokens=tokens, holds_squares=holds_squares)
    fewer = neurons_that_fit(memory, vocab, d_model, n_neurons, dtype, product_dtype, block_copies=block_copies)
    fixed, per_neuron = fixed_and_per_neuron(vocab, d_model, most, dtype.itemsize, 0, block_copies)
    return Layout(neurons=max(fewer, (memory - fixed) // per_neuron), tokens=most, holds_squares=False)


def neurons_that_fit(
    memory: int,
    vocab: int,
    d_model: int,
    n_neurons: int,
    dtype: torch.dtype = torch.float32,
    product_dtype: torch.dtype = torch.float32,
    share: float = 1.0,
    block_copies: int = BLOCK_COPIES,
) -> int:
    """Return how many neurons' tables fit into `memory` bytes; raises where it is next to none.

    `share` is that part of what was allowed which the engine has: the error speaks of the whole.
    """
    fixed, per_neuron = engine_memory(vocab, d_model, dtype, product_dtype, block_copies)
    fit = (memory - fixed) // per_neuron
    fewest = min(n_neurons, FEWEST_NEURONS)
    if fit < fewest:
        needed = math.ceil(1000 * (fixed + fewest * per_neuron) / 2**30 / share) / 1000
        raise InvalidConfig(
            f"{memory / 2**30 / share:.3g} GiB do not hold the tables of a vocabulary of {vocab:,} and a width of "
            f"{d_model:,}, so effects cannot be computed. Allow at least {needed:g} GiB.",
            argument="memory",
        )
    return min(n_neurons, fit)


def fast_product_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device has instructions for it; elsewhere it would be emulated, slower than float32."""
    if device.type != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
