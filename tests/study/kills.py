"""Studies killed at random moments, in forks of a process that has imported everything: `… SETTINGS SEED N`.

Prints how often the kill came in time, and the digests of every finished folder beside an undisturbed one's.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from rareneuron.measure import checkpoint as checkpoint_module
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import read_json
from rareneuron.study.study import run_study

TIMED = ("timings", "rates")  # of what was measured with a clock
VOLATILE = {"environment", "timings", "sha256"}


def contents(folder):
    """Every file of a run that holds results: bytes, or of JSON that also holds timings, the rest."""
    out = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "step.json":
            out[name] = without_times(read_json(path))
        elif path.name == "run.json":
            record = {k: v for k, v in read_json(path).items() if k not in VOLATILE}
            out[name] = record | {"checkpoints": {k: without_times(v) for k, v in record["checkpoints"].items()}}
        elif path.is_file() and path.suffix != ".lock" and path.name != ".lock":
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return json.loads(json.dumps(out))


def without_times(record):
    return {k: v for k, v in record.items() if k not in TIMED}


def run_in_fork(settings, *, delay=None, rename=None):
    """Whether a study came to its end, killed after some seconds, or before or after its n-th rename."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if rename is not None:
                kill_at_rename(*rename)
            run_study(StudyConfig(**settings), progress=False)
            status = 0
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "the study failed by itself"
    return not os.WIFSIGNALED(status)


def kill_at_rename(n, after):
    original, seen = os.replace, []

    def replace(*arguments):
        seen.append(None)
        if len(seen) == n and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)
        if len(seen) == n and after:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def in_three_pieces(adapter, selection, layer, kind):
    """As a checkpoint that takes hours is cut; captured tokens are kept too."""
    n = len(selection.windows)
    return tuple(range(n * i // 3, n * (i + 1) // 3) for i in range(3)), True


def main(settings, seed, n):
    os.fsync = lambda descriptor: None  # a kill is no power cut: what was written is there
    checkpoint_module.cut_contexts = in_three_pieces
    rng = random.Random(seed)
    undisturbed, killed = (settings | {"out": f"{settings['out']}-{kind}"} for kind in ("whole", "killed"))
    started = time.perf_counter()
    assert run_in_fork(undisturbed)
    seconds = time.perf_counter() - started
    result = {"kills": 0, "whole": contents(undisturbed["out"]), "killed": [], "seconds": seconds}
    while result["kills"] < n:
        by_time = result["kills"] % 2 == 0
        moment = {"delay": rng.uniform(0, seconds)} if by_time else {"rename": (rng.randint(1, 44), rng.random() < 0.5)}
        if not run_in_fork(killed, **moment):
            result["kills"] += 1
        else:
            result["killed"].append(contents(killed["out"]))
            shutil.rmtree(killed["out"])
    assert run_in_fork(killed)
    result["killed"].append(contents(killed["out"]))
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
