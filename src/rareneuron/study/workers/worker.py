"""A local worker: tasks come as lines of JSON on stdin, answers go to stdout, one each (`study.workers.processes`).

It ends at once where stdin does: the process that started it is done with it, or gone, and a checkpoint half computed
is in nobody's way.
"""

import json
import os
import signal
import sys
import threading
from queue import SimpleQueue


def listen(tasks: "SimpleQueue[str]") -> None:
    """Hand on what comes; the end of input is the end of the process."""
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def main() -> None:
    """Work until there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    from rareneuron.study.workers.tasks import do_task  # takes seconds, in which Ctrl-C is no matter of this one either

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    tasks: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=listen, args=(tasks,), daemon=True).start()
    while True:
        answer = do_task(json.loads(tasks.get()))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
