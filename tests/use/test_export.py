"""An exported folder computes in plain transformers what hooks do, for every architecture."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rareneuron as rn
from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.models.families import FAMILIES
from rareneuron.models.sites import site_of
from rareneuron.runs.run import Run
from rareneuron.study.study import run_study
from rareneuron.use.export import export_model
from tests.models.conftest import tiny_model
from tests.tiny_series import study_config

pytestmark = pytest.mark.slow  # models are written and read again

FEW = torch.arange(20).reshape(2, 10)
UNITS = "0.1,1.3,1.5,1.h0"


class GivenRun(Run):
    """A run that knows means alone, whatever the model."""

    manifest = SimpleNamespace(layer=1, version="0")

    def step_record(self, step=None):
        return SimpleNamespace(model=SimpleNamespace(source="tiny", weights_sha256=None), step=None)


@pytest.fixture
def given(tmp_path, monkeypatch):
    means = {}

    def mean_of(run, place, step=None):
        return means.setdefault(place, np.random.default_rng([3, place[0]]).normal(size=200))

    monkeypatch.setattr("rareneuron.use.ablated.stored_means", mean_of)
    return GivenRun(tmp_path)


def adapted(name):
    """A tiny model, with a tokenizer that only can be saved."""
    adapter = rn.adapt(tiny_model(name, dtype=torch.float32))
    adapter._tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    return adapter


def has_place(adapter):
    """Whether every projection that reads one of the units has a bias."""
    sites = site_of(adapter.anatomy, 0), site_of(adapter.anatomy, 1), site_of(adapter.anatomy, 1, "heads")
    return all(getattr(site.module, "bias", None) is not None for site in sites)


@pytest.mark.parametrize("to", ["mean", "zero"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_folder_gives_the_logits_of_the_hooked_model(name, to, given, tmp_path):
    adapter = adapted(name)
    with torch.inference_mode():
        clean = adapter.model(FEW).logits
        with rn.ablated(adapter.model, given, units=UNITS, to=to):
            hooked = adapter.model(FEW).logits
    if to == "mean" and not has_place(adapter):
        with pytest.raises(InvalidConfig, match="has no bias"):
            export_model(given, tmp_path / "out", units=UNITS, to=to, adapter=adapter)
        assert not (tmp_path / "out").exists()
        assert torch.equal(adapter.model(FEW).logits, clean), "a refused model was changed"
        return
    folder = export_model(given, tmp_path / "out", units=UNITS, to=to, adapter=adapter)
    # Versions 4 leave out Gemma-2's soft cap of attention unless they are told to compute it step by step.
    attention = {} if FAMILIES[name].attention is None else {"attn_implementation": FAMILIES[name].attention}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **attention)
    with torch.inference_mode():
        found = plain(FEW).logits
    torch.testing.assert_close(found, hooked, rtol=1e-5, atol=1e-5)
    assert (found - clean).abs().max() > 1e-3, "the case is too tame"


def test_some_architectures_have_a_place_for_the_mean_and_some_have_none(given, tmp_path):
    for name, there_is in (("gpt_neox", True), ("gpt2", True), ("llama", False)):
        adapter = adapted(name)
        assert has_place(adapter) == there_is
        if there_is:
            assert export_model(given, tmp_path / name, units="1.3", adapter=adapter).is_dir()
        else:
            with pytest.raises(InvalidConfig, match=r"llama model, so their mean has no place.*--to zero"):
                export_model(given, tmp_path / name, units="1.3", adapter=adapter)


def test_the_command_writes_card_and_provenance_and_never_over_anything(series, text_file, tmp_path, invoke):
    run = run_study(study_config(series, text_file, steps=(10,), n_tokens=80, out=str(tmp_path / "run")))
    out = tmp_path / "without"
    done = invoke("export", run.path, "--group", "suppressing", "-o", out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "rareneuron.json").read_text())
    assert record["units"] == [f"1.{i}" for i in sorted(run.groups().suppressing)]
    assert "without 6 units" in (out / "README.md").read_text()
    model, plain = rn.load_model(series / "step10", device="cpu").model, rn.load_model(out, device="cpu").model
    ids = torch.arange(3, 35).reshape(2, 16)
    with torch.inference_mode(), rn.ablated(model, run, group="suppressing"):
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    again = invoke("export", run.path, "--group", "boosting", "-o", out)
    assert again.exit_code == 2
    assert "not an empty folder" in again.stderr
    with pytest.raises(RunFolderError, match="not an empty folder"):
        export_model(run, run.path, group="boosting")
    with pytest.raises(InvalidConfig, match="can't be written into weights"):
        export_model(run, tmp_path / "other", group="boosting", to="resample")
