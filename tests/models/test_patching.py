"""The brute-force engine against a naive full forward pass with one hook, and that it leaves no trace."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rareneuron.errors import OutOfRange
from rareneuron.models.families import FAMILIES
from rareneuron.models.patching import patched_loss_changes

from .conftest import D_MLP

# The skipped blocks return the very tensors that the full pass computes; what differs is the order of sums in
# matrix products over other batch shapes, in float32 for the norms of the RMSNorm families.
ATOL = 1e-6


def naive(case, mean_act, layer, neuron):
    """Losses of two full forward passes, at every token."""
    model, ids = case.adapter.model, torch.from_numpy(case.windows)
    context, position = case.tokens

    def replace(module, args):
        act = args[0].clone()
        act[..., neuron] = mean_act[neuron]
        return (act,)

    with torch.no_grad():
        clean = model(ids).logits.double()[context, position].log_softmax(-1)
        handle = case.adapter.anatomy.mlp_out(layer).register_forward_pre_hook(replace)
        ablated = model(ids).logits.double()[context, position].log_softmax(-1)
        handle.remove()
    rows = torch.arange(len(context))
    kl = (clean.exp() * (clean - ablated)).sum(-1)
    return clean[rows, case.target] - ablated[rows, case.target], kl


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_agrees_with_a_naive_forward_pass(name, layer, tiny):
    case = tiny(name)
    mean_act = case.adapter.capture(case.windows, layer).act.mean((0, 1))
    neurons = [5, 0, 23]
    effects = list(
        patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, layer, neurons, contexts_per_batch=2)
    )
    assert [effect.neuron for effect in effects] == neurons
    largest = 0.0
    for neuron, delta_loss, kl in effects:
        slow, slow_kl = naive(case, mean_act, layer, neuron)
        largest = max(largest, slow.abs().max())
        assert_close(delta_loss, slow, rtol=0, atol=ATOL)
        assert_close(kl, slow_kl, rtol=0, atol=ATOL)
        assert (kl > -ATOL).all()
    assert largest > 1e-2, "the case is too tame to tell right from wrong"


def test_blocks_before_the_layer_are_not_run_again(tiny):
    case = tiny("gpt_neox")
    runs = []
    case.adapter.anatomy.blocks[0].mlp.register_forward_hook(lambda *a: runs.append(1))
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    runs.clear()
    list(patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, 1, contexts_per_batch=3))
    assert len(runs) == 1, "once for the clean run, never for the 24 neurons"


def test_logits_are_computed_at_the_tokens_only(tiny):
    case = tiny("llama")
    rows = []
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    tokens = (np.array([2, 0]), np.array([1, 4]))
    case.adapter.anatomy.unembedding.register_forward_hook(lambda m, a, out: rows.append(out.shape[:-1].numel()))
    list(patched_loss_changes(case.adapter, case.windows, tokens, mean_act, neurons=[1]))
    assert rows == [2, 2]


def test_tokens_may_come_in_any_order_and_contexts_may_have_none(tiny):
    case = tiny("gpt_neo")
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    (whole,) = patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, neurons=[7])
    picked = np.array([13, 2, 11])  # contexts 2, 0, 2
    tokens = (case.tokens[0][picked], case.tokens[1][picked])
    (some,) = patched_loss_changes(case.adapter, case.windows, tokens, mean_act, neurons=[7], contexts_per_batch=1)
    assert_close(some.delta_loss, whole.delta_loss[picked], rtol=0, atol=ATOL)
    assert_close(some.kl, whole.kl[picked], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt_neo"])  # gpt_neo's blocks return tuples
def test_the_model_is_as_before_even_after_an_error(name, tiny):
    case = tiny(name)
    ids = torch.from_numpy(case.windows)
    before = case.adapter.model(ids).logits
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    handle = case.adapter.anatomy.blocks[1].register_forward_hook(fail_on_second_call())
    with pytest.raises(InterruptedError):
        list(patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, 1))
    handle.remove()
    stream = patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, 1)
    next(stream)
    stream.close()
    assert "forward" not in case.adapter.anatomy.blocks[0].__dict__
    assert all(not module._forward_pre_hooks for module in case.adapter.model.modules())
    assert torch.equal(case.adapter.model(ids).logits, before)


def fail_on_second_call():
    calls = []

    def hook(*args):
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    return hook


def test_another_librarys_forward_is_put_back(tiny):
    """Accelerate and others set `forward` on the instance."""
    case = tiny("gpt_neox")
    block = case.adapter.anatomy.blocks[0]
    own = block.forward
    block.forward = own
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    list(patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, 1, [0]))
    assert block.__dict__["forward"] is own


def test_progress_reports_each_neuron(tiny):
    case = tiny("gpt2")
    mean_act = case.adapter.capture(case.windows).act.mean((0, 1))
    done = []
    list(patched_loss_changes(case.adapter, case.windows, case.tokens, mean_act, neurons=[3, 1], progress=done.append))
    assert done == [3, 1]


def test_replacing_by_its_own_value_changes_nothing(tiny):
    """A neuron that is constant over the tokens: its mean is its value."""
    case = tiny("olmo2")
    windows = np.full((1, 2), 7)
    act = case.adapter.capture(windows).act[0, 0]
    (effect,) = patched_loss_changes(case.adapter, windows, (np.array([0]), np.array([0])), act, neurons=[4])
    assert effect.delta_loss.item() == pytest.approx(0, abs=1e-12)  # the second position differs, and is not read
    assert effect.kl.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("tokens", "n_means", "neurons", "message"),
    [
        (([0], [5]), D_MLP, [0], "last position of a window has no next token"),
        (([3], [0]), D_MLP, [0], "a context of 0…2"),
        (([0], [-1]), D_MLP, [0], "a position of 0…4"),
        (([0], [0]), D_MLP - 1, [0], "has 24 neurons; 23 means"),
        (([0], [0]), D_MLP, [24], "neurons of 0…23"),
    ],
)
def test_requests_out_of_range(tokens, n_means, neurons, message, tiny):
    case = tiny("gpt2")
    tokens = tuple(np.array(x) for x in tokens)
    with pytest.raises(OutOfRange, match=message):  # at the call, before the first neuron is asked for
        patched_loss_changes(case.adapter, case.windows, tokens, torch.zeros(n_means), neurons=neurons)
