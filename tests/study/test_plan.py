"""What a plan refuses before anything is computed, and what it must not refuse."""

import shutil

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rareneuron.errors import BrokenCheckpoint, InvalidConfig, NoRareTokens
from rareneuron.maths.table_memory import engine_memory
from rareneuron.measure.capture import HELD
from rareneuron.study.plan import plan_study
from rareneuron.study.workers import processes
from rareneuron.study.workers.tasks import task_of


class Begun(Exception):
    pass


def begin(n):
    raise Begun(n)


def test_workers_beyond_the_open_checkpoints_take_no_memory(config, monkeypatch):
    """As many workers begin as there are checkpoints, whatever was asked for: those share the memory."""
    steps = (0, 10)
    shape = plan_study(config(steps=steps)).shape
    fixed, per_neuron = engine_memory(shape.vocab, shape.d_model)
    least = (fixed + shape.d_mlp * per_neuron) / (1 - HELD) / 2**30  # of one worker
    plan = plan_study(config(steps=steps, workers=99, memory=2.1 * least))
    assert plan.n_workers == len(plan.open) == 2
    with pytest.raises(InvalidConfig, match="do not hold the tables"):
        plan_study(config(steps=(0, 2, 10), workers=99, memory=2.1 * least))
    assert plan_study(config(steps=steps, workers=1, memory=1.1 * least)).n_workers == 1
    with pytest.raises(InvalidConfig, match="do not hold the tables"):
        plan_study(config(steps=steps, workers=2, memory=1.1 * least))
    monkeypatch.setattr(processes, "workers", begin)
    with pytest.raises(Begun) as begun:
        list(processes.process_answers([task_of(plan.config, c, is_last=False) for c in plan.open], 99))
    assert begun.value.args == (plan.n_workers,)


def test_a_vocabulary_without_words_is_refused_before_a_plan_is_shown(config, series, tmp_path):
    folder = tmp_path / "wordless"
    shutil.copytree(series / "step10", folder)
    vocab = {"<unk>": 0} | {c: i + 1 for i, c in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    with pytest.raises(NoRareTokens, match="is a whole English word"):
        plan_study(config(model=str(folder)))
    plan_study(config(model=str(folder), words=False))


@pytest.mark.parametrize("spoil", ["missing", "truncated"])
def test_weights_that_are_not_whole_are_refused_before_a_plan_is_shown(config, llama, tmp_path, spoil):
    folder = shutil.copytree(llama, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    assert plan_study(config(model=str(folder))).open
    if spoil == "missing":
        shard.unlink()
        words = rf"lacks 1 of the \d+ weight files.*{shard.name}"
    else:
        shard.write_bytes(shard.read_bytes()[:-9])
        words = rf"{shard.name} is truncated"
    with pytest.raises(BrokenCheckpoint, match=words):
        plan_study(config(model=str(folder)))


def test_every_checkpoint_of_a_plan_is_looked_at(config, series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "series")
    (folder / "step2" / "model.safetensors").unlink()
    assert plan_study(config(model=str(folder), steps=(0, 10))).open
    with pytest.raises(BrokenCheckpoint, match=r"step2 holds no model\.safetensors"):
        plan_study(config(model=str(folder), steps=(0, 2, 10)))
