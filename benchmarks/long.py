"""Workloads with a long list of messages: appends, reads and lists."""

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Final

from rows import POSTGRESQL, SQLITE, Group, Slice, Workload
from savers import WARMING, Saver, Subject, open_saver
from supersteps import Thread, message, messages

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig


class Conversation:
    """A thread with a growing list of messages, none of which is in another conversation.

    Args:
        saver: Where it is stored.
        name: The thread's id, and the seed of its messages.
        length: How many messages the first checkpoint after the input holds.
    """

    def __init__(self, saver: Saver, name: str, length: int) -> None:
        self.thread = Thread(saver, name)
        self.messages: list[BaseMessage] = messages(name, length)

    async def begin(self) -> None:
        """Store the input and the first messages."""
        await self.thread.put(self.thread.start())
        await self.thread.put(self.thread.next({"messages": self.messages}))

    async def append(self) -> float:
        """Append a message; the seconds that `aput` takes."""
        # A new list, as LangGraph's reducer makes one.
        added = message(self.thread.thread_id, len(self.messages))
        self.messages = [*self.messages, added]
        superstep = self.thread.next({"messages": self.messages})
        begun = perf_counter()
        await self.thread.put(superstep)
        return perf_counter() - begun


async def grown(saver: Saver, name: str, length: int, appends: int) -> Conversation:
    """A conversation whose last messages were appended one by one."""
    conversation = Conversation(saver, name, length - appends)
    await conversation.begin()
    for _ in range(appends):
        await conversation.append()
    return conversation


async def append(subject: Subject, *, length: int, appends: int = 20) -> Slice:
    """Seconds an append to a list of about `length` messages."""
    numbers = count()
    appends = subject.pick(appends, min(appends, 5))

    async def measure() -> float:
        name = subject.thread(f"{next(numbers)}")
        conversation = Conversation(subject.saver, name, length)
        await conversation.begin()
        gc.collect()
        return sum([await conversation.append() for _ in range(appends)]) / appends

    return measure


async def get_warm(subject: Subject, *, length: int) -> Slice:
    """Seconds a read of the latest checkpoint, by the saver that has put it."""
    name = subject.thread("long")
    await grown(subject.saver, name, length, subject.pick(20, 3))
    config: RunnableConfig = {"configurable": {"thread_id": name}}

    async def measure() -> float:
        seconds = 0.0
        for _ in range(5):
            begun = perf_counter()
            await subject.saver.aget_tuple(config)
            seconds += perf_counter() - begun
        return seconds / 5

    return measure


async def warming(subject: Subject) -> list[str]:
    """Threads for `cold_saver` to read."""
    names = [subject.thread(f"other {index}") for index in range(WARMING)]
    for name in names:
        await grown(subject.saver, name, 12, 2)
    return names


@asynccontextmanager
async def cold_saver(subject: Subject, others: Sequence[str]) -> AsyncIterator[Saver]:
    """A new saver over the same database that has connected, and read nothing but `others`."""
    async with open_saver(subject.name, subject.url) as saver:
        for other in others:
            await saver.aget_tuple({"configurable": {"thread_id": other}})
        yield saver


async def get_cold(subject: Subject, *, length: int) -> Slice:
    """Seconds a read of the latest checkpoint, by a new saver that has connected."""
    name = subject.thread("long")
    await grown(subject.saver, name, length, subject.pick(20, 3))
    others = await warming(subject)
    config: RunnableConfig = {"configurable": {"thread_id": name}}

    async def measure() -> float:
        async with cold_saver(subject, others) as saver:
            gc.collect()
            begun = perf_counter()
            found = await saver.aget_tuple(config)
            seconds = perf_counter() - begun
        if found is None or len(found.checkpoint["channel_values"]["messages"]) != length:
            raise RuntimeError(f"{subject.name} does not read {length} messages")
        return seconds

    return measure


async def list_some(subject: Subject, *, length: int) -> Slice:
    """Seconds that it takes to list the newest 20 checkpoints."""
    length = subject.pick(length, 300)
    name = subject.thread("long")
    await grown(subject.saver, name, length, 25)
    config: RunnableConfig = {"configurable": {"thread_id": name}}

    async def measure() -> float:
        begun = perf_counter()
        found = [one async for one in subject.saver.alist(config, limit=20)]
        seconds = perf_counter() - begun
        del found
        return seconds

    return measure


LONG: Final = Group(
    "long",
    (
        Workload(
            name="append-300",
            title="append one 1 KB message to a list of 300",
            description=(
                "A new thread whose first checkpoint holds 300 messages; then 20 times `aput` with "
                "one message more, each of which is timed. Messages are LangChain's, with ids and "
                "usage."
            ),
            prepare=partial(append, length=300),
            targets={POSTGRESQL: 0.4, SQLITE: 0.9},
            slices=2,
        ),
        Workload(
            name="append-1000",
            title="append one 1 KB message to a list of 1000",
            description="The same from 1000 messages on.",
            prepare=partial(append, length=1000),
            targets={POSTGRESQL: 0.2, SQLITE: 0.6},
            floor_target=1.5,
            slices=2,
        ),
        Workload(
            name="get-1000-warm",
            title="`aget_tuple` of 1000 messages, warm process",
            description=(
                "A thread that has grown from 980 to 1000 messages by appends; the saver that has "
                "put it reads the latest checkpoint, 5 times a slice."
            ),
            prepare=partial(get_warm, length=1000),
            targets={POSTGRESQL: 0.8, SQLITE: 1.0},
            slices=2,
        ),
        Workload(
            name="get-1000-cold",
            title="`aget_tuple` of 1000 messages, cold process",
            description=(
                "Such a thread, read once by a new saver over the same database. That saver has "
                "connected and has read 24 other threads, so that it has prepared its statements; "
                "it has seen nothing of this thread."
            ),
            prepare=partial(get_cold, length=1000),
            targets={POSTGRESQL: 1.0, SQLITE: 1.1},
            slices=3,
            floor=False,
        ),
        Workload(
            name="list-20",
            title="`alist(limit=20)` of that thread",
            description="Its newest 20 checkpoints, of 981 to 1000 messages, kept in a list.",
            prepare=partial(list_some, length=1000),
            targets={POSTGRESQL: 0.8, SQLITE: 0.5},
        ),
    ),
)
