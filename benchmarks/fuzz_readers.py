"""Spoil files for minutes or hours, and see that every reader returns or refuses in words (`tests/fuzz.py`).

Each round reads `--examples` spoiled files of every kind. A reader fails that raises anything but a `RareNeuronError`,
takes longer than 20 seconds, or takes more than `--memory` GiB beyond what the process had. One JSON line per kind of
file on stdout; exit 1 where a reader failed.

    python benchmarks/fuzz_readers.py --seconds 600
"""

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz import all_targets, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long")
    parser.add_argument("--rounds", type=int, default=10**9, help="stop after so many rounds of all kinds of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of address space beyond the start's")
    parser.add_argument("--examples", type=int, default=100, help="files of a kind in a round")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--skip", help="kinds whose name holds this are left out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        targets = [target for target in all_targets(Path(name)) if options.only in target.name]
        targets = [target for target in targets if options.skip is None or options.skip not in target.name]
        for target in targets:
            target.read()  # sound, it is read
        address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (address_space + int(options.memory * 2**30), resource.RLIM_INFINITY))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
        spent: Counter[str] = Counter()
        end, number = time.monotonic() + options.seconds, 0
        while time.monotonic() < end and number < options.rounds and not failures:
            for target in targets:
                start = time.monotonic()
                failure = fuzz(target, options.seed + number, options.examples, found[target.name])
                spent[target.name] += time.monotonic() - start
                if failure is not None:
                    failures[target.name] = failure
                if time.monotonic() > end:
                    break
            number += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 2**10
    for target in targets:
        count, seconds = dict(found[target.name]), round(spent[target.name], 1)
        print(json.dumps({"target": target.name, **count, "seconds": seconds, "failed": target.name in failures}))
    print(json.dumps({"rounds": number, "peak_memory_grew_mib": round(grown), "failed": len(failures)}))
    for name, failure in failures.items():
        print(f"\n== {name}\n{failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
