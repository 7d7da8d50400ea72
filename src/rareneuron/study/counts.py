"""Counts a corpus with a tokenizer; a study reads the result as `--counts`."""

from pathlib import Path

from rareneuron.data.corpus import WindowStream
from rareneuron.data.rarity import count_unigrams, refuse_other_suffix, save_counts
from rareneuron.data.texts import open_corpus
from rareneuron.errors import InvalidConfig, UnfitTokenizer
from rareneuron.models.hub import model_folder
from rareneuron.models.loading import load_tokenizer


def count_corpus(
    tokenizer: str, data: str, output: Path, text_field: str, max_tokens: int, context_length: int
) -> tuple[int, int, int]:
    """Count a corpus and write the counts; return tokens counted, types seen, and types in all."""
    refuse_other_suffix(output)  # before anything is fetched or counted
    if max_tokens < context_length - 1:
        raise InvalidConfig(
            f"--max-tokens {max_tokens} is less than one window of {context_length}, so nothing would be counted. "
            "Raise it, or lower --context-length."
        )
    where = model_folder(tokenizer, weights=False)
    loaded = load_tokenizer(where.folder, None)
    if loaded is None:
        raise UnfitTokenizer(
            f"{tokenizer} holds no tokenizer (tokenizer.json), so nothing can be counted. Give the folder or Hub id of "
            "a model or of a tokenizer."
        )
    stream = WindowStream(open_corpus(data, text_field=text_field), loaded, context_length)
    counts = count_unigrams(stream, len(loaded), max_tokens)
    save_counts(counts, output)
    return int(counts.sum()), int((counts > 0).sum()), len(counts)
