"""Runs a local worker: it reads tasks as lines of JSON on stdin and writes one answer each to stdout
(`study.workers.processes`).

It ends as soon as stdin ends, since the process that started it is then finished or gone; a half-computed checkpoint
does no harm.
"""

import json
import os
import signal
import sys
import threading
from queue import SimpleQueue


def listen(tasks: "SimpleQueue[str]") -> None:
    """Put every line of stdin into the queue; end the process when stdin ends."""
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def main() -> None:
    """Answer tasks until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    from rareneuron.study.workers.tasks import do_task  # takes seconds, and Ctrl-C must be ignored before it

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; only answers go to stdout
    tasks: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=listen, args=(tasks,), daemon=True).start()
    while True:
        answer = do_task(json.loads(tasks.get()))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
