"""Peak memory of a workload, measured in a process of its own.

A program that imports everything, does nothing with it, and forks a process for each line on its
standard input: a workload, a saver and its database. `peaks` starts it and asks.
"""

import asyncio
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeAlias

from catalog import WORKLOADS
from rows import Workload
from savers import Subject, open_saver
from small import run_thread

_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")

PROGRAMS: Final = 2
"""How many run at the same time, each for other savers."""

Peaks: TypeAlias = dict[tuple[str, str], int]
Program: TypeAlias = "subprocess.Popen[str]"


def peaks(
    workloads: Sequence[Workload],
    urls: Mapping[str, str],
    *,
    quick: bool,
    report: Callable[[str], None],
) -> Peaks:
    """By workload and saver, the bytes by which a process grows at most.

    They are counted from where the saver is open and has put a checkpoint. What preparing the
    workload takes counts as far as it stays.

    Args:
        workloads: The workloads.
        urls: By saver, a database for all of them.
        quick: Whether workloads keep to their small form.
        report: Told what goes on.
    """
    programs: SimpleQueue[Program] = SimpleQueue()

    def one_after_the_other(saver: str) -> Peaks:
        found: Peaks = {}
        program = programs.get()
        try:
            for workload in workloads:
                if workload.takes(saver):
                    report(f"peak memory: {workload.title}, {saver}")
                    answer = _ask(program, [workload.name, saver, urls[saver], quick])
                    if not answer.strip():
                        raise RuntimeError(
                            f"{workload.name} failed on {saver}: its error stands above"
                        )
                    found[workload.name, saver] = int(answer)
        finally:
            programs.put(program)
        return found

    with ExitStack() as stack, ThreadPoolExecutor(PROGRAMS) as threads:
        for _ in range(PROGRAMS):
            programs.put(stack.enter_context(_program()))
        every = list(threads.map(one_after_the_other, urls))
    return {key: peak for found in every for key, peak in found.items()}


def _program() -> Program:
    command = [sys.executable, str(Path(__file__).resolve())]
    return subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(program: Program, request: list[object]) -> str:
    if program.stdin is None or program.stdout is None:
        raise RuntimeError("found a program without pipes")
    program.stdin.write(json.dumps(request) + "\n")
    program.stdin.flush()
    return program.stdout.readline()


def serve() -> None:
    """Answer each request from a new process, until the standard input ends."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(*json.loads(line))
        os.waitpid(child, 0)


def _answer(workload: str, saver: str, url: str, quick: bool) -> None:  # noqa: FBT001 - from JSON
    """Print the peak, or an empty line after an error, and end this process."""
    try:
        peak = asyncio.run(_grow(WORKLOADS[workload], saver, url, quick=quick))
        print(peak, flush=True)
    except BaseException:  # noqa: BLE001 - the program that waits has to hear of it
        traceback.print_exc()
        print(flush=True)
    finally:
        os._exit(0)


async def _grow(workload: Workload, name: str, url: str, *, quick: bool) -> int:
    async with open_saver(name, url) as saver:
        subject = Subject(name, url, saver, workload.name, quick)
        await run_thread(saver, subject.thread("first"), 1)
        settle()
        before = _peak()
        measure = await workload.prepare(subject)
        settle()
        await measure()
        return _peak() - before


def settle() -> None:
    """Give freed memory back to the system, and let the peak begin from here (Linux only)."""
    gc.collect()
    if _RESET.exists():
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")


def _peak() -> int:
    """Bytes that the process held at most since it settled; elsewhere than on Linux, ever."""
    if _STATUS.exists():
        [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    # In bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    serve()
