"""How long does it take to try a text once the model is loaded, with and without a group, and its continuations?

Prints the seconds of three calls of `rn.try_text` on a run's last checkpoint: the neurons and losses alone, then with
both continuations of 20 tokens.

    OMP_NUM_THREADS=1 python benchmarks/try_text.py runs/embedded
"""

import argparse
import time
from pathlib import Path

import rareneuron as rn
from rareneuron.use.model import run_model

TEXT = "Return the largest eigenvalue of a symmetric matrix, and raise an error if the iteration does not converge."


def main() -> None:
    """Print one line for each number of new tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = rn.open_run(parser.parse_args().run)
    adapter = run_model(run)
    rn.try_text(run, TEXT, adapter=adapter, n_new=1)  # what is done once a process
    for n_new in (1, 20):
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            rn.try_text(run, TEXT, adapter=adapter, n_new=n_new)
            seconds.append(time.perf_counter() - began)
        print(f"{n_new} new tokens: {' '.join(f'{s:.2f}' for s in seconds)} s", flush=True)


if __name__ == "__main__":
    main()
