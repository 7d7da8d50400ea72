"""How many ids were wrong, and how many “words” the inside of one, for each class and pipeline of a tokenizer.

Ids: the class that the folder names, as transformers loads it, and this package, against the `tokenizers` library on
the same tokenizer.json. A token is wrong where no token of the file has the same id at the same place. Words: of the
tokens taken for whole words, the share that begins within one; before, by each id's text behind an anchor.

    python benchmarks/tokenizer_matrix.py [FOLDER_WITH_TOKENIZER_JSON ...]
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rareneuron.data.places import Places, beginnings
from rareneuron.models.tokenizers import PROBE, load_tokenizer
from tests.models.tokenizer_folders import CLASSES, PIPELINES, TEXT, ids_given, ids_of_file, write_folder

SAMPLE = 20 * (TEXT + PROBE)


def wrong_share(tokenizer: Any, folder: Path) -> float:
    """Return the share of tokens that the file doesn't give there."""
    given = ids_given(tokenizer, SAMPLE)
    return 1 - len(set(given) & set(ids_of_file(folder, SAMPLE))) / max(1, len(set(given)))


def share_by_class(folder: Path) -> str:
    """Return the share of wrong ids that transformers alone gives."""
    try:
        return f"{100 * wrong_share(AutoTokenizer.from_pretrained(folder), folder):.0f}"
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return f"({type(error).__name__})"


def inside_shares(tokenizer: Any) -> tuple[float, float]:
    """Return the share of tokens taken for the beginning of a word that lie within one: by decoding, and by places."""
    ids, spans = next(Places(tokenizer)([SAMPLE]))
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    pairs = tokenizer.batch_decode([[*anchor, int(i)] for i in ids], clean_up_tokenization_spaces=False)
    added = [pair[len(before) :] for pair in pairs]
    opens = [True, *(text.endswith("\n") for text in added[:-1])]
    by_decoding = np.array([text[:1].isspace() or opened for text, opened in zip(added, opens, strict=True)])
    by_places = beginnings(SAMPLE, spans, opens_line=True)
    text = [SAMPLE[a:b].strip() for a, b in spans]
    start = [a + len(SAMPLE[a:b]) - len(SAMPLE[a:b].lstrip()) for a, b in spans]
    letters = np.array([len(word) > 1 and word.isalpha() for word in text])
    inside = np.array([a > 0 and SAMPLE[a - 1].isalpha() for a in start])
    shares = [(inside & taken & letters).sum() / max(1, (taken & letters).sum()) for taken in (by_decoding, by_places)]
    return shares[0], shares[1]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="further folders with a tokenizer.json")
    folders = parser.parse_args().folders
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"transformers {transformers.__version__}: % of ids that tokenizer.json doesn't give there, before → now\n")
    print("| pipeline | " + " | ".join(CLASSES) + " | inside of words, before → now |")
    print("|---" * (len(CLASSES) + 2) + "|")
    sources = {name: build() for name, build in PIPELINES.items()}
    sources |= {str(folder): Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in folders}
    for pipeline, source in sources.items():
        cells, inside = [], ""
        for named in CLASSES:
            with tempfile.TemporaryDirectory() as place:
                folder = write_folder(Path(place) / "model", source, named)
                loaded = load_tokenizer(folder, None)
                cells.append(f"{share_by_class(folder)} → {100 * wrong_share(loaded, folder):.0f}")
                if named == "PreTrainedTokenizerFast":
                    inside = " → ".join(f"{100 * share:.0f} %" for share in inside_shares(loaded))
        print(f"| {pipeline} | {' | '.join(cells)} | {inside} |", flush=True)


if __name__ == "__main__":
    main()
