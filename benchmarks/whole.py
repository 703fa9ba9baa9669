"""Workloads that are whole runs or whole states: an agent, 10 MB, a very long thread."""

import asyncio
from collections.abc import Coroutine
from functools import lru_cache, partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from long import Conversation
from rows import MEGABYTES, POSTGRESQL, SQLITE, Group, Slice, Workload
from savers import Subject
from sizes import measure as measure_size
from supersteps import Thread, made_message, small
from workloads import MESSAGES_PER_TURN, agent, prose, question

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

TICK: Final = 0.001
"""Seconds after which the other task wakes up again."""


async def converse(subject: Subject) -> Slice:
    """Seconds that an agent's turns take."""
    graph = agent(subject.saver)
    turns = subject.pick(100, 5)
    numbers = count()

    async def measure() -> float:
        name = subject.thread(f"{next(numbers)}")
        config: RunnableConfig = {"configurable": {"thread_id": name}}
        state: dict[str, Any] = {}
        begun = perf_counter()
        for turn in range(1, turns + 1):
            state = await graph.ainvoke(question(turn), config)
        seconds = perf_counter() - begun
        if len(state["messages"]) != turns * MESSAGES_PER_TURN:
            raise RuntimeError(f"{subject.name} holds {len(state['messages'])} messages")
        return seconds

    return measure


@lru_cache(maxsize=1)
def big_state(number: int, length: int) -> "list[BaseMessage]":
    """Messages of 1 KB; the same list for each saver, another one in each round."""
    return [made_message(f"big {number}", index) for index in range(length)]


async def put_big(subject: Subject, *, pause: bool) -> Slice:
    """Seconds that a put of 10 MB takes, or by which it delays another task at most."""
    length = subject.pick(10_000, 1_000)
    numbers = count()

    async def measure() -> float:
        number = next(numbers)
        state = big_state(number, length)
        thread = Thread(subject.saver, subject.thread(f"{number}"))
        await thread.put(thread.start())
        superstep = thread.next({"messages": state})
        begun = perf_counter()
        if pause:
            return await longest_pause(thread.put(superstep))
        await thread.put(superstep)
        return perf_counter() - begun

    return measure


async def longest_pause(work: Coroutine[Any, Any, None]) -> float:
    """Seconds by which a task that wakes up each millisecond is late at most, while work runs."""
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            begun = perf_counter()
            await asyncio.sleep(TICK)
            late = max(late, perf_counter() - begun - TICK)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(2 * TICK)
    try:
        await work
        # The last wake-up may be late as well.
        await asyncio.sleep(2 * TICK)
    finally:
        ticking.cancel()
    return late


LENGTHS: Final = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)


async def store(subject: Subject) -> Slice:
    """Bytes in the database after so many appends; notes those at each length on the way."""
    appends = subject.pick(1000, 100)

    async def measure() -> float:
        conversation = Conversation(subject.saver, subject.thread("long"), 0)
        await conversation.begin()
        size = 0
        for length in range(1, appends + 1):
            await conversation.append()
            if length in LENGTHS:
                size, _ = await asyncio.to_thread(measure_size, subject.url)
                subject.points.append((length, size))
        return size

    return measure


async def list_big(subject: Subject) -> Slice:
    """Seconds that it takes to list a thread of 1 GB, without keeping what is listed."""
    checkpoints = subject.pick(10_000, 500)
    thread = Thread(subject.saver, subject.thread("long"))
    await thread.put(thread.start())
    await thread.put(thread.next({"document": prose("document", 100_000)}))
    for index in range(checkpoints - 2):
        await thread.put(thread.next(small(index)))
    config: RunnableConfig = {"configurable": {"thread_id": thread.thread_id}}

    async def measure() -> float:
        begun = perf_counter()
        found = 0
        async for one in subject.saver.alist(config):
            found += "document" in one.checkpoint["channel_values"]
        if found != checkpoints - 1:
            raise RuntimeError(f"{subject.name} lists {found} of {checkpoints - 1} documents")
        return perf_counter() - begun

    return measure


WHOLE: Final = Group(
    "whole",
    (
        Workload(
            name="agent",
            title="`create_agent`, 100 turns of real `ainvoke` calls, wall time",
            description=(
                "LangChain's agent on a scripted model that calls one tool in each turn: four "
                "messages of 1 KB a turn, a new thread each round."
            ),
            prepare=converse,
            targets={POSTGRESQL: 0.7, SQLITE: 0.9},
            warm=False,
        ),
        Workload(
            name="put-10mb",
            title="`aput` of a state of 10 MB",
            description="10,000 messages of 1 KB on a new thread, other ones in each round.",
            prepare=partial(put_big, pause=False),
        ),
        Workload(
            name="pause-10mb",
            title="longest pause of another task meanwhile",
            description=(
                "A task that wakes up each millisecond: by how much it is late at most, while such "
                "a state is put."
            ),
            prepare=partial(put_big, pause=True),
            memory=False,
        ),
    ),
)

BYTES: Final = Group(
    "bytes",
    (
        Workload(
            name="bytes",
            title="bytes stored after 1000 appends of 1 KB",
            description=(
                "One thread, a checkpoint for each append, in an otherwise empty database, saver "
                "open. SQLite: the file and its WAL after a checkpoint of the WAL; PostgreSQL: "
                "`pg_total_relation_size` of the saver's tables."
            ),
            prepare=store,
            targets={POSTGRESQL: 0.02, SQLITE: 0.02},
            rounds=1,
            warm=False,
            unit=MEGABYTES,
            floor=False,
            memory=False,
        ),
        Workload(
            name="list-1gb",
            title="peak memory of `alist` over 10,000 checkpoints, 1 GB of values",
            description=(
                "One thread; each checkpoint holds the same document of 100 KB and small channels "
                "that change. The list is read to its end and not kept. A page of a list holds at "
                "most 32 MB of values; the process must not grow by more."
            ),
            prepare=list_big,
            unit=MEGABYTES,
            floor=False,
            official=False,
            at_most=32,
            peak_only=True,
        ),
    ),
    warmed=False,
)
