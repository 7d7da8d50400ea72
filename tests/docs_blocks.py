"""Code blocks of the documentation, and a folder in which they run as they stand.

What a block names is there under its own name, small: random models of 40 or 640 neurons a layer, a text of 12,000
words, finished runs. Three random checkpoints take the place of the shipped series, a hub on localhost that of the real
one. Nothing of a command is rewritten but that `SMALL` options come first, which the block's own, coming later,
override.
"""

import gzip
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rareneuron.embedded.recipe import make_tokenizer
from rareneuron.study.counts import average_model, count_corpus
from tests.models.conftest import tiny_model
from tests.tiny_series import write_texts

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])

RUNNABLE = {"sh", "python", "toml"}
NOT_CODE = {"", "text", "json"}  # output, trees, formulas, and commands that can't run in a test

HUB_MODELS = {"EleutherAI/pythia-70m": (0, 1, 512, 143000), "EleutherAI/pythia-410m": (0, 143000)}
LOCAL_MODELS = {"my-model": "llama", "my-gemma": "gemma2"}
COUNT_FILES = ("counts.npy", "pythia-unigrams.npy")
EMBEDDED_STEPS = (0, 512, 4096)
SMALL = {  # options of `study` that make it take seconds
    "--n-tokens": "60",
    "--context-length": "32",
    "--group-size": "5",
    "--n-random": "200",
    "--rarity": "occurrences",
    "--percentile": "40",
}
SHAPE = {"dtype": torch.float32, "max_position_embeddings": 256, "eos_token_id": 0}
SERIES_NEURONS = 640  # the released definitions ask for 245 of one sign
LOCAL_NEURONS = 40


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks of a page, with the line of their fence; Sphinx's own directives are left out."""
    name, fence, language, start, held = str(page.relative_to(ROOT)), "", "", 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*([^`]*)$", line)
        if not fence and mark:
            fence, language, start, held = mark[1], mark[2].strip(), number, []
        elif fence and mark and mark[1].startswith(fence) and not mark[2]:
            if not language.startswith("{"):
                yield Block(name, start, language, "\n".join(held) + "\n")
            fence = ""
        elif fence:
            held.append(line)


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """Its lines as words: continued lines joined; comments, and variables set before a command, left out."""
    lines = [re.sub(r"^\s*([A-Z_]+=\S*\s+)*", "", line) for line in block.text.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def with_small_options(words: list[str]) -> list[str]:
    if words[:2] != ["rareneuron", "study"]:
        return words[1:]
    return ["study", *(part for pair in SMALL.items() for part in pair), *words[2:]]


@dataclass(frozen=True)
class StandIns:
    folder: Path  # the working directory of every block
    embedded: Path  # a series
    counts: Path  # its training counts
    text: Path
    hub: dict[str, dict[str, Path]]  # id -> branch -> folder


def stand_ins(folder: Path) -> StandIns:
    """Everything that a block may name, made anew."""
    here, text = folder / "here", write_texts(folder / "texts.txt")
    here.mkdir()
    written = text.read_text(encoding="utf-8")
    tokenizer = make_tokenizer([written], vocab_size=900)

    def save(place: Path, seed: int, model_type: str, n_neurons: int) -> Path:
        tokenizer.save_pretrained(place)
        shape = SHAPE | {"vocab_size": len(tokenizer), "intermediate_size": n_neurons}
        tiny_model(model_type, seed=seed, **shape).save_pretrained(place)
        return place

    def steps(place: Path, numbers: tuple[int, ...], n_neurons: int = SERIES_NEURONS) -> dict[str, Path]:
        return {f"step{n}": save(place / f"step{n}", seed, "gpt_neox", n_neurons) for seed, n in enumerate(numbers)}

    embedded = folder / "embedded"
    steps(embedded, EMBEDDED_STEPS)
    tokenizer.save_pretrained(embedded)
    steps(here / "my-series", (0, 1000), LOCAL_NEURONS)
    tokenizer.save_pretrained(here / "my-series")
    for seed, (name, model_type) in enumerate(LOCAL_MODELS.items()):
        save(here / name, seed, model_type, LOCAL_NEURONS)
    hub = {}
    for name, numbers in HUB_MODELS.items():
        branches = steps(folder / "hub" / name, numbers)
        hub[name] = {"main": branches[f"step{numbers[-1]}"]} | branches
    write_corpora(here, written)
    for block in all_blocks("toml"):  # its first line is a comment with the file's name
        (here / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text, encoding="utf-8")
    for name in COUNT_FILES:
        count_corpus(str(embedded), str(text), here / name, "text", 10**6, 256)
    average_model(str(here / "my-model"), str(text), here / "own.safetensors", "text", 10**6, 32, 0.1, "cpu")
    return StandIns(here, embedded, here / COUNT_FILES[0], text, hub)


def write_corpora(here: Path, text: str) -> None:
    records = [{"text": part, "body": part} for part in text.split("\n") if part]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (here / "texts.txt").write_text(text, encoding="utf-8")
    (here / "texts.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(here / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    (here / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(records), here / "corpus" / "texts.parquet")
