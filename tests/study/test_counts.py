"""Whose counts decide what is rare, through the stage that chooses a study's tokens."""

import json

import numpy as np
import pytest

from rareneuron.cache import cache_folder
from rareneuron.errors import InvalidConfig, UnusableCounts
from rareneuron.measure.checkpoint import load_checkpoint
from rareneuron.models.checkpoints import list_checkpoints
from rareneuron.present.summary import study_summary
from rareneuron.present.whose import disagreement, how_sure, source_of
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.records import CountsRecord
from rareneuron.runs.tokens import selection_digest
from rareneuron.runs.unigrams import cached, read_unigrams
from rareneuron.study import counts as module
from rareneuron.study.plan import plan_study
from rareneuron.study.study import run_study
from rareneuron.study.tokens import choose_tokens, study_corpus

TYPES = {"rarity": "types", "percentile": 50}


@pytest.fixture
def chosen(config, series, monkeypatch, tmp_path):
    """Chooses tokens with the series' last checkpoint, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = config(steps=(10,))
    adapter = load_checkpoint(settings, list_checkpoints(str(series), None, (10,))[0])

    def choose(kept=None, **changes):
        asked = config(**{"steps": (10,), "counts_from": "auto"} | changes)
        return choose_tokens(asked, study_corpus(asked), adapter, kept)

    return choose


def refuse_to_compute(*_, **__):
    raise AssertionError("computed again")


def test_without_counts_the_model_says_what_is_rare(chosen, tmp_path, monkeypatch):
    tokens = chosen(tmp_path / "kept.safetensors", **TYPES)
    record, rarity = tokens.record.counts, tokens.record.rarity
    assert (record.kind, record.source) == ("model", None)
    assert record.n_contexts > 100
    assert record.n_tokens == 31 * record.n_contexts
    assert 0 < record.precision < 1
    assert 0 <= record.wrong_rare < 0.5
    assert 0 <= record.wrong_common < 0.5
    assert (rarity.count_at_threshold, rarity.count_total) == (None, None)
    unigrams, _ = read_unigrams(tmp_path / "kept.safetensors")
    assert len(np.unique(unigrams.p)) > 0.99 * len(unigrams.p)  # no ties, but for rows of float32 alike
    assert rarity.n_types == len(unigrams.p) // 2 - (len(unigrams.p) % 2 == 0)  # half, less the threshold's own
    frequency = tokens.table["frequency"].to_numpy()
    np.testing.assert_array_equal(frequency, unigrams.p[tokens.table["target"]])
    assert frequency[tokens.table["rare"]].max() < frequency[~tokens.table["rare"]].min()


def test_it_is_made_once_and_kept(chosen, tmp_path, monkeypatch):
    kept = tmp_path / "kept.safetensors"
    first = chosen(kept, **TYPES)
    files = list(cache_folder("unigrams").iterdir())
    assert files == [cached(read_unigrams(kept)[1])]
    monkeypatch.setattr(module, "self_unigram", refuse_to_compute)
    assert selection_digest(chosen(**TYPES).selection) == selection_digest(first.selection)  # from the cache
    files[0].write_bytes(b"damaged")
    assert selection_digest(chosen(kept, **TYPES).selection) == selection_digest(first.selection)  # from the run
    with pytest.raises(AssertionError, match="computed again"):
        chosen(**TYPES)
    with pytest.raises(AssertionError, match="computed again"):
        chosen(kept, context_length=16, **TYPES)  # another text


def test_a_cache_that_cannot_be_written_is_done_without(chosen, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert chosen(**TYPES).record.counts.kind == "model"


def test_a_text_and_merges_are_asked_for(chosen):
    corpus = chosen(counts_from="corpus").record
    assert (corpus.counts.kind, corpus.counts.of) == ("corpus", "the corpus itself, not the training set")
    assert corpus.counts.n_tokens == corpus.stages[0].occurrences
    assert 0 < corpus.counts.wrong_common < 0.2
    merges = chosen(counts_from="merges", **TYPES).record
    assert (merges.counts.kind, merges.counts.wrong_rare) == ("merges", None)
    with pytest.raises(UnusableCounts, match="not how rare"):
        chosen(counts_from="merges")


def test_two_sources_are_refused():
    with pytest.raises(InvalidConfig, match="both say whose counts"):
        StudyConfig(counts="c.npy", counts_from="corpus")
    with pytest.raises(InvalidConfig, match="auto, model, corpus, merges"):
        StudyConfig(counts_from="luck")


def test_what_the_command_writes_is_read_as_counts(chosen, invoke, series, text_file, tmp_path):
    arguments = ["unigrams", series / "step10", text_file, "--from", "model", "--context-length", "32"]
    done = invoke(*arguments, "-o", tmp_path / "own.safetensors", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    tokens = chosen(counts=str(tmp_path / "own.safetensors"), **TYPES)
    assert tokens.record.counts.kind == "model"
    assert tokens.record.counts.n_tokens == said["positions"]
    assert selection_digest(tokens.selection) == selection_digest(chosen(**TYPES).selection)
    refused = invoke(*arguments, "-o", tmp_path / "own.npy")
    assert refused.exit_code == 2
    assert ".safetensors" in refused.stderr


def test_unigrams_of_another_tokenizer_are_refused(chosen, invoke, llama, text_file, tmp_path):
    path = tmp_path / "own.safetensors"
    assert invoke("unigrams", llama, text_file, "--from", "model", "--context-length", 32, "-o", path).exit_code == 0
    with pytest.raises(UnusableCounts, match="another tokenizer or vocabulary"):
        chosen(counts=str(path))


def test_the_plan_says_whose_counts(config):
    said = {name: plan_study(config(counts_from=name)).whose_counts for name in ("auto", "model", "corpus", "merges")}
    assert said["auto"] == said["model"]
    assert len(set(said.values())) == 3


def test_summary_and_run_say_whose_counts(config, monkeypatch, tmp_path):
    """A study of a random model: its own unigrams follow nothing, and the summary says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = run_study(config(steps=(10,), counts_from="model"), progress=False)
    counts = run.manifest.data.counts
    assert abs(counts.agreement) < 0.3
    lines = study_summary(run)["lines"]
    assert any(line.startswith("Counts: the model's own mean prediction over") for line in lines)
    assert disagreement(counts) in lines
    for name in ("tokens.parquet", "contexts.safetensors"):
        (run.path / name).unlink()
    monkeypatch.setattr(module, "self_unigram", refuse_to_compute)
    again = run_study(config(steps=(0, 10), counts_from="model"), progress=False)  # tokens are chosen again
    assert again.steps == [0, 10]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (CountsRecord(source="c.npy", of="training set", kind="training"), "the training set's (c.npy)"),
        (CountsRecord(source="c.npy", of="training set", kind="training", published="P: all"), "no licence stated"),
        (CountsRecord(source=None, of="m", kind="model", n_tokens=510, n_contexts=2), "510 positions of 2 contexts"),
        (CountsRecord(source=None, of="the corpus itself"), "the corpus itself"),  # a run of an older version
    ],
)
def test_counts_are_named(record, said):
    assert said in source_of(record)
    assert "isn't known" in how_sure(record)
