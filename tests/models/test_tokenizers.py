"""Every pipeline under every class name gives the ids of its tokenizer.json; and folders that can't be read rightly."""

import importlib.util
import json
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants, try_to_load_from_cache
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rareneuron.errors import OutOfRange, UnfitTokenizer
from rareneuron.models.adapter import adapt, load_model
from rareneuron.models.tokenizers import (
    PROBE,
    find_tokenizer,
    library_of,
    load_tokenizer,
    read_from,
    refuse_other_ids,
)

from .conftest import tiny_model, tiny_tokenizer
from .tokenizer_folders import CLASSES, PIPELINES, SPECIAL, TEXT, byte_level, ids_given, ids_of_file, write_folder


@pytest.fixture(scope="module")
def built():
    return {name: build() for name, build in PIPELINES.items()}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("named", CLASSES)
def test_the_ids_are_those_of_the_file(built, tmp_path, pipeline, named):
    folder = write_folder(tmp_path / "model", built[pipeline], named)
    found = find_tokenizer(folder, None)
    for text in (TEXT, PROBE):
        assert ids_given(found.tokenizer, text) == ids_of_file(folder, text)
    if named != "none":
        assert (found.tokenizer.bos_token, found.tokenizer.eos_token) == ("<s>", "</s>")
    assert len(found.tokenizer) == built[pipeline].get_vocab_size()
    assert found.source.startswith("tokenizer.json")


def test_the_classes_alone_would_give_other_ids(built, tmp_path):
    """Negative control: without the file's word, some of these folders are read wrongly; the probe says which."""
    wrong = []
    for pipeline in ("byte-level BPE, lower-casing", "Unigram, Metaspace", "byte-level BPE"):
        for named in ("GPT2TokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"):
            folder = write_folder(tmp_path / pipeline / named, built[pipeline], named)
            differs = ids_given(AutoTokenizer.from_pretrained(folder), PROBE) != ids_of_file(folder, PROBE)
            found = find_tokenizer(folder, None)
            assert (found.overruled is not None) == differs
            assert ("would give other ids" in found.source) == differs
            wrong += [(pipeline, named)] * differs
    assert ("byte-level BPE, lower-casing", "PreTrainedTokenizerFast") not in wrong
    assert len(wrong) >= 2 or not rebuilds_from_class(), wrong


def rebuilds_from_class() -> bool:
    """Whether this version of transformers builds tokenizers anew from their class."""
    return importlib.util.find_spec("transformers.tokenization_utils_tokenizers") is not None


def test_the_class_still_says_which_tokens_are_special(built, tmp_path):
    """GPT-2's folders need no tokenizer_config.json: the class knows its <|endoftext|>."""
    tokenizer = load_tokenizer(write_folder(tmp_path / "model", built["byte-level BPE"], "none"), None)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == SPECIAL.index("<|endoftext|>")


def test_a_special_token_that_the_file_lacks_gets_no_id(built, tmp_path):
    folder = write_folder(tmp_path / "model", built["byte-level BPE"], "PreTrainedTokenizerFast")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<begin>"}))
    tokenizer = load_tokenizer(folder, None)
    assert (tokenizer.bos_token_id, tokenizer.eos_token) == (None, "</s>")
    assert max(tokenizer.get_vocab().values()) == built["byte-level BPE"].get_vocab_size() - 1


def test_joins_are_never_left_out_at_random(tmp_path):
    tokenizer = byte_level()
    tokenizer.model.dropout = 0.5
    folder = write_folder(tmp_path / "model", tokenizer, "PreTrainedTokenizerFast")
    assert len({tuple(ids_of_file(folder, TEXT)) for _ in range(9)}) > 1, "the case shows nothing"
    loaded = load_tokenizer(folder, None)
    assert len({tuple(ids_given(loaded, TEXT)) for _ in range(9)}) == 1


def test_a_class_that_cannot_be_built_does_not_hide_a_sound_file(built, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "model", built["byte-level BPE"], "GPT2TokenizerFast")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: 1 / 0)
    tokenizer = load_tokenizer(folder, None)
    assert ids_given(tokenizer, TEXT) == ids_of_file(folder, TEXT)
    assert tokenizer.bos_token == "<s>"


# --- folders without tokenizer.json


def without_file(folder, built, named="GPT2TokenizerFast"):
    """vocab.json and merges.txt in place of tokenizer.json."""
    write_folder(folder, built["byte-level BPE"], named)
    (folder / "tokenizer.json").unlink()
    built["byte-level BPE"].model.save(str(folder))
    return folder


def test_vocabulary_and_merges_are_read_by_their_class(built, tmp_path):
    folder = without_file(tmp_path / "model", built)
    found = find_tokenizer(folder, None)
    assert "GPT2Tokenizer" in found.source
    assert "vocab.json" in found.source
    expected = built["byte-level BPE"].encode(TEXT, add_special_tokens=False).ids
    assert found.tokenizer(TEXT, add_special_tokens=False)["input_ids"] == expected


def test_merges_are_not_made_up(built, tmp_path):
    folder = without_file(tmp_path / "model", built)
    (folder / "merges.txt").unlink()
    with pytest.raises(UnfitTokenizer, match=r"vocab\.json without merges\.txt|can't be read"):
        load_tokenizer(folder, None)


def test_how_a_tokenizer_is_used_is_no_tokenizer(built, tmp_path):
    """A lost vocabulary isn't filled up by the class, and the folder above is looked at."""
    write_folder(tmp_path / "series", built["byte-level BPE"], "PreTrainedTokenizerFast")
    step = write_folder(tmp_path / "series" / "step1", built["byte-level BPE"], "GPT2TokenizerFast")
    (step / "tokenizer.json").unlink()
    assert ids_given(load_tokenizer(step, None), TEXT) == ids_of_file(tmp_path / "series", TEXT)
    (tmp_path / "series" / "tokenizer.json").unlink()
    assert load_tokenizer(step, None) is None


PIECES = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
RANKS = b"IQ== 0\nIg== 1\nIw== 2\n"


@pytest.mark.parametrize(
    ("name", "content", "library"),
    [
        ("tokenizer.model", PIECES, "sentencepiece"),
        ("spiece.model", PIECES, "sentencepiece"),
        ("tokenizer.model", RANKS, "tiktoken"),
    ],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, content, library):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert library_of(tmp_path / name)[0] == library
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == library else find(n, *a))
    with pytest.raises(UnfitTokenizer, match=rf"only as {name}.*pip install {library}.*save_pretrained") as refused:
        load_tokenizer(tmp_path, None)
    assert ("tiktoken" in str(refused.value)) == (library == "tiktoken")


@pytest.fixture
def pieces(tmp_path, monkeypatch, built):
    """A folder with a SentencePiece file alone, as its library and transformers read it; the three may disagree."""

    def make(library, by_class, whole):
        given = built[library].encode(PROBE, add_special_tokens=False).ids
        stand_in = ModuleType("sentencepiece")
        stand_in.SentencePieceProcessor = lambda model_file: SimpleNamespace(encode=lambda text: list(given))
        stand_in.__spec__ = ModuleSpec("sentencepiece", None)
        monkeypatch.setitem(sys.modules, "sentencepiece", stand_in)
        (tmp_path / "tokenizer.model").write_bytes(PIECES)
        for name, pipeline in (("of_class", by_class), ("without_class", whole)):
            read = PreTrainedTokenizerFast(tokenizer_object=built[pipeline]) if pipeline else None
            monkeypatch.setattr(f"rareneuron.models.tokenizers.{name}", lambda *_, read=read: read)
        return tmp_path

    return make


LOWERED, OTHER, AS_IT_IS = "byte-level BPE, lower-casing", "byte-level BPE, prefix space", "byte-level BPE"


def test_a_sentencepiece_file_is_read_by_its_class_where_that_gives_the_library_s_ids(pieces):
    found = find_tokenizer(pieces(AS_IT_IS, AS_IT_IS, None), None)
    assert found.overruled is None
    assert found.source == f"{type(found.tokenizer).__name__} of tokenizer.model"


def test_a_sentencepiece_file_is_read_without_its_class_where_that_would_give_other_ids(pieces, built):
    found = find_tokenizer(pieces(LOWERED, OTHER, LOWERED), None)
    assert found.source == f"tokenizer.model; its class {found.overruled} would give other ids"
    assert ids_given(found.tokenizer, TEXT) == [
        (i, *span)
        for encoded in [built[LOWERED].encode(TEXT, add_special_tokens=False)]
        for i, span in zip(encoded.ids, encoded.offsets, strict=True)
    ]


@pytest.mark.parametrize("whole", [AS_IT_IS, None])
def test_a_sentencepiece_file_that_nothing_reads_as_its_library_does_is_refused(pieces, whole):
    with pytest.raises(UnfitTokenizer, match="other ids than the library sentencepiece does"):
        find_tokenizer(pieces(LOWERED, OTHER, whole), None)


def test_a_damaged_sentencepiece_file_is_refused(pieces, monkeypatch):
    folder = pieces(AS_IT_IS, AS_IT_IS, None)

    def fail(model_file):
        raise RuntimeError("Internal: could not parse ModelProto")

    monkeypatch.setattr(sys.modules["sentencepiece"], "SentencePieceProcessor", fail)
    with pytest.raises(UnfitTokenizer, match="can't be read: RuntimeError: Internal: could not parse"):
        find_tokenizer(folder, None)


# --- a tokenizer that is given


def test_a_given_tokenizer_must_give_the_ids_of_the_file_that_it_was_read_from(built, tmp_path):
    model = tiny_model("gpt2", vocab_size=400)
    folder = write_folder(tmp_path / "model", built[LOWERED], "GPT2TokenizerFast")
    given = AutoTokenizer.from_pretrained(folder)
    if rebuilds_from_class():
        for use in (lambda: adapt(model, given), lambda: load_model(model, tokenizer=given, device="cpu")):
            with pytest.raises(UnfitTokenizer, match=r"that was given \(GPT2Tokenizer\) gives a text other ids than"):
                use()
    adapt(model, load_tokenizer(folder, None))
    given.save_pretrained(tmp_path / "meant")
    adapt(model, AutoTokenizer.from_pretrained(tmp_path / "meant"))


def test_a_given_tokenizer_without_such_a_file_is_taken_as_it_is(built, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("", "nobody/nothing", "no id: at all", str(tmp_path)):
        given = PreTrainedTokenizerFast(tokenizer_object=built[AS_IT_IS], name_or_path=name)
        assert read_from(given) is None
        refuse_other_ids(given)


def test_a_given_tokenizer_of_a_sentencepiece_file_must_agree_with_its_library(pieces, built):
    folder = pieces(LOWERED, OTHER, LOWERED)
    refuse_other_ids(PreTrainedTokenizerFast(tokenizer_object=built[LOWERED], name_or_path=str(folder)))
    other = PreTrainedTokenizerFast(tokenizer_object=built[OTHER], name_or_path=str(folder))
    with pytest.raises(UnfitTokenizer, match=r"it was read from, .*tokenizer\.model"):
        refuse_other_ids(other)


def test_the_file_of_a_given_tokenizer_is_found_in_the_hub_s_cache(built, tmp_path, monkeypatch):
    storage = tmp_path / "hub" / "models--someone--model"
    folder = write_folder(storage / "snapshots" / ("a" * 40), built[AS_IT_IS], "PreTrainedTokenizerFast")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("a" * 40)
    found = partial(try_to_load_from_cache, cache_dir=tmp_path / "hub")
    monkeypatch.setattr("rareneuron.models.tokenizers.try_to_load_from_cache", found)
    other = PreTrainedTokenizerFast(tokenizer_object=built[LOWERED], name_or_path="someone/model")
    assert read_from(other) == folder
    with pytest.raises(UnfitTokenizer, match="other ids"):
        refuse_other_ids(other)


# --- a tokenizer and a model


def test_a_padding_token_beyond_the_embedding_is_no_reason_to_refuse(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 23
    adapter = adapt(tiny_model("llama"), tokenizer)
    assert adapter.tokenizer is tokenizer
    with pytest.raises(OutOfRange, match=r"ids from 0 to 23.*rows 0…22"):
        adapter.capture(np.array([[0, 23]]))


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_what_is_put_into_every_text_needs_a_row(role):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({role: "[END]"})
    with pytest.raises(UnfitTokenizer, match=r"can give the id 23 \('\[END\]'\).*has 23 rows"):
        adapt(tiny_model("llama"), tokenizer)


def test_added_words_that_text_holds_need_rows():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["time"])
    with pytest.raises(UnfitTokenizer, match=r"can give the id 23 \('time'\)"):
        adapt(tiny_model("llama"), tokenizer)


def test_provenance_says_whose_ids_were_used(built, tmp_path):
    lower = built["byte-level BPE, lower-casing"]
    folder = write_folder(tmp_path / "model", lower, "GPT2TokenizerFast")
    tiny_model("gpt2", vocab_size=lower.get_vocab_size()).save_pretrained(folder)
    said = load_model(folder).provenance["tokenizer"]
    assert said.startswith("tokenizer.json")
    assert ("GPT2Tokenizer" in said) == rebuilds_from_class()
    given = tiny_tokenizer()
    assert load_model(folder, tokenizer=given).provenance["tokenizer"] == f"{type(given).__name__}, as it was given"


def test_the_file_of_the_case_is_what_it_says():
    assert isinstance(byte_level().model, models.BPE)
