"""Series of checkpoints on disk."""

import pytest
import torch

from rareneuron.errors import BrokenCheckpoint, ModelNotFound
from rareneuron.models.adapter import load_model
from rareneuron.models.checkpoints import Checkpoint, list_checkpoints, step_order

from .conftest import tiny_model, tiny_tokenizer


@pytest.fixture
def series(tmp_path):
    """Folders only: a listing reads no weights."""
    for name in ("step0", "step512", "step64", "logs", "step-broken"):
        (tmp_path / "series" / name).mkdir(parents=True)
        (tmp_path / "series" / name / "config.json").write_text("{}")
    return tmp_path / "series"


def test_a_folder_of_steps_is_a_series_in_order(series):
    expected = [Checkpoint(step=s, source=str(series / f"step{s}")) for s in (0, 64, 512)]
    assert list_checkpoints(series) == list_checkpoints(str(series), steps="all") == expected
    assert list_checkpoints(series, steps=(512, 0)) == [expected[0], expected[2]]


def test_a_model_folder_is_one_checkpoint(series):
    assert list_checkpoints(series / "step64") == [Checkpoint(step=64, source=str(series / "step64"))]
    assert list_checkpoints(series / "logs")[0].step is None
    assert list_checkpoints(series / "step64", steps=[64])[0].step == 64


def test_a_final_model_beside_its_steps(series):
    """The folder is a model unless steps are asked for."""
    (series / "config.json").write_text("{}")
    assert [c.step for c in list_checkpoints(series)] == [None]
    assert [c.step for c in list_checkpoints(series, steps="all")] == [0, 64, 512]


def test_steps_that_do_not_exist_are_listed_with_those_that_do(series):
    with pytest.raises(ModelNotFound, match=r"no checkpoint of step 1, 2\. It has 0, 64, 512"):
        list_checkpoints(series, steps=[2, 0, 1])
    with pytest.raises(ModelNotFound, match="single model of unknown step"):
        list_checkpoints(series / "logs", steps=[3])
    with pytest.raises(ModelNotFound, match="`all` or a list of numbers"):
        list_checkpoints(series, steps="last")


def test_an_unknown_step_sorts_last():
    assert sorted([None, 8, 0], key=step_order) == [0, 8, None]


def test_two_folders_of_one_step_are_refused(series):
    (series / "step064").mkdir()
    with pytest.raises(BrokenCheckpoint, match="two checkpoints of step 64"):
        list_checkpoints(series)


def test_a_folder_of_neither(tmp_path):
    with pytest.raises(ModelNotFound, match="neither a model nor a series"):
        list_checkpoints(tmp_path)
    with pytest.raises(ModelNotFound, match="no folder"):
        list_checkpoints(tmp_path / "absent")


def test_a_revision_and_steps_exclude_each_other(series):
    with pytest.raises(ModelNotFound, match="one checkpoint, and steps"):
        list_checkpoints("lab/tiny@step3", steps="all")
    with pytest.raises(ModelNotFound, match="only models on the Hub have revisions"):
        list_checkpoints(series, "step64")


def test_a_series_shares_one_tokenizer(tmp_path):
    tiny_model("gpt2", dtype=torch.float16).save_pretrained(tmp_path / "step8")
    tiny_tokenizer().save_pretrained(tmp_path)
    (checkpoint,) = list_checkpoints(tmp_path)
    assert load_model(checkpoint.source, checkpoint.revision).tokenizer.convert_tokens_to_ids("w7") == 7
    with pytest.raises(ModelNotFound, match=r"series of checkpoints \(1, such as step8\).*--steps all"):
        load_model(tmp_path)
