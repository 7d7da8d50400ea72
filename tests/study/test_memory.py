"""Memory does not grow with the corpus: peak of a whole study in its own process, on a text and on eight times it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_series import write_texts

MEASURABLE = Path("/proc/self/status").exists()
# VmHWM and not getrusage: Linux hands ru_maxrss on through exec, so a child's would be at least pytest's own.
PEAK = """
import sys
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
"""
STUDY = f"""{PEAK}
from rareneuron.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print("PEAK", peak())
"""
IN_MEMORY = f"""{PEAK}
import rareneuron.study.study
from transformers import AutoTokenizer
from rareneuron.data.corpus import encode
from rareneuron.data.texts import open_corpus
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
held = [encode([text], tokenizer) for text in open_corpus(sys.argv[2])]
print("PEAK", peak())
"""
N_WORDS = 520_000  # 3 MB, 0.6 million tokens
TIMES = 8
# Studies of the same text differ by 3 MB; the allocator's pools, filled in another order, made up to 30 MB. A stream
# that keeps the last batch alive while it encodes the next grows by 200 MB here.
BOUND = 60.0  # MB


def peak_of(script, *arguments):
    """MB that a fresh process held at its fullest, by its own account, and what else it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    output, _, peak = done.stdout.rpartition("PEAK ")
    return float(peak), output


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    text = write_texts(folder / "text.txt", n_words=N_WORDS).read_text()
    # Documents of 1 MB, the hardest case: each is tokenized at once, whatever the size of a batch.
    documents = [text[start : start + 1_048_000] for start in range(0, len(text), 1_048_000)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (folder / "once.jsonl").write_text(lines)
    (folder / "often.jsonl").write_text(lines * TIMES)
    return folder / "once.jsonl", folder / "often.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="peak memory is read from /proc (tests/SKIPS.md)")
def test_a_study_takes_no_more_memory_on_a_larger_corpus(series, texts, tmp_path):
    def study(text):
        options = {"--data": text, "--n-tokens": 120, "--context-length": 32, "--group-size": 6, "--steps": "10"}
        options["--n-random"] = 200
        options |= {"--rarity": "occurrences", "--percentile": 40, "--out": tmp_path / text.stem}
        options |= {"--counts-from": "corpus"}
        peak, _ = peak_of(STUDY, "study", series, *(x for pair in options.items() for x in pair))
        return peak

    once, often = map(study, texts)
    assert often - once < BOUND


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="peak memory is read from /proc (tests/SKIPS.md)")
def test_the_measurement_sees_a_corpus_held_in_memory(series, texts):
    once, often = (peak_of(IN_MEMORY, series, text)[0] for text in texts)
    assert often - once > 2 * BOUND
