"""Series spoiled in one known way each: that way and those steps are suspected, and nothing else."""

import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rareneuron.errors import BrokenCheckpoint
from rareneuron.models.checkpoints import all_checkpoints
from rareneuron.models.suspicions import (
    CheckpointFacts,
    TensorFacts,
    facts_from_record,
    gaps,
    out_of_line,
    suspicions,
    tensor_facts,
)

from .conftest import tiny_model

STEPS = (0, 10, 20, 30, 40)
NAME = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A walk from one random model to another: norms and weights change steadily."""
    folder = tmp_path_factory.mktemp("series")
    models = [tiny_model("gpt_neox", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    for step in STEPS:
        mixed, share = tiny_model("gpt_neox", dtype=torch.float32), step / 40
        with torch.no_grad():
            for weight, *ends in zip(*(model.parameters() for model in (mixed, *models)), strict=True):
                weight.copy_((1 + share) * ends[0] + share * ends[1])
        mixed.save_pretrained(folder / f"step{step}")
    return folder


@pytest.fixture
def series(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "series")


def suspected(folder):
    return suspicions(
        [
            CheckpointFacts(step=c.step, name=c.source, tensors=tensor_facts(Path(c.source)))
            for c in all_checkpoints(folder)
        ]
    )


def edit(folder, step, change):
    path = folder / f"step{step}" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_sound_series_is_not_suspected(series):
    assert suspected(series) == []


def copied(series):
    shutil.copy(series / "step30" / "model.safetensors", series / "step20" / "model.safetensors")


def one_matrix_of_the_last(series):
    last = load_file(series / "step40" / "model.safetensors")
    edit(series, 20, lambda weights: weights.update({NAME: last[NAME]}))


def frozen(series):
    first = load_file(series / "step0" / "model.safetensors")
    for step in STEPS:
        edit(series, step, lambda weights: weights.update({NAME: first[NAME]}))


def nan(series):
    edit(series, 20, lambda weights: weights[NAME][0, :3].fill_(math.nan))


def infinite(series):
    edit(series, 20, lambda weights: weights[NAME][0, :3].fill_(math.inf))


def a_constant_matrix(series):
    edit(series, 20, lambda weights: weights[NAME].fill_(float(weights[NAME].square().mean().sqrt())))


def a_reset_vector(series):
    edit(series, 20, lambda weights: weights["gpt_neox.final_layer_norm.bias"].zero_())


def a_scaled_matrix(series):
    edit(series, 20, lambda weights: weights[NAME].mul_(3))


def a_shrunken_matrix(series):
    edit(series, 20, lambda weights: weights[NAME].div_(3))


def a_missing_step(series):
    shutil.rmtree(series / "step20")
    # 0, 10, 30, 40


SPOILED = [
    (copied, "identical", (20, 30), r"^Steps 20 and 30 have identical weights: one of them is not what its name says"),
    (one_matrix_of_the_last, "shared", (20, 40), rf"1 matrix is the same at steps 20, 40 \(`{NAME}`\).*mixed up"),
    (frozen, "frozen", STEPS, rf"1 matrix is identical at every step \(`{NAME}`\), so it was never trained"),
    (nan, "non-finite", (20,), rf"Step 20 has 3 numbers that are NaN or infinite, in `{NAME}`"),
    (infinite, "non-finite", (20,), r"Step 20 has 3 numbers"),
    (a_constant_matrix, "constant", (20,), rf"Step 20 has 1 weights of a single number: `{NAME}`"),
    (
        a_reset_vector,
        "constant",
        (20,),
        r"Step 20 has 1 weights of a single number: `gpt_neox\.final_layer_norm\.bias`",
    ),
    (a_scaled_matrix, "norm", (20,), rf"At step 20 the norm of 1 matrix.*steps 10 and 30.*`{NAME}` by a factor of 2\."),
    (a_shrunken_matrix, "norm", (20,), rf"At step 20 the norm of 1 matrix.*`{NAME}` by a factor of 0\."),
    (a_missing_step, "missing", (10, 30), r"Between steps 10 and 30 .* leaves out 1: 20\."),
]


@pytest.mark.parametrize(("spoil", "kind", "steps", "text"), SPOILED, ids=[case[0].__name__ for case in SPOILED])
def test_what_was_spoiled_is_named_and_nothing_else(series, spoil, kind, steps, text):
    spoil(series)
    (found,) = [s for s in suspected(series) if not (spoil is one_matrix_of_the_last and s.kind == "norm")]
    assert (found.kind, found.steps) == (kind, steps)
    assert re.search(text, found.text), found.text


def facts(step, loss=None, **tensors):
    return CheckpointFacts(step=step, name=f"step{step}", tensors=tensors, loss=loss)


def tensor(sha="a", shape=(2, 2), norm=1.0, constant=False):
    return TensorFacts(sha256=sha, shape=shape, norm=norm, n_bad=0, constant=constant)


def kinds(*series):
    return [(s.kind, s.steps) for s in suspicions(series)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([9.7, 8.0, 6.0, 5.0, 4.9], []),
        ([9.7, 8.0, 9.72, 5.0, 4.9], [("loss", (2,))]),  # an untrained one under a later name
        ([9.7, 4.0, 6.0, 5.0, 4.9], [("loss", (1,))]),  # a late one under an earlier name
        ([9.7, 8.0, 6.0, 5.0, 5.05], []),
        ([9.7, 8.0, 6.0, 5.0, 5.5], [("loss", (4,))]),
        ([9.7, 8.0, math.nan, 5.0, 4.9], [("loss", (2,))]),
    ],
)
def test_losses_out_of_line(losses, expected):
    assert kinds(*(facts(i, loss, w=tensor(str(i))) for i, loss in enumerate(losses))) == expected


@pytest.mark.parametrize(
    ("low", "here", "high", "expected"),
    [(0, 1, 2, 0), (2, 1, 0, 0), (0, 3, 1, 2), (0, -1, 1, -1), (0, 1.2, 1, 0), (1, 1, 1, 0), (1, 2, 1, 1)],
)
def test_out_of_line(low, here, high, expected):
    assert out_of_line(low, here, high) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        ([7], []),
        ([0, 1000, 2000, 3000], []),
        ([0, 1000, 3000, 4000], [(1000, 3000)]),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000], []),  # Pythia's, whole
        ([1, 2, 4, 16, 32, 64], [(4, 16)]),
        ([0, 8, 32, 64, 128, 256], []),  # 16 was never there: to the left nothing shows a factor
        ([46000, 47000, 49000, 51000, 52000], [(47000, 49000), (49000, 51000)]),
        ([*range(0, 58000, 1000), *range(59000, 80000, 1000)], [(57000, 59000)]),
    ],
)
def test_missing_steps_are_those_that_the_spacing_asks_for(steps, expected):
    assert [found.steps for found in gaps(steps)] == expected


def test_initial_values_are_not_suspected():
    """Ones and zeros before training are as they should be, also the same ones in two steps."""
    ones, zeros = tensor("1", (4,), constant=True), tensor("0", constant=True)
    assert (
        kinds(facts(0, gain=ones, w=zeros), facts(1, gain=ones, w=tensor("b")), facts(2, gain=ones, w=tensor("c")))
        == []
    )


def test_a_checkpoint_that_cannot_be_read_is_named_and_the_others_compared():
    bad = CheckpointFacts(step=1, name="step1", tensors={}, error="It is cut short. Fetch it again.")
    found = suspicions([facts(0, w=tensor("a")), bad, facts(2, w=tensor("a"))])
    assert [(s.kind, s.steps) for s in found] == [("unreadable", (1,)), ("identical", (0, 2))]
    assert found[0].text == "Step 1 can't be used: It is cut short. Fetch it again."


def test_more_than_two_equal_checkpoints_are_one_finding():
    (found,) = suspicions([facts(i, w=tensor("a")) for i in range(3)])
    assert found.text == "Steps 0, 1 and 2 have identical weights: 2 of them are not what their names say."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_facts_are_those_of_the_tensors(tmp_path, dtype):
    model = tiny_model("llama", dtype=dtype)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    found = tensor_facts(tmp_path / "whole")
    assert found == tensor_facts(tmp_path / "shards")  # whatever files they lie in
    for name, weight in model.state_dict().items():
        assert found[name].shape == tuple(weight.shape)
        assert found[name].norm == pytest.approx(float(weight.double().norm()), rel=1e-12)
    assert facts_from_record(3, "x", {k: asdict(v) for k, v in found.items()}, None).tensors == found


def test_a_cut_file_is_refused(series):
    path = series / "step0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BrokenCheckpoint, match="truncated"):
        tensor_facts(series / "step0")


def test_an_unknown_step_is_the_last_one_and_lies_between_no_others():
    """The final model of a folder has no step in its name; it comes after all steps and jumps from none."""
    moved, zero = tensor("b", (4,)), tensor("0", (4,), constant=True)
    values = ((0, 9.7, zero), (8, 5.0, moved), (None, 9.9, zero))
    series = [facts(step, loss, bias=bias, w=tensor(f"w{step}")) for step, loss, bias in values]
    (found,) = suspicions(series)
    assert (found.kind, found.steps) == ("constant", (None,))
    assert found.text == "Step of unknown number has 1 weights of a single number: `bias`."
    assert suspicions([series[2], *series[:2]]) == [found]  # wherever it stands in the list
