"""A tiny series on disk with a tokenizer and a text of real English words, whose frequencies follow Zipf."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerFast

from rareneuron.cli import cli
from rareneuron.embedded.recipe import make_tokenizer
from rareneuron.present import publish
from rareneuron.runs.config import StudyConfig
from tests.models.conftest import tiny_model

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy process music market sense nation plan college interest death experience
effect use class control field development role effort rate heart drug show leader light voice wife police mind price
report decision son view relationship town road arm difference value
""".split()  # noqa: SIM905 - a list of 150 lines would hide the rest

# Half of a tiny vocabulary never occurs, so a percentile over types would call exactly those rare.
RARITY = {"rarity": "occurrences", "percentile": 40}
SHAPE = {"dtype": torch.float32, "intermediate_size": 40, "max_position_embeddings": 64, "eos_token_id": 0}


def write_texts(path: Path, n_words: int = 12_000, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, len(WORDS) + 1)
    drawn = rng.choice(WORDS, n_words, p=p / p.sum())
    lines = [" ".join(drawn[i : i + 12]) + "." for i in range(0, n_words, 12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "texts.txt")


@pytest.fixture(scope="session")
def tokenizer(text_file) -> PreTrainedTokenizerFast:
    return make_tokenizer([text_file.read_text(encoding="utf-8")], vocab_size=900)


@pytest.fixture(scope="session")
def series(tmp_path_factory, tokenizer) -> Path:
    """GPT-NeoX with 40 neurons a layer, at steps 0, 2 and 10."""
    folder = tmp_path_factory.mktemp("series")
    tokenizer.save_pretrained(folder)
    vocab_size = len(tokenizer) + 4  # padded, as real embeddings are
    for step in (0, 2, 10):
        tiny_model("gpt_neox", seed=step, vocab_size=vocab_size, **SHAPE).save_pretrained(folder / f"step{step}")
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tokenizer) -> Path:
    """An RMSNorm, gated model of unknown step."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer.save_pretrained(folder)
    tiny_model("llama", seed=3, vocab_size=len(tokenizer), **SHAPE).save_pretrained(folder)
    return folder


def study_config(series: Path, text_file: Path, **changes) -> StudyConfig:
    """Settings of a study that takes about a second."""
    common = {"model": str(series), "data": str(text_file), "n_tokens": 120, "context_length": 32, "group_size": 6}
    common["n_random"] = 200  # the fewest: drawing groups is a quarter of so small a study
    whose = {} if {"counts", "counts_from"} & set(changes) else {"counts_from": "corpus"}
    return StudyConfig(**common | RARITY | whose | changes)


@pytest.fixture
def config(series, text_file, tmp_path):
    """The same, in the test's own folder."""

    def build(**changes) -> StudyConfig:
        return study_config(series, text_file, **{"out": str(tmp_path / "run")} | changes)

    return build


def study_arguments(series: Path, text_file: Path, out: Path) -> list[str]:
    """A study of two checkpoints in a few seconds."""
    options = {"--data": text_file, "--n-tokens": 80, "--context-length": 32, "--group-size": 5, "--out": out}
    options["--n-random"] = 200  # the fewest
    options |= {"--rarity": "occurrences", "--percentile": 40, "--counts-from": "corpus"}
    return ["study", str(series), "--steps", "0,10", *(str(x) for pair in options.items() for x in pair)]


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies write no report and draw no figure, which take longer than so small a study."""
    monkeypatch.setattr(publish, "publish", lambda run: publish.Published(report=run.path / "report.html"))


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """The command line, in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def run_folder(series: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the tiny series; tests may write its pages again, and nothing else."""
    out = tmp_path_factory.mktemp("cli") / "run"
    done = CliRunner().invoke(cli, study_arguments(series, text_file, out), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out
