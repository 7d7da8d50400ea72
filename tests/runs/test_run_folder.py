"""A run folder can be trusted: what changed since is noticed, what is damaged is said or made again."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from rareneuron.errors import (
    InvalidConfig,
    MissingText,
    NoRareTokens,
    NotMeasured,
    OutOfRange,
    RunFolderError,
    TooFewNeurons,
    UnsupportedModel,
    UnusableCounts,
)
from rareneuron.measure import checkpoint as checkpoint_module
from rareneuron.measure import weights as weights_module
from rareneuron.measure.engines.closed_form import table_bytes
from rareneuron.models import adapter as adapter_module
from rareneuron.models.families import FAMILIES
from rareneuron.models.shape import model_shape
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.files import read_json, read_table, read_tensors, write_json
from rareneuron.runs.groups import read_modularity
from rareneuron.runs.layout import FORMAT, step_folder
from rareneuron.runs.neurons import read_explorer
from rareneuron.runs.rankings import RANKINGS
from rareneuron.runs.run import open_run
from rareneuron.study import study as study_module
from rareneuron.study.plan import plan_study
from rareneuron.study.study import run_study
from tests.models.conftest import tiny_model
from tests.models.hub_server import Hub, commit_of, serving
from tests.models.test_hub import reach
from tests.tiny_series import study_config, write_texts


@pytest.fixture
def own(config, series, text_file, tmp_path):
    """Settings of a study whose model and text lie in the test's own folder, for it to change."""
    shutil.copytree(series, tmp_path / "model")
    shutil.copy(text_file, tmp_path / "texts.txt")

    def build(**changes):
        return config(**{"model": str(tmp_path / "model"), "data": str(tmp_path / "texts.txt")} | changes)

    return build


def content_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# --- the same study, and another one


def test_a_study_with_nothing_to_do_leaves_every_byte(config):
    run = run_study(config(steps=(0, 10)))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.rglob("*.*") if p.name != ".lock"}
    for steps in ((0, 10), (0,)):
        run_study(config(steps=steps))
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.rglob("*.*") if p.name != ".lock"} == before


def test_a_study_is_the_same_however_its_paths_are_written(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_study(own(model="model", data="./texts.txt", steps=(0,)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_study(own(steps=(0, 2))).steps == [0, 2]
    assert run_study(own(model="../model", data="../elsewhere/../texts.txt", steps=(0, 2, 10))).steps == [0, 2, 10]
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    with pytest.raises(RunFolderError, match=r"model: .*/model' there, .*/other' now"):
        run_study(own(model="../other"))


def test_a_study_continues_without_its_text(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_study(own(data="texts.txt", steps=(0,)))
    (tmp_path / "texts.txt").unlink()
    assert run_study(own(data="texts.txt", steps=(0, 2))).steps == [0, 2]


@pytest.mark.parametrize("asked", [(0, 10), (10,)])
def test_weights_that_changed_are_refused(own, tmp_path, asked):
    run = run_study(own(steps=(0,)))
    before = content_of(run.path)
    shutil.copy(tmp_path / "model" / "step2" / "model.safetensors", tmp_path / "model" / "step0" / "model.safetensors")
    with pytest.raises(RunFolderError, match=r"Step 0 of .*weights_sha256 \w{64} then.*remove .*steps/0.*--out"):
        run_study(own(steps=asked))
    assert content_of(run.path) == before
    shutil.rmtree(run.path / "steps" / "0")
    assert run_study(own(steps=asked)).steps == list(asked)


def test_weights_are_hashed_again_only_where_their_files_were_touched(own, tmp_path, monkeypatch):
    run_study(own(steps=(0, 10)))
    hashed = []
    original = weights_module.sha256_of_weights
    monkeypatch.setattr(
        weights_module, "sha256_of_weights", lambda folder: hashed.append(folder.name) or original(folder)
    )
    run_study(own(steps=(0, 10)))
    assert hashed == []
    (tmp_path / "model" / "step10" / "model.safetensors").touch()
    run_study(own(steps=(0, 10)))
    assert hashed == ["step10"]


def test_weights_that_change_while_they_are_loaded_count_as_changed(own, tmp_path, monkeypatch):
    original = checkpoint_module.load_folder

    def then_replaced(where, **options):
        adapter = original(where, **options)
        shutil.copy(tmp_path / "model" / "step2" / "model.safetensors", where.folder / "model.safetensors")
        return adapter

    monkeypatch.setattr(checkpoint_module, "load_folder", then_replaced)
    run_study(own(steps=(10,)))
    with pytest.raises(RunFolderError, match=r"Step 10 of .*other weights"):
        run_study(own(steps=(10,)))


def test_a_branch_that_moved_is_refused(config, series, tmp_path, monkeypatch):
    branches = {f"step{n}": tmp_path / "server" / f"step{n}" for n in (0, 2, 10)}
    for name, folder in branches.items():
        shutil.copytree(series / name, folder)
        for file in series.glob("tokenizer*"):
            shutil.copy(file, folder)
    hub = Hub({"lab/tiny": branches})
    with serving(hub) as address:
        reach(monkeypatch, address, tmp_path / "cache")
        run = run_study(config(model="lab/tiny", steps=(0,)))
        assert run.step_record(0).model.commit == commit_of(branches["step0"])
        assert run_study(config(model="lab/tiny", steps=(0, 2))).steps == [0, 2]
        tip = config(model="lab/tiny@step0", out=str(tmp_path / "tip"))
        run_study(tip)
        for same in (tip, replace(tip, model="lab/tiny", revision="step0")):
            assert not plan_study(same).open
        branches["step0"] = branches["step0"].rename(tmp_path / "server" / "again")  # the stub's commits are of names
        with pytest.raises(
            RunFolderError, match=rf"Step 0 .*lab/tiny@step0 had the commit \w{{40}} .*{commit_of(branches['step0'])}"
        ):
            run_study(config(model="lab/tiny", steps=(0, 2, 10)))


def test_counts_that_changed_are_refused(own, tokenizer, tmp_path):
    counts = np.random.default_rng(0).integers(1, 1000, len(tokenizer))
    np.save(tmp_path / "counts.npy", counts)
    run_study(own(steps=(0,), counts=str(tmp_path / "counts.npy")))
    assert run_study(own(steps=(0, 2), counts=str(tmp_path / "counts.npy"))).steps == [0, 2]
    np.save(tmp_path / "counts.npy", counts[::-1])
    with pytest.raises(RunFolderError, match=r"counts\.npy has changed.*Restore it"):
        run_study(own(steps=(0, 2, 10), counts=str(tmp_path / "counts.npy")))


# --- tokens that are lost


@pytest.mark.parametrize("name", ["tokens.parquet", "contexts.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["lost", "emptied"])
def test_lost_tokens_are_chosen_again(own, name, damage):
    run = run_study(own(steps=(0,)))
    before = content_of(run.path)
    damage(run.path / name)
    run_study(own(steps=(0,)))
    assert content_of(run.path) == before


def test_tokens_of_another_text_are_refused(own, tmp_path):
    run = run_study(own(steps=(0,)))
    (run.path / "tokens.parquet").unlink()
    write_texts(tmp_path / "texts.txt", seed=1)
    before = content_of(run.path)
    with pytest.raises(RunFolderError, match=r"the text has changed since \(fingerprint.*--out"):
        run_study(own(steps=(0, 2)))
    assert content_of(run.path) == before


def test_contexts_of_another_run_are_noticed(own, tmp_path):
    run = run_study(own(steps=(0,)))
    other = run_study(own(steps=(0,), seed=1, out=str(tmp_path / "other")))
    before = content_of(run.path)
    shutil.copy(other.path / "contexts.safetensors", run.path)
    run_study(own(steps=(0,)))
    assert content_of(run.path) == before


# --- a folder that holds other things, or too little


def test_what_is_no_step_is_ignored(config):
    run = run_study(config(steps=(0,)))
    for name in ("foo", "12", "007", "²"):
        (run.path / "steps" / name).mkdir()
    (run.path / "steps" / "007" / "step.json").write_text("{}")
    (run.path / "steps" / ".DS_Store").write_bytes(b"\0")
    assert open_run(run.path).steps == [0]
    assert run_study(config(steps=(0, 2))).steps == [0, 2]
    assert (run.path / "steps" / ".DS_Store").is_file()


def test_an_unfinished_folder_in_a_steps_place_is_replaced(config):
    run = run_study(config(steps=(0, 2)))
    before = run.effects(2)
    (run.path / "steps" / "2" / "step.json").unlink()
    assert open_run(run.path).steps == [0]
    pd.testing.assert_frame_equal(run_study(config(steps=(0, 2))).effects(2), before, check_exact=True)


def test_another_format_is_refused(config):
    run = run_study(config(steps=(0,)))
    write_json(run.path / "run.json", {**read_json(run.path / "run.json"), "format": FORMAT + 1})
    for use in (lambda: open_run(run.path), lambda: run_study(config(steps=(0, 2)))):
        with pytest.raises(RunFolderError, match=rf"format {FORMAT + 1}, .* knows format {FORMAT}"):
            use()


@pytest.mark.parametrize(
    ("name", "key"),
    [("run.json", "data"), ("run.json", "config"), ("run.json", "layer"), ("steps/0/step.json", "model")],
)
def test_a_missing_key_is_said_with_its_file(config, capsys, name, key):
    """Without its record a checkpoint is computed again; what the run was can't be made again."""
    run = run_study(config(steps=(0,)))
    path = run.path / name
    write_json(path, {k: v for k, v in read_json(path).items() if k != key})
    said = f"{path} has no '{key}'"
    with pytest.raises(RunFolderError, match=said):
        open_run(run.path).step_record()
    if name == "run.json":
        with pytest.raises(RunFolderError, match=said):
            run_study(config(steps=(0, 2)))
    else:
        again = run_study(config(steps=(0, 2)))
        assert said in capsys.readouterr().err
        assert again.step_record(0).model.n_params > 0


# --- damage


READERS = {
    "run.json": lambda run: run.manifest.data,
    "tokens.parquet": lambda run: run.tokens(),
    "contexts.safetensors": lambda run: read_tensors(run.path / "contexts.safetensors"),
    "steps/10/effects.parquet": lambda run: run.effects(10),
    "steps/10/rank_curve.parquet": lambda run: read_table(run.path / "steps" / "10" / "rank_curve.parquet"),
    "steps/10/context_sums.safetensors": lambda run: run.context_sums(10),
    "steps/10/token_loss.safetensors": lambda run: run.token_loss(10),
    "steps/10/phases.json": lambda run: phases_or_reasons(run),
    "steps/10/phases.safetensors": lambda run: phases_or_reasons(run),
    "trajectory.parquet": lambda run: run.trajectory(),
    "steps/10/groups.json": lambda run: asdict(run.groups(10)),
    "steps/10/groups.safetensors": lambda run: asdict(run.groups(10)),
    "steps/10/geometry.json": lambda run: run.geometry(10),
    "steps/10/modularity.safetensors": lambda run: read_modularity(run.folder(10)),
    "steps/10/spectrum.json": lambda run: run.spectrum(10),
    "steps/10/explorer.safetensors": lambda run: asdict(read_explorer(run.path / "steps" / "10")),
    "steps/10/explorer.json": lambda run: asdict(read_explorer(run.path / "steps" / "10")),
    "steps/10/experiments.json": lambda run: read_experiments(run.path / "steps" / "10"),
    "steps/10/experiments.safetensors": lambda run: read_experiments(run.path / "steps" / "10"),
    "claims.json": lambda run: asdict(run.claims()),
    "steps/10/weights.json": lambda run: read_json(run.path / "steps" / "10" / "weights.json"),
    "steps/10/step.json": lambda run: run.step_record(10).audit,
}


def phases_or_reasons(run):
    """Of the tiny layer only the reasons why there are none."""
    out = {}
    for ranking in RANKINGS:
        try:
            out[ranking] = asdict(run.phases(10, ranking))
        except NotMeasured as error:
            out[ranking] = str(error)
    return out


def flip(path):
    """One bit, in a table's first column or in the middle of tensors."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if path.suffix == ".parquet":
        column = pq.read_metadata(path).row_group(0).column(0)
        at = column.dictionary_page_offset + column.total_compressed_size - 1  # the last byte of its data
    content[at] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "lost": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\x93garbage{" * 64),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "of nothing": lambda path: path.write_bytes(b"{}"),
    "a list": lambda path: path.write_bytes(b"[]"),
    "flipped": flip,
}
CASES = [(name, damage) for name in READERS for damage in DAMAGES]
CASES.remove(("steps/10/step.json", "lost"))  # a folder without it is no finished step


@pytest.fixture(scope="module")
def whole(series, text_file, tmp_path_factory):
    """A finished run to copy and to damage."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_study(study_config(series, text_file, steps=(10,), out=str(out)))


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    return tmp_path / "run"


def test_every_file_has_a_reader(whole):
    assert {str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file()} == {
        *READERS,
        ".lock",
        "steps/.10.lock",
    }


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_refused_by_its_name(copied, config, name, damage):
    DAMAGES[damage](copied / name)
    with pytest.raises(RunFolderError, match=Path(name).name):
        READERS[name](open_run(copied))
    if name == "run.json":
        with pytest.raises(RunFolderError, match=name):
            run_study(config(steps=(10,)))


@pytest.mark.parametrize("name", list(READERS)[1:])
def test_the_same_study_brings_everything_back(whole, copied, config, name):
    DAMAGES["truncated"](copied / name)
    with pytest.raises(RunFolderError, match="Run the same study again"):
        READERS[name](open_run(copied))
    again = run_study(config(steps=(10,)))
    for read in READERS.values():
        np.testing.assert_equal(plain(read(again)), plain(read(whole)))


def plain(content):
    return content.to_dict("list") if isinstance(content, pd.DataFrame) else content


# --- two studies at once, and places that can't be written to


def test_a_study_that_fails_leaves_the_one_beside_it(config, tmp_path, monkeypatch):
    """Both in one new folder, which the first one made."""
    original, beside = study_module.choose_tokens, []

    def meanwhile(*given, **options):
        if not beside:
            beside.append(None)
            beside[0] = run_study(config(steps=(0,), out=str(tmp_path / "runs" / "second")))
            raise MissingText("no more text")
        return original(*given, **options)

    monkeypatch.setattr(study_module, "choose_tokens", meanwhile)
    with pytest.raises(MissingText):
        run_study(config(steps=(0,), out=str(tmp_path / "runs" / "first")))
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["second"]
    assert len(beside[0].effects()) == 40


def test_a_folder_that_fills_while_it_is_removed_is_left(config, tmp_path, monkeypatch):
    original = Path.rmdir

    def too_late(self):
        (self / "second").mkdir()
        original(self)

    monkeypatch.setattr(Path, "rmdir", too_late)
    with pytest.raises(NoRareTokens):
        run_study(config(n_tokens=4, out=str(tmp_path / "runs" / "first")))
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["second"]


@pytest.mark.parametrize("out", ["{file}/run", "{folder}/" + 300 * "x", "/proc/rareneuron"])
def test_a_place_where_no_folder_can_be_is_said(config, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="--out"):
        run_study(config(out=out.format(file=tmp_path / "file", folder=tmp_path)))


# --- the plan refuses what the study would


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"layer": 2}, OutOfRange, "has 2 layers"),
        ({"layer": -3}, OutOfRange, "has 2 layers"),
        ({"layer": 0, "engine": "closed-form"}, UnsupportedModel, r"come 1 more blocks.*Leave `--engine` out"),
        ({"group_size": 14}, TooFewNeurons, "need 42 neurons, and the layer has 40"),
        ({"device": "cuda:99"}, InvalidConfig, "no device 'cuda:99'"),
        ({"data": "nowhere.txt"}, MissingText, "nowhere.txt"),
        ({"counts": "nowhere.npy"}, UnusableCounts, "nowhere.npy"),
        ({"counts": "short.npy"}, UnusableCounts, "7 counts"),
    ],
)
def test_a_plan_refuses_what_cannot_be_done_and_reads_no_weights(own, tmp_path, monkeypatch, changes, error, said):
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.ones(7, np.int64))
    monkeypatch.setattr(adapter_module, "load_causal_lm", lambda *_: pytest.fail("weights are read"))
    assert [step_folder(c.step) for c in plan_study(own()).open] == ["10", "2", "0"]
    with pytest.raises(error, match=said):
        plan_study(own(**changes))
    assert not Path(own().out).exists()


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.mlp_norm])
def test_a_plan_counts_what_an_output_norm_and_a_cap_take(own, tokenizer, tmp_path, model_type):
    folder = tmp_path / model_type
    tiny_model(model_type, dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder)
    assert plan_study(own(model=str(folder), group_size=2)).open
    shape = model_shape(folder)
    assert (shape.output_norm, shape.capped) == (True, model_type == "gemma2")
    assert table_bytes(shape) > table_bytes(replace(shape, output_norm=False, capped=False))


@pytest.mark.parametrize("length", ["tokenizer", "padded"])
def test_a_plan_accepts_counts_that_fit(own, tokenizer, tmp_path, length):
    size = len(tokenizer) + {"tokenizer": 0, "padded": 4}[length]
    np.save(tmp_path / "counts.npy", np.arange(size))
    assert plan_study(own(counts=str(tmp_path / "counts.npy"))).open
