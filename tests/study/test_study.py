"""A study end to end on a tiny series: what it writes, that it is right, that it continues, that it refuses."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

import rareneuron as rn
from rareneuron.data.corpus import WindowStream
from rareneuron.data.texts import open_corpus
from rareneuron.errors import (
    InvalidConfig,
    NoRareTokens,
    OutOfRange,
    RareNeuronError,
    RunFolderError,
    TooFewNeurons,
    WrongEffects,
)
from rareneuron.maths import ablation as ablation_module
from rareneuron.measure import checkpoint as checkpoint_module
from rareneuron.models.adapter import load_model
from rareneuron.runs import files as files_module
from rareneuron.runs.files import read_table, read_tensors
from rareneuron.runs.run import open_run
from rareneuron.study.study import run_study
from tests import oracles
from tests.tiny_series import study_config

EFFECT_COLUMNS = {
    "neuron", "index", "delta_loss", "delta_loss_se", "abs_delta_loss", "abs_delta_loss_se", "direct_delta_loss",
    "direct_abs_delta_loss", "kl", "common_delta_loss", "common_abs_delta_loss", "rank", "role", "mean_act",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(series, text_file, tmp_path_factory):
    """One study of all three checkpoints, read by several tests."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return run_study(study_config(series, text_file, out=str(out)))


def test_run_folder_is_the_contract(finished):
    for name in ("run.json", "claims.json", "tokens.parquet", "contexts.safetensors", "trajectory.parquet"):
        assert (finished.path / name).is_file(), name
    for step in (0, 2, 10):
        folder = finished.path / "steps" / str(step)
        of_last = {f"{name}.{kind}" for name in ("explorer", "experiments") for kind in ("safetensors", "json")}
        of_last = of_last | {"modularity.safetensors"} if step == 10 else set()
        assert {p.name for p in folder.iterdir()} - of_last == {
            "effects.parquet", "rank_curve.parquet", "context_sums.safetensors", "token_loss.safetensors",
            "groups.json", "groups.safetensors", "geometry.json", "spectrum.json", "phases.json",
            "phases.safetensors", "weights.json", "step.json",
        }  # fmt: skip
        assert {p.name for p in folder.iterdir()} >= of_last
    assert not list(finished.path.rglob("*.partial"))
    assert finished.steps == [0, 2, 10]
    assert set(finished.effects().columns) >= EFFECT_COLUMNS
    manifest = finished.manifest
    assert manifest.environment["torch"] == torch.__version__
    assert tuple(manifest.checkpoints) == manifest.planned == ("0", "2", "10")
    assert (manifest.layer, manifest.n_layers) == (1, 2)
    assert manifest.data.rarity.count_total > manifest.data.rarity.count_at_threshold > 1
    for record in manifest.checkpoints.values():
        assert len(record.model.weights_sha256) == 64
        assert record.timings["capture"] > 0
        assert record.audit.n_pairs == 32 * 32
        assert record.audit.max_error < 1e-5  # the engine's tolerance plus float32 rounding of large effects


def test_effects_are_those_of_the_definition(finished, series):
    """Every neuron at every analysed token, recomputed in float64 from the model's own residual stream."""
    adapter = load_model(series / "step10", dtype="float64")
    tokens, windows = finished.tokens(), contexts(finished)
    captured = adapter.capture(windows)
    row, position = tokens["context"].to_numpy(copy=True), tokens["position"].to_numpy(copy=True)
    assert (windows[row, position + 1] == tokens["target"]).all(), "the target is the next token, shifted once"
    resid, act = captured.resid[row, position], captured.act[row, position]
    rare = torch.tensor(tokens["rare"].tolist())
    shift = torch.where(rare[:, None], act[rare].mean(0), act[~rare].mean(0)) - act  # each kind to its own mean
    truth = oracles.delta_loss(adapter.readout(), resid, shift, torch.tensor(tokens["target"].tolist()), adapter.W_out)
    table = finished.effects(10)
    mean, absolute = truth[rare].mean(0).numpy(), truth[rare].abs().mean(0).numpy()
    assert absolute.max() > 1e-2, "the case is too tame to tell right from wrong"
    # float32 forward pass of the study against float64 here
    np.testing.assert_allclose(table["delta_loss"], mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(table["abs_delta_loss"], absolute, rtol=0, atol=1e-5)
    np.testing.assert_allclose(table["common_delta_loss"], truth[~rare].mean(0).numpy(), rtol=0, atol=1e-5)
    context = row[rare.numpy()]
    for neuron in (0, 7):
        error = oracles.clustered_standard_error(truth[rare][:, neuron].numpy(), context)
        np.testing.assert_allclose(table["delta_loss_se"][neuron], error, rtol=1e-3)
    assert table["rank"].tolist() == (pd.Series(-absolute).rank(method="first").astype(int)).tolist()
    loss = torch.nn.functional.cross_entropy(
        adapter.readout()(resid), torch.tensor(tokens["target"].tolist()), reduction="none"
    )
    np.testing.assert_allclose(tokens["loss"], loss.numpy(), rtol=0, atol=1e-4)


def contexts(run):
    return read_tensors(run.path / "contexts.safetensors")["windows"]


def test_context_sums_add_up_to_the_means(finished):
    sums, table = finished.context_sums(10), finished.effects(10)
    for prefix in ("", "common_"):
        n = sums[f"{prefix}n_tokens"].sum()
        for name in ("delta_loss", "abs_delta_loss"):
            mean = sums[f"{prefix}{name}"].sum(0, dtype=np.float64) / n
            np.testing.assert_allclose(mean, table[f"{prefix}{name}"], rtol=1e-5, atol=1e-9)  # stored in float32


def test_the_stored_rank_curve_is_that_of_the_effects(finished):
    stored, curve = read_table(finished.path / "steps" / "10" / "rank_curve.parquet"), finished.rank_curve(10)
    assert stored["rank"].tolist() == list(range(1, 41))
    np.testing.assert_array_equal(stored["abs_delta_loss"], curve.value)
    np.testing.assert_array_equal(stored["index"], curve.neuron)
    by_neuron = finished.effects(10).set_index("neuron").loc[stored["neuron"]]
    assert by_neuron["rank"].tolist() == stored["rank"].tolist()
    np.testing.assert_array_equal(by_neuron["abs_delta_loss"], stored["abs_delta_loss"])


def test_groups_and_roles_agree(finished):
    groups, table = finished.groups(), finished.effects()
    assert set(table.loc[table["role"] == "boosting", "index"]) == set(groups.boosting)
    assert set(table.loc[table["role"] == "suppressing", "index"]) == set(groups.suppressing)
    assert (table["delta_loss"].to_numpy()[groups.boosting] > 0).all()
    assert groups.random.shape == (200, 6)
    assert groups.matched_random.shape == (400, 6)


def test_tokens_are_rare_words_and_common_ones_from_the_same_contexts(finished):
    tokens = finished.tokens()
    assert tokens["rare"].sum() == 120
    assert tokens["frequency"][tokens["rare"]].max() < tokens["frequency"][~tokens["rare"]].min()
    assert set(tokens["context"][~tokens["rare"]]) <= set(tokens["context"][tokens["rare"]])
    assert tokens["text"].str.strip().str.isalpha().all()


def test_every_checkpoint_uses_the_same_tokens_and_differs_in_effects(finished, series):
    """The clean loss at each stored token, from each checkpoint's own logits."""
    windows, tokens = torch.from_numpy(contexts(finished)).long(), finished.tokens()
    row, position = tokens["context"].to_numpy(copy=True), tokens["position"].to_numpy(copy=True)
    losses = []
    for step in (0, 2, 10):
        with torch.inference_mode():
            logits = load_model(series / f"step{step}").model(windows).logits[row, position]
        target = torch.tensor(tokens["target"].tolist())
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").numpy())
        np.testing.assert_allclose(finished.token_loss(step), losses[-1], rtol=0, atol=1e-4)  # float32 logits
    assert np.abs(losses[0] - losses[1]).max() > 1e-2, "the case is too tame to tell right from wrong"
    effects = [finished.effects(step)["delta_loss"].to_numpy() for step in (0, 2, 10)]
    assert np.abs(effects[0] - effects[1]).max() > 1e-4


def test_a_finished_step_is_never_computed_again(config, monkeypatch):
    run = run_study(config(steps=(0, 2)))
    before = {p: p.stat().st_mtime_ns for p in run.path.glob("steps/*/*")}
    loaded = []
    original = checkpoint_module.load_folder
    monkeypatch.setattr(checkpoint_module, "load_folder", lambda *a, **k: loaded.append(a[0]) or original(*a, **k))
    again = run_study(config(steps=(0, 2, 10)))
    assert again.steps == [0, 2, 10]
    assert [where.folder.name for where in loaded] == ["step10"]
    assert all(p.stat().st_mtime_ns == before[p] for p in before)


def test_continuing_gives_what_an_undisturbed_study_gives(config, tmp_path, monkeypatch):
    whole = run_study(config())
    original, calls = checkpoint_module.layer_effects, []

    def dies_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(checkpoint_module, "layer_effects", dies_at_the_second)
    interrupted = config(out=str(tmp_path / "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        run_study(interrupted)
    assert open_run(tmp_path / "interrupted").steps == [10]  # the last checkpoint comes first
    monkeypatch.setattr(checkpoint_module, "layer_effects", original)
    continued = run_study(interrupted)
    for step in (0, 2, 10):
        pd.testing.assert_frame_equal(continued.effects(step), whole.effects(step), check_exact=True)


def test_a_study_killed_in_its_first_stage_can_be_repeated(config):
    settings = config(steps=(0,))
    run = run_study(settings)
    shutil.rmtree(run.path / "steps")
    for name in ("run.json", "trajectory.parquet", "claims.json"):
        (run.path / name).unlink()
    (run.path / ".tokens.parquet.99.partial").write_bytes(b"half")
    assert run_study(settings).steps == [0]


def test_same_seed_same_study_and_another_seed_another(config, tmp_path):
    runs = [run_study(config(steps=(10,), seed=s, out=str(tmp_path / f"{i}"))) for i, s in enumerate((0, 0, 1))]
    pd.testing.assert_frame_equal(runs[0].effects(), runs[1].effects(), check_exact=True)
    assert not runs[0].tokens()["position"].equals(runs[2].tokens()["position"])


def test_capturing_twice_gives_what_holding_gives(config, tmp_path, monkeypatch):
    held = run_study(config(steps=(10,)))
    monkeypatch.setattr(checkpoint_module, "HELD", 0)
    streamed = run_study(config(steps=(10,), out=str(tmp_path / "streamed")))
    pd.testing.assert_frame_equal(streamed.effects(), held.effects(), check_exact=True)


@pytest.mark.parametrize("statistic", ["delta_loss", "direct_delta_loss", "kl"])
def test_effects_that_the_audit_does_not_confirm_are_refused(config, monkeypatch, statistic):
    """As a device that computes in reduced precision would give them: off by 1 in 10,000 nats and more."""
    right = ablation_module.AblationEngine.effects

    def wrong(engine, *given, **options):
        found = right(engine, *given, **options)
        off = 1e-3 if engine.expands else 0.0
        return replace(found, **{statistic: getattr(found, statistic) + off})

    monkeypatch.setattr(ablation_module.AblationEngine, "effects", wrong)
    with pytest.raises(WrongEffects, match=r"1024 of 3072 audited effects differ .* at most by 1\.0e-03"):
        run_study(config(steps=(10,)))


def test_reference_all_takes_the_mean_over_every_position(config, series, tmp_path):
    run = run_study(config(steps=(10,), reference="all", out=str(tmp_path / "all")))
    act = load_model(series / "step10").capture(contexts(run)).act
    np.testing.assert_allclose(run.effects()["mean_act"], act.double().mean((0, 1)).numpy(), rtol=0, atol=1e-6)


def test_a_single_model_of_unknown_step(config, llama):
    run = run_study(config(model=str(llama)))
    assert run.steps == [None]
    assert len(run.effects()) == 40
    assert run.effects()["neuron"][3] == "1.3"


@pytest.mark.parametrize("layer", [-1, 0])
def test_patching_serves_every_layer_and_agrees_at_the_last(config, llama, tmp_path, layer):
    settings = config(model=str(llama), n_tokens=15, group_size=3, dtype="float64")
    patched = run_study(replace(settings, engine="patching", layer=layer, out=str(tmp_path / "patched")))
    table = patched.effects()
    assert "direct_delta_loss" not in table
    assert patched.step_record().audit is None
    if layer == -1:
        closed = run_study(settings).effects()
        # float32 engine and transformers' float32 RMSNorm
        np.testing.assert_allclose(table["delta_loss"], closed["delta_loss"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(table["kl"], closed["kl"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(patched.tokens()["loss"], open_run(settings.out).tokens()["loss"], rtol=0, atol=1e-4)
    else:
        assert table["neuron"][3] == "0.3"


def test_the_closed_form_refuses_an_earlier_layer_and_says_what_serves_it(config):
    with pytest.raises(RareNeuronError, match="Leave `--engine` out"):
        run_study(config(layer=0, engine="closed-form"))


def test_counts_file_decides_what_is_rare(config, tokenizer, tmp_path):
    counts = np.zeros(len(tokenizer), np.int64)
    stream = WindowStream(open_corpus(config().data), tokenizer, 32)
    for ids in stream:
        counts += np.bincount(ids[:, 1:].ravel(), minlength=len(counts))
    np.save(tmp_path / "counts.npy", counts.max() - counts)  # upside down: common becomes rare
    upright = run_study(config(steps=(10,)))
    turned = run_study(config(steps=(10,), counts=str(tmp_path / "counts.npy"), out=str(tmp_path / "turned")))
    assert "not the training set" in upright.manifest.data.counts.of
    assert turned.manifest.data.counts.of == "training set"
    common = set(upright.tokens().query("~rare")["text"])
    assert len(set(turned.tokens().query("rare")["text"]) & common) > 3


# --- what is refused


def test_settings_that_differ_are_refused_and_nothing_is_lost(config):
    run = run_study(config(steps=(0,)))
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match="seed: 0 there, 5 now"):
        run_study(config(steps=(0,), seed=5))
    assert (run.path / "run.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="--out"):
        run_study(config())
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_a_locked_folder_is_refused(config, tmp_path):
    run_study(config(steps=(0,)))
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunFolderError, match="Another process"):
        run_study(config(steps=(0, 2)))


def test_a_file_in_the_folders_place_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="--out"):
        run_study(config())


@pytest.mark.parametrize("writer", ["to_parquet", "save_file", "write_text"])
@pytest.mark.parametrize(("number", "said"), [(28, "disk is full"), (5, "Input/output error")])
def test_a_failing_disk_is_said_and_leaves_a_resumable_run(config, monkeypatch, writer, number, said):
    run_study(config(steps=(10,)))

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    owner = {"to_parquet": pd.DataFrame, "save_file": files_module, "write_text": Path}[writer]
    with monkeypatch.context() as patched:
        patched.setattr(owner, writer, fails)
        with pytest.raises(RunFolderError, match=rf"{said}.*--out"):
            run_study(config(steps=(2, 10)))
    assert open_run(config().out).steps == [10]
    assert not list(Path(config().out).rglob("*.partial"))
    assert run_study(config(steps=(2, 10))).steps == [2, 10]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere (tests/SKIPS.md)")
def test_a_read_only_folder_is_said(config, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="No permission"):
        run_study(config())


def test_no_permission_is_said(config, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match=r"No permission.*--out"):
        run_study(config())


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"layer": 7}, OutOfRange, "has 2 layers. Give one of 0…1"),
        ({"device": "abacus"}, InvalidConfig, "--device"),
        ({"group_size": 20}, TooFewNeurons, "--group-size"),
        ({"steps": (3,)}, RareNeuronError, "0, 2, 10"),
        ({"context_length": 65}, RareNeuronError, "64"),
        ({"n_tokens": 4}, NoRareTokens, "fewer than a group"),
    ],
)
def test_bad_settings_leave_nothing_behind(config, changes, error, said):
    with pytest.raises(error, match=said):
        run_study(config(**changes))
    assert not Path(config().out).exists()


def test_text_without_rare_words_is_refused(config, tmp_path):
    (tmp_path / "same.txt").write_text("time " * 4000)
    with pytest.raises(NoRareTokens, match=r"never occurs in this text.*--rarity"):
        run_study(config(data=str(tmp_path / "same.txt"), rarity="types", percentile=50))


def test_what_is_not_there_is_said(config, tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        open_run(tmp_path)
    with pytest.raises(RunFolderError, match="it has 0"):
        run_study(config(steps=(0,))).effects(7)


def test_identical_neighbours_are_warned_of(config, series, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(series, copied)
    shutil.rmtree(copied / "step2")
    shutil.copytree(copied / "step0", copied / "step2")
    run = run_study(config(model=str(copied)))
    assert run.manifest.warnings == ("Steps 0 and 2 have identical weights: one of them is not what its name says.",)


def test_config_from_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('model = "x"\nn_tokens = 5\nsteps = [0, 8]\npercentile = 40\n')
    found = rn.StudyConfig.from_toml(path, n_tokens=7)
    assert (found.model, found.n_tokens, found.steps, found.percentile) == ("x", 7, (0, 8), 40)
    for text, said in (
        ("n_token = 5\n", "n_token.*n_tokens = None"),
        ('n_tokens = "5"\n', "n_tokens"),
        ("n_tokens = true\n", "n_tokens"),
        ("n_tokens = \n", "valid TOML"),
        ("steps = [0.5]\n", "steps"),
        ("percentile = 0\n", "between 0 and 100"),
        ('engine = "magic"\n', "closed-form, gradient, patching"),
        ("n_random = 10\n", "at least 200"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=said):
            rn.StudyConfig.from_toml(path)
    with pytest.raises(InvalidConfig, match="--config"):
        rn.StudyConfig.from_toml(tmp_path / "absent.toml")
