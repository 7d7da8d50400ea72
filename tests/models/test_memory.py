"""Models in memory: opened, copied through their modules, and left as they were.

The stand-ins have the names that the libraries use: `get_base_model`, `peft_config`, `base_layer`, `lora_A` of PEFT;
`module` of DDP; `_orig_mod` of torch.compile; `original_model` of TransformerLens' bridge; `_model` of nnsight, which
is `_module` in its newer versions; `full_tensor` of weights that FSDP spreads over processes.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rareneuron.errors import InvalidConfig, RunFolderError, UnfitTokenizer, UnsupportedModel
from rareneuron.models.adapter import load_model
from rareneuron.models.families import FAMILIES
from rareneuron.models.memory import FORM, identity, opened, plain_copy, weights_of
from rareneuron.runs.config import StudyConfig
from rareneuron.study.study import run_study
from tests.models.conftest import tiny_model, tiny_tokenizer
from tests.tiny_series import RARITY, SHAPE

WINDOWS = np.random.default_rng(1).integers(3, 23, size=(3, 6))


class LoraLinear(nn.Module):
    """PEFT's unmerged adapter on a linear map."""

    def __init__(self, base_layer, rank=2, scaling=2.0):
        super().__init__()
        self.base_layer = base_layer
        out, width = base_layer.weight.shape
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, rank, bias=False, dtype=base_layer.weight.dtype)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, out, bias=False, dtype=base_layer.weight.dtype)})
        self.lora_dropout = nn.Dropout(0.5)
        self.scaling = {"default": scaling}

    def forward(self, x):
        low = self.lora_A["default"](self.lora_dropout(x))
        return self.base_layer(x) + self.lora_B["default"](low) * self.scaling["default"]

    def merged(self):
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        return self.base_layer.weight + self.scaling["default"] * b @ a


class QuantLinear(nn.Module):
    """A linear map whose weights are integers with a scale for each row, as those of GPTQ and bitsandbytes."""

    def __init__(self, linear):
        super().__init__()
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x):
        return x @ (self.qweight.to(x.dtype) * self.scales.to(x.dtype)).T


class Rounding(nn.Module):
    """Rounds what goes in, so that it isn't a linear map."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.round())


class PeftModel(nn.Module):
    def __init__(self, model, *, is_prompt_learning=False):
        super().__init__()
        self.base_model = model
        self.peft_config = {"default": SimpleNamespace(is_prompt_learning=is_prompt_learning, peft_type="PREFIX")}

    def get_base_model(self):
        return self.base_model


class DistributedDataParallel(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


class TransformerBridge(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.__dict__["original_model"] = model


class LanguageModel:
    def __init__(self, model):
        self._model = model


class Envoy:
    """nnsight's wrapper since its version 0.5; interventions that it repeats in every trace are its edits."""

    def __init__(self, model, edits=()):
        self._module, self._edits = model, list(edits)


class Spread(torch.Tensor):
    """A weight that is spread over processes: this one holds a part, and gathering gives the whole."""

    whole: torch.Tensor

    def detach(self):
        return self

    def full_tensor(self):
        return self.whole


def compiled(model):
    return torch.compile(model, backend="eager")  # the default one imports what warns of its age


def logits(model, ids=WINDOWS):
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_copy_of_a_plain_model_is_that_model(family):
    model = tiny_model(family)
    copied = plain_copy(model)
    theirs, ours = model.state_dict(), copied.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    # GPT-J keeps its sines in the precision that it was built in.
    assert torch.allclose(logits(model), logits(copied), rtol=0, atol=1e-6)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copied.parameters()}


@pytest.mark.parametrize(
    "wrap",
    [PeftModel, DistributedDataParallel, compiled, TransformerBridge, LanguageModel, Envoy, lambda model: model],
)
def test_wrappers_are_opened(wrap):
    model = tiny_model("llama")
    assert opened(wrap(model)) is model
    assert opened(DistributedDataParallel(wrap(model))) is model


def test_what_holds_no_model_is_refused():
    with pytest.raises(UnsupportedModel, match="A Linear is no transformers model"):
        opened(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match="learned vectors before the text"):
        opened(PeftModel(tiny_model("llama"), is_prompt_learning=True))


def test_interventions_that_a_wrapper_repeats_are_refused():
    with pytest.raises(UnsupportedModel, match=r"This Envoy has edits.*`clear_edits\(\)`"):
        opened(Envoy(tiny_model("llama"), ["zero layer 1"]))


def test_weights_that_are_spread_over_processes_are_gathered():
    model = tiny_model("llama")
    path = "model.layers.1.mlp.down_proj"
    down = model.get_submodule(path)
    whole = down.weight.detach()
    down._parameters["weight"] = whole[:3].as_subclass(Spread)
    down.weight.whole = whole
    assert torch.equal(weights_of(model, path, nn.Linear(*whole.T.shape, bias=False))["weight"], whole)


def test_a_module_that_fails_by_itself_is_refused():
    class Failing(nn.Linear):
        def forward(self, x):
            raise RuntimeError("needs all\n processes")

    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = Failing(*model.model.layers[1].mlp.down_proj.weight.T.shape)
    with pytest.raises(UnsupportedModel, match=r"\(Failing\) fails by itself \(needs all processes\)"):
        plain_copy(model)


def test_unmerged_adapters_count():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    for name in ("up_proj", "down_proj"):
        setattr(mlp, name, LoraLinear(getattr(mlp, name)))
    adapter = load_model(PeftModel(model), tokenizer=tiny_tokenizer(), device="cpu", dtype="float64")
    expected = mlp.down_proj.merged()
    assert torch.allclose(adapter.W_out, expected.T, rtol=0, atol=1e-14)
    assert (expected - mlp.down_proj.base_layer.weight).abs().max() > 1e-2, "the adapter is too small to be missed"
    assert torch.allclose(logits(adapter.model), logits(model.eval()), rtol=0, atol=1e-5)
    assert adapter.closed_form.ok
    assert adapter.provenance["form"] == FORM


def test_quantised_modules_are_read_by_what_they_do():
    model = tiny_model("llama", dtype=torch.float32)
    mlp = model.model.layers[1].mlp
    mlp.down_proj = QuantLinear(mlp.down_proj)
    copied = plain_copy(model)
    held = mlp.down_proj.qweight.float() * mlp.down_proj.scales
    assert torch.allclose(copied.model.layers[1].mlp.down_proj.weight, held, rtol=1e-6)


def test_what_is_not_linear_is_refused():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.down_proj = Rounding(mlp.down_proj)
    with pytest.raises(
        UnsupportedModel, match=r"`model.layers.1.mlp.down_proj` of this model \(Rounding\) isn't a lin"
    ):
        plain_copy(model)


def test_a_changed_norm_is_refused():
    model = tiny_model("llama")
    model.model.norm = nn.Sequential(model.model.norm)
    with pytest.raises(UnsupportedModel, match=r"`model.norm` of this model is a Sequential"):
        plain_copy(model)


def test_a_hook_that_takes_part_is_refused():
    model = tiny_model("llama")
    handle = model.model.layers[0].register_forward_hook(lambda module, args, output: 1.5 * output)
    with pytest.raises(UnsupportedModel, match="predicts something else"):
        plain_copy(model)
    handle.remove()
    plain_copy(model)


def test_offloaded_weights_are_refused():
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModel, match="offloaded"):
        plain_copy(model)


def test_a_model_in_training_stays_as_it_was():
    model = tiny_model("gpt2", resid_pdrop=0.5, dtype=torch.bfloat16).train()
    model.transformer.h[0].eval()  # modes differ between modules
    seen = []
    model.transformer.h[1].register_forward_hook(lambda *_: seen.append(1))
    modes, hooks = [m.training for m in model.modules()], len(model.transformer.h[1]._forward_hooks)
    before, state = {n: w.clone() for n, w in model.state_dict().items()}, torch.get_rng_state()
    adapter = load_model(model, tokenizer=tiny_tokenizer(), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert len(model.transformer.h[1]._forward_hooks) == hooks
    assert all(
        torch.equal(before[name], weight) and weight.dtype == before[name].dtype
        for name, weight in model.state_dict().items()
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert adapter.model.dtype == torch.float32
    assert not adapter.model.training


def test_the_identity_is_over_weights_config_and_tokenizer():
    model, tokenizer = plain_copy(tiny_model("llama")), tiny_tokenizer()
    first = identity(model, tokenizer)
    assert identity(plain_copy(tiny_model("llama")), tiny_tokenizer()) == first
    assert identity(model, tiny_tokenizer(22)) != first
    model.config.rms_norm_eps *= 2
    assert identity(model, tokenizer) != first
    assert identity(plain_copy(tiny_model("llama", seed=1)), tokenizer) != first


@pytest.fixture
def settings(text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = {"n_tokens": 80, "context_length": 32, "group_size": 6, "n_random": 200, "counts_from": "corpus"}
    return StudyConfig(data=str(text_file), out=str(tmp_path / "run"), **few | RARITY)


@pytest.mark.slow  # two studies
def test_a_study_of_a_model_in_memory_is_that_of_its_folder(settings, tokenizer, tmp_path):
    model = tiny_model("llama", seed=3, vocab_size=len(tokenizer), **SHAPE)
    run = run_study(settings, model=model.train(), tokenizer=tokenizer, progress=False)
    assert model.training
    record = run.manifest.checkpoints[next(iter(run.manifest.checkpoints))].model
    assert record.form == FORM
    changed = (run.path / "run.json").stat().st_mtime_ns
    run_study(settings, model=model, tokenizer=tokenizer, progress=False)  # nothing left to do
    assert (run.path / "run.json").stat().st_mtime_ns == changed
    other = tiny_model("llama", seed=4, vocab_size=len(tokenizer), **SHAPE)
    with pytest.raises(RunFolderError, match="other settings"):
        run_study(settings, model=other, tokenizer=tokenizer, progress=False)


def test_a_study_needs_one_model_and_its_tokenizer(settings, tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer), **SHAPE)
    with pytest.raises(UnfitTokenizer, match="without a tokenizer"):
        run_study(settings, model=model)
    with pytest.raises(InvalidConfig, match="the settings name model"):
        run_study(StudyConfig(model="x"), model=model, tokenizer=tokenizer)
    with pytest.raises(InvalidConfig, match="without its model"):
        run_study(settings, tokenizer=tokenizer)
