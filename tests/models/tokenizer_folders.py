"""Tokenizers of every common pipeline, and folders that name a class for them as people's do."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "The School of Time was old. In Winter the Teacher read a Book to every Child.\n"
    "Kindness, darkness and redness; the leaders' readers paid 1,234 for naïve Café words.\n"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
LOWER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])

# What tokenizer_config.json names; None: there is no such file.
CLASSES = {
    "none": (None, "gpt2"),
    "PreTrainedTokenizerFast": ("PreTrainedTokenizerFast", "llama"),
    "GPT2TokenizerFast": ("GPT2TokenizerFast", "gpt2"),
    "GPTNeoXTokenizerFast": ("GPTNeoXTokenizerFast", "gpt_neox"),
    "LlamaTokenizer": ("LlamaTokenizer", "llama"),
    "LlamaTokenizerFast": ("LlamaTokenizerFast", "llama"),
    "GemmaTokenizer": ("GemmaTokenizer", "gemma"),
    "Qwen2Tokenizer": ("Qwen2Tokenizer", "qwen2"),
    "BertTokenizer": ("BertTokenizer", "llama"),
}


def trained(model, trainer, before=None, normalizer=None, decoder=None, **options) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, step in (("pre_tokenizer", before), ("normalizer", normalizer), ("decoder", decoder)):
        if step is not None:
            setattr(tokenizer, name, step)
    tokenizer.train_from_iterator([TEXT] * 5, trainer(special_tokens=SPECIAL, show_progress=False, **options))
    return tokenizer


def byte_level(normalizer=None, *, before=None, prefix=False) -> Tokenizer:
    before = before or pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    options = {"vocab_size": 340, "initial_alphabet": ALPHABET}
    return trained(models.BPE(), trainers.BpeTrainer, before, normalizer, decoders.ByteLevel(), **options)


def cut_by_expression() -> Tokenizer:
    cut = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(before=pre_tokenizers.Sequence([cut, whole]))


def unigram() -> Tokenizer:
    options = {"vocab_size": 90, "unk_token": "<unk>"}
    return trained(
        models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), None, decoders.Metaspace(), **options
    )


def byte_fallback() -> Tokenizer:
    """As Llama-2 has: spaces written by a normaliser, bytes for what the vocabulary lacks."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = trained(models.BPE(), trainers.BpeTrainer, pre_tokenizers.Metaspace(prepend_scheme="first"), vocab_size=120)
    said = json.loads(made.to_str())["model"]
    vocab = dict(said["vocab"])
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in said["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = spaces, decoders.Sequence(steps)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_pieces() -> Tokenizer:
    return trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True),
        decoders.WordPiece(),
        vocab_size=110,
    )


def whitespace() -> Tokenizer:
    """As the quick tour of the library has: no decoder."""
    return trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer, pre_tokenizers.Whitespace(), vocab_size=70)


def words() -> Tokenizer:
    return trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizers.Whitespace())


def cut_and_padded() -> Tokenizer:
    """With a length to cut at and padding in the file, as a tokenizer saved in training has."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    return tokenizer


def with_bos() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


PIPELINES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level,
    "byte-level BPE, lower-casing": lambda: byte_level(LOWER),
    "byte-level BPE, prefix space": lambda: byte_level(prefix=True),
    "byte-level BPE, cut by an expression": cut_by_expression,
    "byte-level BPE, cut and padded": cut_and_padded,
    "byte-level BPE, BOS in the template": with_bos,
    "Unigram, Metaspace": unigram,
    "BPE, byte fallback": byte_fallback,
    "WordPiece, Bert": word_pieces,
    "BPE, Whitespace": whitespace,
    "WordLevel, Whitespace": words,
}


def write_folder(folder: Path, tokenizer: Tokenizer, named: str) -> Path:
    """Write tokenizer.json, and what names the class and the kind of model."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    class_name, model_type = CLASSES[named]
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if class_name is not None:
        named_tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name} | named_tokens))
    return folder


def ids_of_file(folder: Path, text: str) -> list[tuple[int, int, int]]:
    """The ids that the file gives, and where: the `tokenizers` library, without transformers."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    said = tokenizer.encode(text, add_special_tokens=False)
    return [(i, *span) for i, span in zip(said.ids, said.offsets, strict=True)]


def ids_given(tokenizer, text: str) -> list[tuple[int, int, int]]:
    given = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [(i, *span) for i, span in zip(given["input_ids"], given["offset_mapping"], strict=True)]
