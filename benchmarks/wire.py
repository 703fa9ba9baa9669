"""Workloads over a network of 2 ms, by time and by round trips."""

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from long import cold_saver, grown, warming
from rows import POSTGRESQL, ROUND_TRIPS, Group, Slice, Workload
from savers import Subject
from small import one_caller, run_thread, run_threads
from supersteps import small_superstep

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

CALLS: Final = 10


def counted(subject: Subject) -> int:
    """Round trips up to now."""
    if subject.round_trips is None:
        raise RuntimeError(f"{subject.name} has no proxy that counts")
    return subject.round_trips()


async def put(subject: Subject, *, writes: bool) -> Slice:
    """Round trips of one `aput`, or of one `aput_writes`."""
    numbers = count()

    async def measure() -> float:
        thread = await run_thread(subject.saver, subject.thread(f"{next(numbers)}"))
        trips = 0
        for index in range(CALLS):
            superstep = small_superstep(thread, index)
            before = counted(subject)
            await thread.put_writes(superstep)
            between = counted(subject)
            await thread.put(superstep)
            trips += between - before if writes else counted(subject) - between
        return trips / CALLS

    return measure


async def get_warm(subject: Subject) -> Slice:
    """Round trips of one `aget_tuple` by the saver that has put the checkpoint."""
    thread = await run_thread(subject.saver, subject.thread("small"), 5)
    long = await grown(subject.saver, subject.thread("long"), 300, 20)
    names = [thread.thread_id, long.thread.thread_id]
    configs: list[RunnableConfig] = [{"configurable": {"thread_id": name}} for name in names]

    async def measure() -> float:
        before = counted(subject)
        for _ in range(CALLS):
            for config in configs:
                await subject.saver.aget_tuple(config)
        return (counted(subject) - before) / (CALLS * len(configs))

    return measure


async def get_cold(subject: Subject) -> Slice:
    """Round trips of one `aget_tuple` of 1000 messages by a new saver that has connected."""
    name = subject.thread("long")
    await grown(subject.saver, name, subject.pick(1000, 300), 20)
    others = await warming(subject)

    async def measure() -> float:
        async with cold_saver(subject, others) as saver:
            before = counted(subject)
            await saver.aget_tuple({"configurable": {"thread_id": name}})
            return counted(subject) - before

    return measure


async def batch(subject: Subject, *, callers: int) -> Slice:
    """Round trips of puts that come together, all of them."""
    numbers = count()

    async def measure() -> float:
        slice_ = next(numbers)
        names = [subject.thread(f"{slice_}, {caller}") for caller in range(callers)]
        threads = await run_threads(subject.saver, names)
        supersteps = [small_superstep(thread, 0) for thread in threads]
        before = counted(subject)
        puts = zip(threads, supersteps, strict=True)
        await asyncio.gather(*(thread.put(superstep) for thread, superstep in puts))
        return counted(subject) - before

    return measure


_wired = partial(Workload, databases=(POSTGRESQL,), proxied=True, floor=False, memory=False)
_trips = partial(_wired, unit=ROUND_TRIPS, rounds=3)

WIRE: Final = Group(
    "wire",
    (
        _wired(
            name="wire-superstep",
            title="one caller: superstep, over a network of 2 ms",
            description="The superstep of the first row; a proxy adds 1 ms on each way.",
            prepare=one_caller,
            targets={POSTGRESQL: 0.7},
            slices=4,
        ),
        _trips(
            name="wire-aput",
            title="round trips: `aput`",
            description="Counted on the wire, per call, 10 calls a round, connections warmed up.",
            prepare=partial(put, writes=False),
            at_most=1,
        ),
        _trips(
            name="wire-aput-writes",
            title="round trips: `aput_writes`",
            description="The same.",
            prepare=partial(put, writes=True),
            at_most=1,
        ),
        _trips(
            name="wire-get-warm",
            title="round trips: `aget_tuple`, warm",
            description="A thread of small state and one of 300 messages, by turns.",
            prepare=get_warm,
            at_most=1,
        ),
        _trips(
            name="wire-get-cold",
            title="round trips: `aget_tuple`, cold",
            description=(
                "The latest checkpoint of a thread of 1000 messages, by a new saver that has "
                "connected, prepared its statements and seen nothing of the thread."
            ),
            prepare=get_cold,
            at_most=2,
        ),
        _trips(
            name="wire-batch",
            title="round trips: 50 `aput` that come together",
            description="50 threads whose input is stored; all round trips of the 50 puts.",
            prepare=partial(batch, callers=50),
            at_most=1,
        ),
    ),
)
