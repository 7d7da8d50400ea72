"""Units are replaced as the definition says, equal to the closed form, and nothing stays behind."""

import numpy as np
import pytest
import torch

import rareneuron as rn
from rareneuron.cli import use as use_commands
from rareneuron.errors import InvalidConfig, NotMeasured, OutOfRange
from rareneuron.models.adapter import load_model
from rareneuron.models.families import FAMILIES
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import load_tokens
from rareneuron.study.study import run_study
from rareneuron.use.units import GROUPS, group_units, named_units
from tests.models.conftest import tiny_model
from tests.tiny_series import study_config

IDS = torch.arange(3, 35).reshape(2, 16)
FEW = torch.arange(20).reshape(2, 10)  # of a tiny vocabulary


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("use") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=80, layers="all", verify=0, out=out))


@pytest.fixture
def model(series):
    return load_model(series / "step10", device="cpu").model


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def losses(model, selection):
    """The loss of every analysed token, by the model itself."""
    out = np.zeros(len(selection.context))
    with torch.inference_mode():
        for row, window in enumerate(selection.windows):
            log_p = model(torch.from_numpy(window).long()[None]).logits[0].double().log_softmax(-1)
            at = np.flatnonzero(selection.context == row)
            out[at] = -log_p[selection.position[at], selection.target[at]].numpy()
    return out


@pytest.mark.slow
def test_one_neuron_at_a_time_gives_the_effects_of_the_run(run, model):
    selection = load_tokens(RunStore(run.path)).selection
    clean, table = losses(model, selection), run.effects()
    for neuron in table.nlargest(2, "abs_delta_loss")["neuron"]:
        with rn.ablated(model, run, units=neuron):
            delta = (losses(model, selection) - clean)[selection.rare]
        expected = table.set_index("neuron").loc[neuron]
        assert np.abs(delta).mean() == pytest.approx(expected["abs_delta_loss"], abs=1e-5)
        assert delta.mean() == pytest.approx(expected["delta_loss"], abs=1e-5)


@pytest.mark.slow
def test_neurons_and_heads_of_other_layers_take_the_means_of_the_layers_table(series, text_file, model, tmp_path):
    settings = study_config(series, text_file, steps=(10,), n_tokens=60, layers="all", verify=1)
    exact = run_study(settings.__class__(**{**vars(settings), "out": str(tmp_path / "run")}))
    selection = load_tokens(RunStore(exact.path)).selection
    clean, table = losses(model, selection), exact.layers().set_index("unit")
    for unit in ("0.5", "0.h1", "1.h0"):
        with rn.ablated(model, exact, units=unit):
            delta = (losses(model, selection) - clean)[selection.rare]
        assert np.abs(delta).max() > 1e-4, "the case is too tame"
        assert np.abs(delta).mean() == pytest.approx(table.loc[unit, "abs_delta_loss"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_zero_is_what_weights_without_the_column_give(name):
    """Switching a neuron off and removing its row of W_out are the same, in every architecture."""
    model = tiny_model(name)
    with torch.inference_mode():
        with rn.ablated(model, units="0.1,1.3", to="zero"):
            found = model(FEW).logits
        changed = tiny_model(name)
        for layer, neuron in ((0, 1), (1, 3)):
            rn.adapt(changed).weights(layer).W_out[neuron] = 0.0
        expected = changed(FEW).logits
    assert not torch.equal(found, model(FEW).logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Bridge(torch.nn.Module):
    """Stands in a projection's place and calls it, as those of TransformerLens' bridge do."""

    def __init__(self, original):
        super().__init__()
        self.original_component = original

    def forward(self, act):
        return self.original_component(act)


def test_projections_that_others_have_wrapped_are_found(model):
    with torch.inference_mode(), rn.ablated(model, units="0.1,1.3", to="zero"):
        expected = model(IDS).logits
    for block in model.gpt_neox.layers:
        block.mlp.dense_4h_to_h = Bridge(block.mlp.dense_4h_to_h)
    with torch.inference_mode():
        with rn.ablated(model, units="0.1,1.3", to="zero"):
            assert torch.equal(model(IDS).logits, expected)
        assert not torch.equal(model(IDS).logits, expected)


def test_nothing_changes_for_an_empty_set_nor_after_the_block(run, model):
    with torch.inference_mode():
        clean = model(IDS).logits
        with rn.ablated(model, units=[]) as units:
            assert torch.equal(model(IDS).logits, clean)
            assert len(units) == hooks_of(model) == 0
        with rn.ablated(model, run, group="boosting"):
            assert hooks_of(model) == 1
            assert not torch.equal(model(IDS).logits, clean)
        with pytest.raises(ZeroDivisionError), rn.ablated(model, run, group="boosting"):
            raise ZeroDivisionError
        assert hooks_of(model) == 0
        assert torch.equal(model(IDS).logits, clean)


def test_blocks_may_be_nested_and_scaled(model):
    with torch.inference_mode():
        with rn.ablated(model, units="1.2,1.7", to="zero"):
            together = model(IDS).logits
        with rn.ablated(model, units="1.2", to="zero"), rn.ablated(model, units="1.7", to="zero"):
            assert torch.equal(model(IDS).logits, together)
        with rn.ablated(model, units="1.2", to="zero", scale=0.0):
            torch.testing.assert_close(model(IDS).logits, model(IDS).logits)
        with rn.ablated(model, units="1.2", to="zero", scale=0.5), rn.ablated(model, units="1.2", to="zero", scale=-1):
            nothing = model(IDS).logits  # half of it, twice
        torch.testing.assert_close(nothing, model(IDS).logits, rtol=1e-5, atol=1e-6)


def test_generation_with_a_cache_and_batches_with_padding_are_as_without(run, model):
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], 1)
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with rn.ablated(model, run, group="suppressing"):
        cached = model.generate(IDS, **asked, use_cache=True, attention_mask=torch.ones_like(IDS))
        anew = model.generate(IDS, **asked, use_cache=False, attention_mask=torch.ones_like(IDS))
        with torch.inference_mode():
            place = mask.cumsum(-1).sub(1).clamp(min=0)
            behind = model(padded, attention_mask=mask, position_ids=place).logits[:, 3:]
            torch.testing.assert_close(behind, model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(cached, anew)


def test_half_precision_stays_half(run, model):
    half = model.to(torch.bfloat16)
    with torch.inference_mode(), rn.ablated(half, run, group="boosting"):
        assert half(IDS).logits.dtype == torch.bfloat16


def test_resampled_units_keep_their_values_and_lose_their_places(model):
    seen = []
    module = rn.adapt(model).anatomy.mlp_out(1)
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model(IDS)
        handle.remove()
        with rn.ablated(model, units="1.2,1.7", to="resample", seed=3):
            handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            model(IDS)
            handle.remove()
    clean, changed = (act.flatten(0, 1)[:, [2, 7]] for act in seen)
    assert not torch.equal(clean, changed)
    assert torch.equal(clean[:, 0].sort().values, changed[:, 0].sort().values)
    order = [int((clean[:, 0] == value).nonzero()[0]) for value in changed[:, 0]]
    assert torch.equal(clean[order, 1], changed[:, 1]), "both come from one place"


def test_groups_are_those_of_the_run_and_random_ones_follow_a_seed(run):
    groups = run.groups()
    assert group_units(run, "boosting").names == [f"1.{i}" for i in sorted(groups.boosting)]
    drawn = [
        tuple(group_units(run, group, seed=seed).names)
        for group in ("random", "matched-suppressing")
        for seed in (0, 1)
    ]
    assert len(set(drawn)) == 4
    assert set(group_units(run, "matched-suppressing", seed=1).names) == {
        f"1.{i}" for i in np.array_split(groups.matched_random, 2)[1][1]
    }


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, InvalidConfig, "in one way"),
        ({"group": "boosting", "units": "1.2"}, InvalidConfig, "in one way"),
        ({"group": "best"}, InvalidConfig, "no group 'best'"),
        ({"units": "1.x"}, InvalidConfig, "'1.x' names no unit"),
        ({"units": "1.999"}, OutOfRange, "so there is no 1.999"),
        ({"units": "7.1"}, OutOfRange, "no layer 7"),
        ({"units": "1.2", "to": "median"}, InvalidConfig, "to = 'median'"),
    ],
)
def test_what_is_not_there_is_refused_and_no_hook_stays(run, model, given, error, words):
    with pytest.raises(error, match=words), rn.ablated(model, run, **given):
        pass
    assert hooks_of(model) == 0


def test_without_a_run_there_is_no_mean(model, series, text_file, tmp_path):
    with pytest.raises(InvalidConfig, match="Give the run of this model"), rn.ablated(model, units="1.2"):
        pass
    one = run_study(study_config(series, text_file, steps=(10,), n_tokens=60, out=str(tmp_path / "one")))
    with (
        pytest.raises(NotMeasured, match="holds no mean of the neurons of layer 0"),
        rn.ablated(model, one, units="0.2"),
    ):
        pass


def test_names_are_read_and_printed():
    units = named_units(["2.7", "29.511", "3.h2", "2.1"])
    assert units.names == ["2.1", "2.7", "29.511", "3.h2"]
    assert len(units) == 4


def test_the_command_line_knows_the_same_groups():
    """It keeps its own list, so that `--help` loads no torch."""
    assert use_commands.GROUPS == GROUPS
