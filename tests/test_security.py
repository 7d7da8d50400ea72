"""What SECURITY.md promises: files from strangers run nothing, lead nowhere else, and don't take all memory."""

import json
import resource
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rareneuron.data import streams
from rareneuron.data.texts import open_corpus
from rareneuron.errors import BrokenCheckpoint, RunFolderError, UnreadableText, UnsupportedModel
from rareneuron.models import untrusted as model_untrusted
from rareneuron.models.adapter import load_model
from rareneuron.models.loading import parsed_config, read_config
from rareneuron.models.shape import model_shape
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.runs import untrusted as confined
from rareneuron.runs.files import damage, read_json, read_table, replacing, write_json, write_table
from rareneuron.runs.records import Manifest, Misfit, StepRecord, from_json
from rareneuron.runs.run import Run, open_run
from rareneuron.runs.store import RunStore
from rareneuron.study.merge import merge_runs
from tests.models.conftest import tiny_model, tiny_tokenizer
from tests.run_records import RUN, STEP

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tmp_path):
    tiny_model("gpt2", dtype=torch.float32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def moved_out(path: Path) -> Path:
    """A file or folder put elsewhere, and a link to it in its place."""
    outside = path.parents[2] / "outside"
    outside.mkdir(exist_ok=True)
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)
    return path


# --- nothing is run


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_kernel_named_in_a_config_is_neither_fetched_nor_run(model, key):
    """Transformers would fetch it from the Hub and run it, where the package `kernels` is installed."""
    edit_config(model, **{key: "owner/kernel"})
    assert parsed_config(model)._attn_implementation is None
    assert load_model(model).closed_form.ok
    assert model_shape(model).n_layers == 2


def test_weights_named_elsewhere_are_refused(model):
    edit_config(model, transformers_weights="../outside.safetensors")
    with pytest.raises(UnsupportedModel, match="transformers_weights"):
        load_model(model)


def test_an_adapter_that_names_another_model_is_refused(model):
    """Where `peft` is installed, transformers would load the model that the adapter names."""
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(UnsupportedModel, match=r"adapter_config\.json.*merge_and_unload"):
        load_model(model)


# --- nothing outside is read or written


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_models_files_may_not_be_links_that_lead_out(model, name):
    moved_out(model / name)
    with pytest.raises(BrokenCheckpoint, match=rf"{name} is a link to .*outside the model's folder"):
        load_model(model)
    with pytest.raises(BrokenCheckpoint, match="is a link"):
        model_shape(model)
    if name.startswith("tokenizer"):
        with pytest.raises(BrokenCheckpoint, match="is a link"):
            load_tokenizer(model, None)


def test_links_within_a_model_and_to_a_model_are_followed(model, tmp_path):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    (model / "model.safetensors").symlink_to("weights.safetensors")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "step5").symlink_to(model)
    assert load_model(model).provenance["weights_sha256"] == load_model(
        tmp_path / "series" / "step5"
    ).provenance["weights_sha256"]  # fmt: skip


def test_only_a_cache_of_the_hub_may_lead_to_its_blobs(model, tmp_path):
    cache = tmp_path / "hub" / "models--lab--tiny"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in list(model.iterdir()):
        file.rename(cache / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_model(snapshot).closed_form.ok
    (snapshot / "config.json").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BrokenCheckpoint, match=r"config\.json is a link to .*secret"):
        load_model(snapshot)
    shutil.copytree(snapshot, tmp_path / "copy" / "snapshot", symlinks=True)  # the same links in another place
    with pytest.raises(BrokenCheckpoint, match="is a link"):
        load_model(tmp_path / "copy" / "snapshot")


def test_a_folder_of_text_may_not_lead_out(tmp_path):
    folder = tmp_path / "a" / "texts"
    folder.mkdir(parents=True)
    (folder / "one.txt").write_text("some words")
    (folder / "two.txt").symlink_to("one.txt")
    assert list(open_corpus(folder)) == ["some words", "some words"]
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "z.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UnreadableText, match=r"z\.txt is a link to .*outside"):
        open_corpus(folder)
    assert list(open_corpus(folder / "z.txt")) == ["secret"]  # named by the user
    snapshot = tmp_path / "hub" / "datasets--lab--texts" / "snapshots" / "0" / "en"
    snapshot.mkdir(parents=True)
    (snapshot.parents[2] / "blobs").mkdir()
    (snapshot.parents[2] / "blobs" / "b").write_text("cached")
    (snapshot / "c.txt").symlink_to(snapshot.parents[2] / "blobs" / "b")
    assert list(open_corpus(snapshot)) == ["cached"]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "run"
    write_json(folder / "run.json", {"format": 1})
    write_json(folder / "steps" / "0" / "step.json", {"step": 0})
    write_table(folder / "steps" / "0" / "effects.parquet", pd.DataFrame({"neuron": ["1.0"], "rank": [1]}))
    return folder


@pytest.mark.parametrize("link", ["steps", "steps/0", "steps/0/effects.parquet"])
def test_a_run_may_not_lead_out(run, link):
    table = run / "steps" / "0" / "effects.parquet"
    assert len(read_table(table)) == 1
    moved_out(run / link)
    with pytest.raises(RunFolderError, match=r"is a link to .*runs hold no links"):
        read_table(table)
    if link != "steps/0/effects.parquet":  # that one would be replaced, not followed
        with pytest.raises(RunFolderError, match="is a link"):
            write_table(table, pd.DataFrame({"a": [1]}))
        assert "a" not in pd.read_parquet(table)


def test_figures_are_not_written_through_a_link_and_a_run_may_be_one(run, tmp_path):
    (tmp_path / "outside").mkdir()
    (run / "figures").symlink_to(tmp_path / "outside")
    with pytest.raises(RunFolderError, match="figures is a link"), replacing(run / "figures" / "x.svg") as path:
        path.write_text("x")
    assert list((tmp_path / "outside").iterdir()) == []
    (tmp_path / "latest").symlink_to(run)
    assert read_json(tmp_path / "latest" / "run.json")["format"] == 1


def test_a_partial_name_that_is_a_link_is_removed_and_not_what_it_leads_to(run, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    (run / ".x.host-1.partial").symlink_to(tmp_path / "outside")
    with RunStore(run).locked():
        pass
    assert (tmp_path / "outside" / "kept").read_text() == "kept"


# --- a run that was made to be read wrongly

SOUND = {"run.json": RUN, "step.json": STEP}
KINDS = {"run.json": Manifest, "step.json": StepRecord}
FORGED = [
    ("run.json", ("config",), None, r"`config` should be an object and is null"),
    ("run.json", ("config", "seed"), "x", r"`config`: seed = 'x' should be of the type"),
    ("run.json", ("config", "seed"), -1, r"seed = -1 must be a whole number"),
    ("run.json", ("planned",), None, r"`planned` should be a list and is null"),
    ("run.json", ("planned",), [0], r"`planned\[0\]` should be a text and is 0"),
    ("run.json", ("data",), None, r"`data` should be an object and is null"),
    ("run.json", ("data", "n_contexts"), 0, r"`data\.n_contexts` should be a whole number from 1 on and is 0"),
    ("run.json", ("data", "stages"), [], r"`data\.stages` should be a list with something in it and is empty"),
    ("run.json", ("data", "stages", 0, "types"), "x" * 500, r"`data\.stages\[0\]\.types` .* is 'x{59}…"),
    ("run.json", ("data", "rarity", "percentile"), None, r"`data\.rarity`: the rule 'types' has no percentile"),
    ("run.json", ("layer",), 10**400, r"`layer` should be a whole number from 0 on and is a number of many digits"),
    ("run.json", ("checkpoints", "0", "audit"), 5, r"`checkpoints\.0\.audit` should be an object and is 5"),
    ("step.json", ("files",), None, r"`files` should be an object"),
    ("step.json", ("model",), None, r"`model` should be an object"),
    (
        "step.json",
        ("model", "weight_stamps", "model.safetensors"),
        [None],
        r"`model\.weight_stamps\.model\.safetensors\[0\]` should",
    ),
    ("step.json", ("audit",), 5, r"`audit` should be an object and is 5"),
    ("step.json", ("audit", "max_error"), 10**400, r"`audit\.max_error` should be a number"),
    ("step.json", ("loss_common",), "x", r"`loss_common` should be a number and is 'x'"),
    ("step.json", ("timings", "effects"), True, r"`timings\.effects` should be a number and is True"),
]


def with_value(content, way, value):
    """A copy with another value at the end of a way."""
    content = json.loads(json.dumps(content))
    place = content
    for name in way[:-1]:
        place = place[name]
    place[way[-1]] = value
    return content


@pytest.mark.parametrize(("file", "way", "value", "said"), FORGED)
def test_a_value_of_another_kind_is_told(file, way, value, said):
    assert isinstance(from_json(KINDS[file], SOUND[file]), KINDS[file])
    with pytest.raises(Misfit, match=said):
        from_json(KINDS[file], with_value(SOUND[file], way, value))


@pytest.mark.parametrize(("file", "way", "value", "said"), FORGED)
def test_a_forged_run_is_refused_in_words(tmp_path, file, way, value, said):
    """Its checksums are right: whoever forges a file can write those too."""
    run, step = tmp_path / "run", tmp_path / "run" / "steps" / "0"
    forged = {name: with_value(content, way, value) if name == file else content for name, content in SOUND.items()}
    write_json(run / "run.json", forged["run.json"])
    write_json(step / "step.json", forged["step.json"])
    said = f"{file} is damaged and cannot be read .{said}.*(Restore it|Run the same study again)"
    readers = [lambda: open_run(run)] if file == "run.json" else [lambda: Run(run).step_record()]
    for read in (*readers, lambda: merge_runs(run)):
        with pytest.raises(RunFolderError, match=said):
            read()
    assert (damage(step) is None) == (file == "run.json")


# --- memory


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 10**12}, r"`vocab_size` = 1,000,000,000,000, which no model has"),
        ({"n_layer": 10**6}, r"`n_layer` = 1,000,000"),
        ({"num_labels": 10**9}, r"`num_labels` = 1,000,000,000"),
        ({"n_embd": 10**4000}, r"`n_embd` = a number of 13,288 bits"),
        ({"task_specific_params": {"a": [{"b": 2**31}]}}, r"`b` = 2,147,483,648"),
        ({"attention_types": [[["global"], 10**6]]}, r"`attention_types` of 1,000,000 layers"),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_transformers_counts_to_them(model, change, said, monkeypatch):
    edit_config(model, **change)
    monkeypatch.setattr("rareneuron.models.loading.AutoConfig", None)
    with pytest.raises(BrokenCheckpoint, match=said):
        load_model(model)
    with pytest.raises(BrokenCheckpoint, match=said):
        model_shape(model)


@pytest.mark.parametrize("changes", [{"model_type": ["gpt2"]}, {"model_type": None}, {"architectures": 3}])
def test_a_config_without_a_name_is_refused(model, changes):
    edit_config(model, **changes)
    with pytest.raises(BrokenCheckpoint, match="which architecture this is"):
        read_config(model)


def test_json_beyond_what_such_a_file_needs_isnt_read(model):
    (model / "config.json").write_bytes(b" " * (5 * 2**20))
    with pytest.raises(BrokenCheckpoint, match=r"has 5 MiB, and no such file needs more than 4"):
        load_model(model)


def bomb(path, n_rows=2_000_000, length=2_000_000):
    """A text of 2 MB stored once, and 2 million rows of it: 4 TB."""
    indices = pa.array([0], pa.int32()).take(pa.array([0] * n_rows, pa.int32()))
    table = pa.table({"text": pa.DictionaryArray.from_arrays(indices, pa.array(["x" * length]))})
    pq.write_table(table, path, use_dictionary=True, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def test_a_parquet_bomb_in_a_run_is_refused(run):
    path = run / "tokens.parquet"
    bomb(path)
    before = memory()
    with pytest.raises(RunFolderError, match=r"tokens\.parquet is damaged.*its texts take more than"):
        read_table(path)
    assert memory() - before < 500
    write_table(path, pd.DataFrame({"text": ["a", None, "bcd"], "n": [1, 2, 3]}))
    assert confined.why_unpacks_too_large(path) is None
    assert list(read_table(path)["n"]) == [1, 2, 3]


@pytest.mark.slow
def test_a_parquet_bomb_as_text_is_read_row_by_row(tmp_path):
    path = tmp_path / "c.parquet"
    bomb(path)
    before, rows = memory(), iter(open_corpus(path))
    assert all(len(next(rows)) == 2_000_000 for _ in range(1_000))
    assert memory() - before < 500


def test_lines_and_texts_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MOST_BYTES", 1000)
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "' + "x" * 2000)
    with pytest.raises(UnreadableText, match=r"line 2: longer than 1,000 bytes"):
        list(open_corpus(tmp_path / "c.jsonl"))
    pq.write_table(pa.table({"text": ["a", "x" * 2000]}), tmp_path / "c.parquet")
    with pytest.raises(UnreadableText, match=r"record 2: longer than 1,000 bytes"):
        list(open_corpus(tmp_path / "c.parquet"))
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "n.parquet")
    with pytest.raises(UnreadableText, match=r"column 'text' is of type list"):
        list(open_corpus(tmp_path / "n.parquet"))


def test_what_real_runs_and_models_hold_is_far_below_the_bounds():
    """A bound is a promise about strangers only if it never meets a friend."""
    from rareneuron.embedded import SERIES

    config = json.loads((SERIES / "step0" / "config.json").read_text())
    assert max(value for _, value in model_untrusted.numbers(config)) * 1_000 < model_untrusted.LARGEST
    assert confined.MOST_ROWS > 100 * 2 * 25_088  # the paper's tokens
