"""Bad input through the command line: one paragraph that names the remedy, exit code 2, and nothing left behind."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rareneuron.cli import cli
from rareneuron.models.families import FAMILIES
from rareneuron.runs.run import open_run
from rareneuron.study import study as study_module
from tests.models.conftest import tiny_model


@dataclass(frozen=True)
class Case:
    """A sound model and a sound text in a folder of their own, for a test to spoil."""

    folder: Path

    @property
    def model(self):
        return self.folder / "model"

    @property
    def data(self):
        return self.folder / "texts.txt"

    @property
    def out(self):
        return self.folder / "runs" / "bad"

    def study(self, options=()):
        settings = {"--data": self.data, "--n-tokens": 120, "--context-length": 32, "--group-size": 6}
        settings["--n-random"] = 200  # the fewest
        settings |= {"--rarity": "occurrences", "--percentile": 40, "--out": self.out} | dict(options)
        settings |= {} if "--counts" in settings else {"--counts-from": "corpus"}
        arguments = [str(x) for pair in settings.items() for x in pair]
        return CliRunner().invoke(cli, ["study", str(self.model), *arguments], catch_exceptions=False)

    def write(self, name, content):
        (self.folder / name).write_bytes(content)
        return {"--data": self.folder / name}

    def edit_config(self, **changes):
        path = self.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def counts(self, n_more):
        np.save(self.folder / "counts.npy", np.ones(len(AutoTokenizer.from_pretrained(self.model)) + n_more, np.int64))
        return {"--counts": self.folder / "counts.npy"}


@pytest.fixture
def case(llama, text_file, tmp_path):
    shutil.copytree(llama, tmp_path / "model")
    shutil.copy(text_file, tmp_path / "texts.txt")
    return Case(tmp_path)


def assert_refused(done, said):
    assert done.exit_code == 2, done.output
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.startswith("rareneuron: ")
    assert done.stderr.count("\n") == 1, "one paragraph"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_case_is_sound_until_it_is_spoiled(case):
    assert case.study().exit_code == 0
    assert (case.out / "run.json").is_file()


# --- each spoils one thing, and returns the options to study it with


def no_such_model(case):
    shutil.rmtree(case.model)


def no_weights(case):
    (case.model / "model.safetensors").unlink()


def pickled_weights(case):
    no_weights(case)
    # The pickle protocol's own example: opening it would create a file, which the test would find.
    trap = f"cposix\nsystem\n(S'touch {case.folder / 'opened'}'\ntR."
    (case.model / "pytorch_model.bin").write_bytes(trap.encode())


def truncated_weights(case):
    path = case.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def nan_weights(case):
    weights = load_file(case.model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(weights, case.model / "model.safetensors", metadata={"format": "pt"})


def encoder(case):
    case.edit_config(model_type="bert", architectures=["BertForMaskedLM"])


def encoder_decoder(case):
    case.edit_config(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"])


def tokenizer_of_a_larger_model(case):
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    tokenizer.add_tokens(["one", "too", "many"])
    tokenizer.save_pretrained(case.model)


def no_tokenizer(case):
    for path in case.model.glob("tokenizer*"):
        path.unlink()


def counts_too_long(case):
    return case.counts(5)


def counts_too_short(case):
    return case.counts(-5)


def empty_corpus(case):
    return case.write("empty.txt", b"")


def corpus_shorter_than_a_context(case):
    return case.write("short.txt", b"time and time again")


def nothing_rare(case):
    return case.write("same.txt", b" time" * 4000)


def no_english_word(case):
    return case.write("figures.txt", b"".join(b"%d " % (i * i) for i in range(3000)))


def not_utf8(case):
    return case.write("latin.txt", b"people\nschool\ncaf\xe9\n")


def not_json(case):
    return case.write("texts.jsonl", b'{"text": "time"}\n{"text": "people"\n')


def fewer_rare_tokens_than_a_group_has_neurons(case):
    return {"--n-tokens": 4}


def layer_out_of_range(case):
    return {"--layer": 2}


def layer_before_the_last(case):
    return {"--layer": 0, "--engine": "closed-form"}


def contexts_longer_than_the_model_reads(case):
    return {"--context-length": 65}


BAD = [
    (no_such_model, r"model.*Hub id"),
    (no_weights, r"holds no model\.safetensors.*save_pretrained"),
    (pickled_weights, r"only as pickles \(pytorch_model\.bin\).*convert once"),
    (truncated_weights, r"truncated.*Download or copy it again"),
    (nan_weights, r"1 of 640 numbers of `model\.layers\.1\.mlp\.down_proj\.weight` are NaN.*Download or save it again"),
    (encoder, r"is an encoder.*decoder-only"),
    (encoder_decoder, r"encoder-decoder.*decoder-only"),
    (
        tokenizer_of_a_larger_model,
        r"can give the id \d+ \('many'\).*has \d+ rows.*tokenizer that the model was trained",
    ),
    (no_tokenizer, r"has no tokenizer.*Put tokenizer\.json"),
    (counts_too_long, r"counts\.npy holds \d+ counts.*`rareneuron unigrams TOKENIZER DATA -o FILE`"),
    (counts_too_short, r"counts\.npy holds \d+ counts.*`rareneuron unigrams TOKENIZER DATA -o FILE`"),
    (empty_corpus, r"empty\.txt holds no text.*`--data`"),
    (corpus_shorter_than_a_context, r"shorter than one window of 32.*`--context-length`"),
    (nothing_rare, r"No token of this corpus passes the filter.*`--percentile`"),
    (no_english_word, r"No token of this corpus passes the filter.*`--words off`"),
    (not_utf8, r"latin\.txt, line 3: byte 0xe9 isn't UTF-8.*iconv"),
    (not_json, r"texts\.jsonl, line 2: not JSON.*Mend or drop that line"),
    (fewer_rare_tokens_than_a_group_has_neurons, r"holds 4 rare tokens.*--group-size"),
    (layer_out_of_range, r"has 2 layers. Give one of 0…1"),
    (layer_before_the_last, r"After layer 0 come 1 more blocks.*Leave `--engine` out"),
    (contexts_longer_than_the_model_reads, r"65.*64.*"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_input_is_refused_and_leaves_nothing(case, spoil, said):
    options = spoil(case) or {}
    before = sorted(case.folder.rglob("*"))
    assert_refused(case.study(options), said)
    assert sorted(case.folder.rglob("*")) == before


def test_other_settings_are_refused_and_the_run_stays_as_it_was(case, without_pages):
    assert case.study().exit_code == 0
    before = {path: path.read_bytes() for path in case.out.rglob("*") if path.is_file()}
    assert_refused(case.study({"--seed": 5}), r"seed: 0 there, 5 now.*--out")
    assert {path: path.read_bytes() for path in case.out.rglob("*") if path.is_file()} == before


def test_a_read_only_place_is_refused(case, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, who may run the tests, may write anywhere
    assert_refused(case.study(), r"No permission.*--out")
    assert not case.out.exists()


def test_a_refused_study_leaves_its_neighbours_alone(case, monkeypatch):
    """Another study may have begun beside it, in the folder that the refused one made for both."""
    original, neighbour = study_module.choose_tokens, case.out.with_name("neighbour")

    def meanwhile(*given, **options):
        neighbour.mkdir()
        (neighbour / "run.json").write_text("{}")
        return original(*given, **options)

    monkeypatch.setattr(study_module, "choose_tokens", meanwhile)
    assert_refused(case.study({"--n-tokens": 4}), "--group-size")
    assert (neighbour / "run.json").is_file()
    assert not case.out.exists()


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2"])
def test_models_with_output_norms_and_caps_are_studied_in_closed_form(case, model_type, request):
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    shutil.rmtree(case.model)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    tiny_model(model_type, dtype=torch.float32, **size).save_pretrained(case.model)
    tokenizer.save_pretrained(case.model)
    served = case.study({"--n-tokens": 12, "--group-size": 3})
    assert served.exit_code == 0, served.stderr
    closed = open_run(case.out).effects().set_index("index")
    shutil.rmtree(case.out)
    request.getfixturevalue("without_pages")
    patched = case.study({"--engine": "patching", "--n-tokens": 12, "--group-size": 3})
    assert "patching engine" in patched.stdout
    truth = open_run(case.out).effects().set_index("index")
    # The patched losses are those of a float32 model: they round effects by some 1e-6 nats.
    np.testing.assert_allclose(closed["abs_delta_loss"], truth["abs_delta_loss"], rtol=0, atol=2e-5)
    assert truth["abs_delta_loss"].max() > 1e-2


def test_what_the_closed_form_cannot_do_others_do(case, monkeypatch):
    """A record that doesn't know of the norm behind the MLP."""
    monkeypatch.setitem(FAMILIES, "olmo2", replace(FAMILIES["olmo2"], mlp_norm=None))
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    shutil.rmtree(case.model)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    tiny_model("olmo2", dtype=torch.float32, **size).save_pretrained(case.model)
    tokenizer.save_pretrained(case.model)
    refused = case.study({"--engine": "closed-form"})
    assert_refused(refused, "normalised before it is added.*`--engine patching`")
    by_itself = case.study({"--n-tokens": 12, "--group-size": 3, "--out": case.model.parent / "by-itself"})
    assert by_itself.exit_code == 0, by_itself.stderr
    assert "patched cells" in by_itself.stdout
    served = case.study({"--engine": "patching", "--n-tokens": 12, "--group-size": 3})
    assert served.exit_code == 0, served.stderr
    assert "patching engine" in served.stdout
