"""Many units replayed at a time give what patching gives, one at a time, for every architecture."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rareneuron.errors import UnsupportedModel
from rareneuron.models.families import FAMILIES
from rareneuron.models.patching import patched_loss_changes
from rareneuron.models.replay import CleanContext, Replay
from rareneuron.models.sites import head_of, site_of

from .test_contract import tolerance

pytestmark = pytest.mark.slow  # every architecture, and patching beside each

POSITION = np.array([1, 4])


def replay_of(case, layer, kind="neurons", **options):
    site = site_of(case.adapter.anatomy, layer, kind)
    generator = torch.Generator().manual_seed(5)
    mean_act = torch.randn(len(site.W_out), generator=generator, dtype=torch.float64)
    ids = torch.from_numpy(case.windows[0])
    anatomy = case.adapter.anatomy
    clean = CleanContext(anatomy, head_of(anatomy), [site], ids, torch.from_numpy(POSITION), **options)
    return Replay(clean, mean_act)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_replay_agrees_with_patching(name, layer, tiny):
    case = tiny(name)
    replay = replay_of(case, layer)
    units = torch.arange(replay.site.n_units)
    found = replay.loss_changes(units)
    tokens = (np.zeros(2, int), POSITION)
    slow = list(patched_loss_changes(case.adapter, case.windows, tokens, replay.mean_act, layer))
    assert found.delta_loss.abs().max() > 0.1, "the case is too tame to tell right from wrong"
    atol = 20 * tolerance(name)  # another order of operations in float32 norms
    assert_close(found.delta_loss, torch.stack([effect.delta_loss for effect in slow]), rtol=0, atol=atol)
    assert_close(found.kl, torch.stack([effect.kl for effect in slow]), rtol=0, atol=atol)
    assert replay.after == (FAMILIES[name].mlp_norm is None)
    run_again = replay_of(case, layer, resume_after=False).loss_changes(units)
    assert_close(found.delta_loss, run_again.delta_loss, rtol=0, atol=atol)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_agree_with_a_hook_on_the_whole_model(name, layer, tiny):
    """A head's output is a block of columns of what attention's projection reads."""
    case = tiny(name)
    replay = replay_of(case, layer, "heads")
    found = replay.loss_changes(torch.arange(2)).delta_loss
    ids = torch.from_numpy(case.windows[:1])

    def losses():
        with torch.inference_mode():
            log_p = case.adapter.model(ids).logits[0].double().log_softmax(-1)
        return -log_p[POSITION, ids[0, POSITION + 1]]

    for head in range(2):
        block = slice(head * replay.site.width, (head + 1) * replay.site.width)

        def replace(module, args, block=block):
            act = args[0].clone()
            act[..., block] = replay.mean_act[block]
            return (act, *args[1:])

        clean = losses()
        handle = replay.site.module.register_forward_pre_hook(replace)
        slow = losses() - clean
        handle.remove()
        assert slow.abs().max() > 1e-2
        assert_close(found[head], slow, rtol=0, atol=20 * tolerance(name))


def test_a_sequential_block_hears_its_heads_and_a_parallel_one_does_not(tiny):
    """Moving the block's output is right for heads only where the MLP doesn't read what they wrote."""
    for name, parallel in (("gpt_neox", True), ("gptj", True), ("phi", True), ("gpt2", False), ("llama", False)):
        case = tiny(name)
        assert site_of(case.adapter.anatomy, 0, "heads").adds_plainly == parallel
        moved = replay_of(case, 1, "heads", resume_after=True).loss_changes(torch.arange(2)).delta_loss
        right = replay_of(case, 1, "heads", resume_after=False).loss_changes(torch.arange(2)).delta_loss
        assert ((moved - right).abs().max() < 1e-9) == parallel


def test_a_unit_at_its_mean_changes_nothing(tiny):
    """With the activation itself in place of its mean, moves are zero."""
    case = tiny("gpt_neox")
    replay = replay_of(case, 0)
    replay.shift = torch.zeros_like(replay.shift)
    assert replay.loss_changes(torch.arange(4)).delta_loss.abs().max() < 1e-13  # rows of a batch round by themselves


def test_names_of_units(tiny):
    anatomy = tiny("gpt2").adapter.anatomy
    assert site_of(anatomy, -1).name(7) == "1.7"
    assert site_of(anatomy, 0, "heads").name(1) == "0.h1"


def test_logits_that_the_unembedding_alone_does_not_give_are_refused(tiny):
    """The cap of Gemma-2's logits is part of its head; without it the gap shows."""
    anatomy = tiny("gemma2").adapter.anatomy
    assert head_of(anatomy).cap == 30.0
    anatomy.model.config.final_logit_softcapping = None
    forward = anatomy.unembedding.forward
    anatomy.unembedding.forward = lambda hidden: 1.5 * forward(hidden)
    with pytest.raises(UnsupportedModel, match=r"own logits.*--engine patching"):
        head_of(anatomy)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_clean_pass_serves_all_sites(name, tiny):
    case = tiny(name)
    anatomy = case.adapter.anatomy
    alone = [replay_of(case, *at) for at in ((0, "neurons"), (1, "heads"), (1, "neurons"))]
    ids, position = torch.from_numpy(case.windows[0]), torch.from_numpy(POSITION)
    clean = CleanContext(anatomy, head_of(anatomy), [replay.site for replay in alone], ids, position)
    for which, replay in enumerate(alone):
        units = torch.arange(2)
        found = Replay(clean, replay.mean_act, which).loss_changes(units).delta_loss
        assert torch.equal(found, replay.loss_changes(units).delta_loss)
        assert found.abs().max() > 0
