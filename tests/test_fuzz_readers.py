"""Files of every kind, spoiled at random, are read or refused in words (`tests/fuzz.py`; long form: `make fuzz`)."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st

from rareneuron.errors import RareNeuronError
from tests.fuzz import Target, fuzz

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_spoiled_files_of_every_kind_are_read_or_refused():
    """One round with a fixed seed, in a process of its own: its memory is bounded."""
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_readers.py"), "--rounds", "1", "--examples", "20"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Libraries print, too.
    *targets, total = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert len(targets) >= 15
    assert all(target.get("read", 0) + target.get("refused", 0) >= 10 for target in targets), targets
    assert sum(target.get("refused", 0) for target in targets) > 100
    assert total["peak_memory_grew_mib"] < 1_000


def refusing(content):
    if content != b"sound":
        raise RareNeuronError("The file isn't what its name promises.")


def failing(content):
    if len(content) < 5:
        raise KeyError("a key that the file lacks")


def never_ending(content):
    while content != b"sound":
        time.sleep(0.01)


def outcome(reader, tmp_path):
    """What fuzzing a reader reports, and how many files it read and refused."""
    file, found = tmp_path / "file", Counter()
    file.write_bytes(b"sound")
    target = Target("file", file, st.binary(max_size=8), lambda: reader(file.read_bytes()))
    failure = fuzz(target, 0, 20, found, limit=0.1)
    assert file.read_bytes() == b"sound"
    return failure, found


def test_a_reader_that_refuses_in_words_is_not_reported(tmp_path):
    failure, found = outcome(refusing, tmp_path)
    assert failure is None
    assert found["refused"] >= 10


@pytest.mark.parametrize(
    ("reader", "complaint"), [(failing, "KeyError: 'a key that the file lacks'"), (never_ending, "more than 0.1 s")]
)
def test_a_reader_that_lets_an_exception_through_or_never_ends_is_reported(reader, complaint, tmp_path):
    failure, _ = outcome(reader, tmp_path)
    assert failure is not None
    assert complaint in failure
