"""A program that forks while its saver is open. Both processes go on, and end as programs do.

Usage: python forking.py URL
"""

import gc
import os
import sys
import time
import warnings
from threading import Event, Thread

import sqlalchemy as sa
from storing import checkpoint, config

from checkpointer import AsyncSQLAlchemySaver, create_saver

FORKS = 3
LIMIT = 60.0

BACKENDS = sa.select(sa.func.pg_backend_pid().label("pid"))


def put(saver: AsyncSQLAlchemySaver, thread: str, number: int) -> str:
    """Store a checkpoint; its id."""
    name = f"{number:05}"
    saver.put(config(thread), checkpoint(name, {"number": number}), {}, {})
    return name


def ids(saver: AsyncSQLAlchemySaver, thread: str) -> list[str]:
    """The checkpoints of a thread, oldest first."""
    return [one.checkpoint["id"] for one in saver.list(config(thread))][::-1]


def child(url: str, thread: str) -> None:
    """Use the same database with a saver of one's own."""
    with create_saver(url) as own:
        for number in range(5):
            put(own, thread, number)
        assert len(ids(own, thread)) == 5


def ended(pid: int) -> int:
    """The exit code of a fork."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9


def main(url: str) -> None:
    """Fork while another thread puts; then look at what all of them have stored."""
    saver = create_saver(url)
    put(saver, "before", 0)
    stored: list[str] = []
    enough = Event()

    def work() -> None:
        while not enough.is_set():
            stored.append(put(saver, "parent", len(stored)))

    thread = Thread(target=work)
    thread.start()
    for number in range(FORKS):
        count = len(stored)
        with warnings.catch_warnings():
            # Since Python 3.12, a fork of a process with threads gets this warning.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            child(url, f"child {number}")
            # All that the fork has inherited goes: the saver, its loop, its connections.
            del saver, thread, work
            gc.collect()
            sys.exit(0)
        code = ended(pid)
        assert code == 0, f"the fork ended with {code}"
        while len(stored) < count + 20:
            time.sleep(0.001)
    enough.set()
    thread.join()
    assert ids(saver, "parent") == stored
    for number in range(FORKS):
        assert len(ids(saver, f"child {number}")) == 5
    saver.close()
    print("whole")  # noqa: T201 - what the test waits for


if __name__ == "__main__":
    main(sys.argv[1])
