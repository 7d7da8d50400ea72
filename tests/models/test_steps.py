"""Names that say a step, whole series named so, the Hub cache's own folders, and folders that hold an adapter."""

import json
import shutil

import pytest

from rareneuron.errors import BrokenCheckpoint, ModelNotFound, UnsupportedModel
from rareneuron.models.adapter import load_model
from rareneuron.models.checkpoints import list_checkpoints
from rareneuron.models.steps import FORMS, form_of_name, stage_of, step_of

NAMES = {
    "step0": ("step<N>", 0),
    "step1000-tokens4B": ("step<N>-tokens<T>", 1000),
    "stage1-step150": ("stage<S>-step<N>", 150),
    "stage1-step1000-tokens5B": ("stage<S>-step<N>-tokens<T>", 1000),
    "stage2-ingredient3-step1000-tokens5B": ("stage<S>-step<N>-tokens<T>", 1000),
    "step_5": ("step_<N>", 5),
    "global_step512": ("global_step<N>", 512),
    "checkpoint-500": ("checkpoint-<N>", 500),
    "ckpt_2000": ("ckpt_<N>", 2000),
    "iter_0001000": ("iter_<N>", 1000),
}


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_read_from_names(name):
    assert (form_of_name(name), step_of(name)) == NAMES[name]


def test_every_form_is_tried():
    assert {form for form, _ in NAMES.values()} == set(FORMS)


@pytest.mark.parametrize("name", [None, "", "main", "step", "my-step5", "step5b", "checkpoint-best", "v1", "tokens4B"])
def test_other_names_say_no_step(name):
    assert form_of_name(name) is None
    assert step_of(name) is None


def test_stages():
    assert stage_of("stage1-step150") == "stage1"
    assert stage_of("stage2-ingredient3-step1000-tokens5B") == "stage2-ingredient3"
    assert stage_of("step5") is None


@pytest.fixture
def renamed(series, tmp_path):
    """The tiny series with other names for its folders."""

    def build(*names):
        for name, step in zip(names, (0, 2, 10), strict=True):
            shutil.copytree(series / f"step{step}", tmp_path / "out" / name)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(series / name, tmp_path / "out" / name)
        return tmp_path / "out"

    return build


def test_what_a_trainer_writes_is_a_series(renamed, invoke):
    folder = renamed("checkpoint-0", "checkpoint-500", "checkpoint-1000")
    (folder / "checkpoint-500" / "optimizer.pt").write_bytes(b"not read")
    assert [c.step for c in list_checkpoints(folder)] == [0, 500, 1000]
    assert load_model(folder / "checkpoint-500").tokenizer is not None
    said = invoke("checkpoints", folder)
    assert said.exit_code == 0
    assert "Steps <N> are read from names of the form checkpoint-<N>." in said.output
    rows = json.loads(invoke("checkpoints", folder, "--json").output)
    assert [row["step_read_as"] for row in rows] == ["checkpoint-<N>"] * 3


def test_a_trainer_s_state_inside_a_checkpoint_is_no_series(renamed):
    folder = renamed("checkpoint-0", "checkpoint-500", "checkpoint-1000")
    (folder / "checkpoint-500" / "global_step500").mkdir()  # DeepSpeed's
    (only,) = list_checkpoints(folder / "checkpoint-500", steps="all")
    assert (only.step, only.source) == (500, str(folder / "checkpoint-500"))
    shutil.copytree(folder / "checkpoint-1000", folder, dirs_exist_ok=True)  # the final model, as `save_model` puts it
    assert [c.step for c in list_checkpoints(folder)] == [None]
    assert [c.step for c in list_checkpoints(folder, steps="all")] == [0, 500, 1000]


def test_two_forms_of_one_step_and_two_stages_are_refused(renamed, tmp_path):
    folder = renamed("step500", "checkpoint-500", "ckpt_1000")
    with pytest.raises(BrokenCheckpoint, match="two checkpoints of step 500"):
        list_checkpoints(folder)
    shutil.rmtree(folder)
    folder = renamed("stage1-step500", "stage2-step600", "stage2-step700")
    with pytest.raises(BrokenCheckpoint, match=r"2 stages \(stage1, stage2\)"):
        list_checkpoints(folder)


def test_a_folder_of_other_things_is_named_by_what_it_holds(tmp_path):
    (tmp_path / "epoch-1").mkdir()
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"it holds epoch-1/, trainer_state\.json\..*checkpoint-<N>"):
        list_checkpoints(tmp_path)


def cached(series, folder, **refs):
    """A model's folder as the Hub's client keeps it, without links."""
    for number, (ref, step) in enumerate(refs.items()):
        commit = f"{number:040x}"
        shutil.copytree(series / f"step{step}", folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder


def test_the_cache_s_own_folders_are_read(series, tmp_path):
    folder = cached(series, tmp_path / "models--lab--tiny", main=10, step0=0, step2=2)
    for place in (folder, folder / "snapshots"):
        assert load_model(place).provenance["commit"] == f"{0:040x}"
    assert [c.step for c in list_checkpoints(folder, steps="all")] == [0, 2]
    one = cached(series, tmp_path / "models--lab--one", other=2)
    assert load_model(one).provenance["commit"] == f"{0:040x}"
    two = cached(series, tmp_path / "models--lab--two", a=2, b=0)
    with pytest.raises(ModelNotFound, match=r"2 snapshots \(a \(00000000\), b"):
        load_model(two)


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_refused_by_naming_its_base(llama, tmp_path, whole):
    folder = shutil.copytree(llama, tmp_path / "lora") if whole else tmp_path
    content = {"peft_type": "LORA", "base_model_name_or_path": "lab/base-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    for read in (list_checkpoints, load_model):
        with pytest.raises(UnsupportedModel, match=r"an adapter \(LORA.*'lab/base-7b'.*merge_and_unload"):
            read(folder)
