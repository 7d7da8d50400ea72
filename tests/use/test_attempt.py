"""A text with and without a group: losses are the model's own, effects those of running it again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import rareneuron as rn
from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.study.study import run_study
from rareneuron.use.attempt import single_effects, text_ids, try_text
from rareneuron.use.model import run_model
from rareneuron.use.units import stored_means
from tests.tiny_series import study_config

TEXT = "time year people way day man thing woman life child world school"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(series, text_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("attempt") / "run")
    return run_study(study_config(series, text_file, steps=(10,), n_tokens=80, out=out))


def test_losses_are_the_models_own_with_and_without(run):
    adapter = run_model(run)
    found = try_text(run, TEXT, group="suppressing")
    ids = torch.from_numpy(text_ids(adapter, TEXT))[None]
    with torch.inference_mode():
        own = adapter.model(ids, labels=ids).loss.item()
        with rn.ablated(adapter.model, run, group="suppressing"):
            without = adapter.model(ids, labels=ids).loss.item()
    assert found.tokens["loss"].mean() == pytest.approx(own, abs=1e-5)
    assert found.tokens["loss_without"].mean() == pytest.approx(without, abs=1e-5)
    assert abs(own - without) > 1e-3, "the case is too tame"
    assert "".join(found.tokens["text"]).strip() == TEXT


@pytest.mark.parametrize("layer", [0, 1])
def test_effects_of_single_neurons_are_those_of_running_the_model_again(series, text_file, tmp_path, layer):
    run = run_study(study_config(series, text_file, steps=(10,), n_tokens=60, layer=layer, out=str(tmp_path / "run")))
    adapter = run_model(run)
    ids = text_ids(adapter, TEXT)
    delta = single_effects(adapter, ids, layer, torch.from_numpy(stored_means(run, (layer, "neurons"))))
    whole = torch.from_numpy(ids)[None]

    def losses():
        with torch.inference_mode():
            log_p = adapter.model(whole).logits[0, :-1].double().log_softmax(-1)
        return -log_p.gather(1, whole[0, 1:, None])[:, 0]

    clean = losses()
    for neuron in delta.abs().mean(0).topk(3).indices.tolist():
        with rn.ablated(adapter.model, run, units=f"{layer}.{neuron}"):
            exact = losses() - clean
        if layer == 1:  # in closed form
            torch.testing.assert_close(delta[:, neuron], exact, rtol=1e-4, atol=1e-5)
        else:  # estimated
            assert np.corrcoef(delta[:, neuron], exact)[0, 1] > 0.6  # a random model bends more than a trained one


def test_the_command_prints_tokens_and_continuations(run, invoke):
    printed = invoke("try", run.path, TEXT, "--new", 3)
    assert printed.exit_code == 0
    assert "' people'" in printed.output
    assert "Goes on:" in printed.output
    record = json.loads(invoke("try", run.path, TEXT, "--units", "1.3,0.h1", "--to", "zero", "--json").output)
    assert record["units"] == ["1.3", "0.h1"]
    assert len(record["tokens"]) == len(text_ids(run_model(run), TEXT)) - 1


def test_a_notebook_shows_colours_and_escapes_the_text(run):
    found = try_text(run, "time year people")
    page = replace(found, tokens=found.tokens.assign(text="<b>"), continuation="<i>")._repr_html_()
    assert "&lt;b&gt;</span>" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    assert page.count("<span") == len(found.tokens) > 1


def test_texts_that_are_too_short_or_too_long_are_refused(run):
    with pytest.raises(InvalidConfig, match="Give a longer text"):
        try_text(run, "")
    with pytest.raises(InvalidConfig, match="was built for 64"):
        try_text(run, TEXT * 10)


def test_other_weights_than_the_runs_are_refused(run, series, text_file, tmp_path):
    shutil.copytree(series, tmp_path / "series")
    other = run_study(study_config(tmp_path / "series", text_file, steps=(10,), n_tokens=60, out=str(tmp_path / "run")))
    shutil.copy(series / "step2" / "model.safetensors", tmp_path / "series" / "step10" / "model.safetensors")
    with pytest.raises(RunFolderError, match=r"weights of .* have changed since"):
        try_text(other, TEXT)
    shutil.rmtree(tmp_path / "series" / "step10")
    with pytest.raises(RunFolderError, match="no checkpoint of step 10 any more"):
        try_text(other, TEXT)
