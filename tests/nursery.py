"""Processes that have everything imported, to be killed: started by the fixture `nursery`.

Each line of stdin is `[code, log, seconds]` as JSON: the code runs in a fork, what it prints goes into the file; after
so many seconds, if that is not null, it is killed. Told is its status as `os.waitpid` gives it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback


def run(code: str, log: str) -> None:
    """In the fork."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = 1
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__nursery__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for module in ("mediapipe", "retarget.personalize", "retarget.preview", "retarget.training.train"):
        __import__(module)
    for module in ("retarget.lessons", "retarget.pose.mediapipe", "retarget.training.tasks", "retarget.training.run"):
        __import__(module)
    print("ready", flush=True)
    for line in sys.stdin:
        code, log, seconds = json.loads(line)
        if (process := os.fork()) == 0:
            run(code, log)
        signal.signal(signal.SIGALRM, lambda *_, process=process: os.kill(process, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)
        status = os.waitpid(process, 0)[1]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(status, flush=True)
