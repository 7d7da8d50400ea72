"""A model's own unigrams as a file: in a run folder, in the user's cache, or where `rareneuron unigrams` wrote them.

The same safetensors file everywhere, with a checksum, and with hashes of the weights, the tokenizer and the text that
it was made from. The cache is a folder of the user's whose files are named by those hashes, so nothing in it goes out
of date; a file that is damaged or can't be written is computed again, never an error.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rareneuron.cache import cache_folder
from rareneuron.data.counts import Unigrams
from rareneuron.data.rarity import SUM_GAP
from rareneuron.errors import RunFolderError, UnusableCounts
from rareneuron.runs.files import read_tensors, write_tensors

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model's own unigrams were made from, as SHA-256 in hexadecimal digits."""

    weights: str
    tokenizer: str
    text: str  # the windows of token ids, and which of them were taken

    @property
    def digest(self) -> str:
        """One name for all three."""
        return hashlib.sha256(f"{self.weights} {self.tokenizer} {self.text}".encode()).hexdigest()


def cached(origin: Origin) -> Path:
    """Return the place of a model's own unigrams in the cache."""
    return cache_folder("unigrams") / f"{origin.digest}{SUFFIX}"


def write_unigrams(path: Path, unigrams: Unigrams, origin: Origin) -> None:
    """Write a model's own unigrams and what they were made from; a reader never sees half a file."""
    if path.suffix != SUFFIX:
        raise UnusableCounts(
            f"{path}: a model's own unigrams are probabilities with errors, and are kept in {SUFFIX} files. Choose "
            "such a name."
        )
    assert unigrams.se is not None, "only a mean over contexts has an error"
    hashes = {name: np.frombuffer(bytes.fromhex(value), np.uint8) for name, value in vars(origin).items()}
    size = np.array([unigrams.n_contexts, unigrams.n_positions], np.int64)
    write_tensors(path, {"p": unigrams.p, "se": unigrams.se, "size": size, **hashes})


def read_unigrams(path: Path) -> tuple[Unigrams, Origin]:
    """Read a model's own unigrams; refuses what can't be such."""
    held = read_tensors(path)
    p, se, size = held["p"], held["se"], held["size"]
    hashes = [held[name] for name in ("weights", "tokenizer", "text")]
    fits = (
        p.ndim == 1
        and p.shape == se.shape
        and (p.dtype, se.dtype, size.dtype, size.shape) == (np.float64, np.float64, np.int64, (2,))
        and bool(np.isfinite(p).all() and (p > 0).all() and (se >= 0).all() and (size > 0).all())
        and abs(float(p.sum()) - 1) < SUM_GAP
        and all(value.dtype == np.uint8 and value.shape == (32,) for value in hashes)
    )
    if not fits:
        raise UnusableCounts(
            f"{path} should hold a positive probability for each type of a vocabulary, their standard errors, and what "
            "they were made from, and doesn't. Write it again: `rareneuron unigrams MODEL DATA --from model -o FILE`."
        )
    unigrams = Unigrams(source="model", p=p, se=se, n_contexts=int(size[0]), n_positions=int(size[1]))
    weights, tokenizer, text = (value.tobytes().hex() for value in hashes)
    return unigrams, Origin(weights=weights, tokenizer=tokenizer, text=text)


def known_unigrams(path: Path) -> tuple[Unigrams, Origin] | None:
    """Return what a file of a run or of the cache holds; None where there is none, or it is damaged."""
    with suppress(RunFolderError, UnusableCounts, OSError):
        return read_unigrams(path)
    return None


def keep_in_cache(unigrams: Unigrams, origin: Origin) -> None:
    """Keep a model's own unigrams for later studies, where there is a place for them."""
    with suppress(RunFolderError, OSError):
        write_unigrams(cached(origin), unigrams, origin)
