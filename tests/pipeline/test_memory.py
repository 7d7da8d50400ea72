"""Memory does not grow with the corpus: peak of a whole study in its own process, on a text and on eight times it."""

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
from rareneuron.data.corpus import token_windows
from rareneuron.data.texts import open_corpus
from rareneuron.models.adapter import load_model
import rareneuron.pipeline.study
windows = token_windows(open_corpus(sys.argv[2]), load_model(sys.argv[1]).tokenizer, 32)
print("PEAK", peak())
"""
# 1x is 3 MB, half a million tokens. Two runs on the same text differ by a few MB: threads' arenas, pages of files.
TIMES = 8
NOISE = 12.0  # MB
N_WORDS = 520_000


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
    once = write_texts(folder / "once.txt", n_words=N_WORDS)
    (folder / "often.txt").write_bytes(once.read_bytes() * TIMES)
    return once, folder / "often.txt"


def growth(measure, texts):
    once, often = (measure(text) for text in texts)
    print(f"{once:.1f} MB, then {often:.1f} MB on {TIMES} times the text")
    return often - once


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="peak memory is read from /proc (tests/SKIPS.md)")
def test_a_study_takes_no_more_memory_on_a_larger_corpus(series, texts, tmp_path):
    def study(text):
        options = {"--data": text, "--n-tokens": 120, "--context-length": 32, "--group-size": 6, "--steps": "10"}
        options |= {"--rarity": "occurrences", "--percentile": 40, "--out": tmp_path / text.stem}
        peak, _ = peak_of(STUDY, "study", series, *(x for pair in options.items() for x in pair))
        return peak

    assert growth(study, texts) < NOISE


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="peak memory is read from /proc (tests/SKIPS.md)")
def test_the_measurement_sees_a_corpus_held_in_memory(series, texts):
    assert growth(lambda text: peak_of(IN_MEMORY, series / "step10", text)[0], texts) > 2 * NOISE
