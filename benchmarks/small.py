"""Workloads with a small state: supersteps, reads, lists and deletions, by one caller and many."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql
from rows import POSTGRESQL, SQLITE, Group, Slice, Workload
from savers import FLOOR, Saver, Subject
from sizes import libpq_of, path_of
from supersteps import Superstep, Thread, small_superstep

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

OFFICIAL_TABLES: Final = {
    SQLITE: ("checkpoints", "writes"),
    POSTGRESQL: ("checkpoints", "checkpoint_blobs", "checkpoint_writes"),
}


async def run_thread(saver: Saver, thread_id: str, supersteps: int = 0) -> Thread:
    """A thread with its input stored, and some supersteps after it."""
    thread = Thread(saver, thread_id)
    await thread.put(thread.start())
    for index in range(supersteps):
        await thread.run(small_superstep(thread, index))
    return thread


async def run_threads(saver: Saver, names: Sequence[str], supersteps: int = 0) -> list[Thread]:
    """The same for many threads at once."""
    return await asyncio.gather(*(run_thread(saver, name, supersteps) for name in names))


async def one_caller(subject: Subject) -> Slice:
    """Seconds a superstep, one after the other."""
    numbers = count()
    supersteps = subject.pick(20, 10)

    async def measure() -> float:
        thread = await run_thread(subject.saver, subject.thread(f"{next(numbers)}"))
        seconds = 0.0
        for index in range(supersteps):
            superstep = small_superstep(thread, index)
            begun = perf_counter()
            await thread.run(superstep)
            seconds += perf_counter() - begun
        return seconds / supersteps

    return measure


async def many_callers(subject: Subject, *, callers: int, supersteps: int) -> Slice:
    """Seconds a superstep, of callers that work at once, each on its own thread."""
    numbers = count()
    callers = subject.pick(callers, min(callers, 100))
    supersteps = subject.pick(supersteps, max(1, 100 // callers))

    async def call(thread: Thread, work: Sequence[Superstep]) -> None:
        for superstep in work:
            await thread.run(superstep)

    async def measure() -> float:
        slice_ = next(numbers)
        names = [subject.thread(f"{slice_}, {caller}") for caller in range(callers)]
        threads = await run_threads(subject.saver, names)
        work = [
            [small_superstep(thread, caller + index) for index in range(supersteps)]
            for caller, thread in enumerate(threads)
        ]
        begun = perf_counter()
        await asyncio.gather(*map(call, threads, work))
        return (perf_counter() - begun) / (callers * supersteps)

    return measure


async def one_reader(subject: Subject) -> Slice:
    """Seconds a read of a thread's latest checkpoint, one after the other."""
    names = [subject.thread(f"{index}") for index in range(20)]
    await run_threads(subject.saver, names, supersteps=5)
    configs: list[RunnableConfig] = [{"configurable": {"thread_id": name}} for name in names]

    async def measure() -> float:
        begun = perf_counter()
        for config in configs:
            await subject.saver.aget_tuple(config)
        return (perf_counter() - begun) / len(configs)

    return measure


async def many_readers(subject: Subject, *, readers: int) -> Slice:
    """Seconds a read, of readers that read at once, each another thread."""
    readers = subject.pick(readers, 100)
    names = [subject.thread(f"{index}") for index in range(readers)]
    await run_threads(subject.saver, names, supersteps=1)
    configs: list[RunnableConfig] = [{"configurable": {"thread_id": name}} for name in names]

    async def measure() -> float:
        begun = perf_counter()
        await asyncio.gather(*map(subject.saver.aget_tuple, configs))
        return (perf_counter() - begun) / readers

    return measure


async def list_all(subject: Subject) -> Slice:
    """Seconds that it takes to list all checkpoints of a long thread."""
    supersteps = subject.pick(1000, 100)
    name = subject.thread("long")
    await run_thread(subject.saver, name, supersteps)
    config: RunnableConfig = {"configurable": {"thread_id": name}}

    async def measure() -> float:
        begun = perf_counter()
        found = [one async for one in subject.saver.alist(config)]
        seconds = perf_counter() - begun
        if len(found) != supersteps + 1:
            raise RuntimeError(f"{subject.name} lists {len(found)} checkpoints of {supersteps + 1}")
        return seconds

    return measure


async def delete(subject: Subject) -> Slice:
    """Seconds that it takes to delete such a thread."""
    supersteps = subject.pick(1000, 100)
    source = subject.thread("long")
    await run_thread(subject.saver, source, supersteps)
    numbers = count()

    async def measure() -> float:
        name = subject.thread(f"copy {next(numbers)}")
        if subject.name == FLOOR:
            await run_thread(subject.saver, name, supersteps)
        else:
            await copy_thread(subject, source, name)
        begun = perf_counter()
        await subject.saver.adelete_thread(name)
        return perf_counter() - begun

    return measure


async def copy_thread(subject: Subject, source: str, target: str) -> None:
    """Copy a thread inside the database: the official savers cannot do it, but their rows can."""
    if subject.ours:
        await subject.saver.acopy_thread(source, target)
    elif subject.database == SQLITE:
        await asyncio.to_thread(_copy_sqlite, subject.url, source, target)
    else:
        await asyncio.to_thread(_copy_postgresql, subject.url, source, target)


def _copy_sqlite(url: str, source: str, target: str) -> None:
    with closing(sqlite3.connect(path_of(url))) as connection, connection:
        for table in OFFICIAL_TABLES[SQLITE]:
            named = connection.execute(f"PRAGMA table_info({table})").fetchall()
            columns = ", ".join(row[1] for row in named if row[1] != "thread_id")
            connection.execute(
                f"INSERT INTO {table} (thread_id, {columns}) "  # noqa: S608
                f"SELECT ?, {columns} FROM {table} WHERE thread_id = ?",
                [target, source],
            )


_COLUMNS: Final = """
SELECT attname FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'thread_id'
"""
_COPY: Final = sql.SQL(
    "INSERT INTO {table} (thread_id, {columns}) SELECT {target}, {columns} FROM {table} "
    "WHERE thread_id = {source}"
)


def _copy_postgresql(url: str, source: str, target: str) -> None:
    with psycopg.connect(libpq_of(url)) as connection:
        for table in OFFICIAL_TABLES[POSTGRESQL]:
            named = connection.execute(_COLUMNS, [table]).fetchall()
            columns = sql.SQL(", ").join(sql.Identifier(name) for (name,) in named)
            copying = _COPY.format(
                table=sql.Identifier(table), columns=columns, target=target, source=source
            )
            connection.execute(copying)


SMALL: Final = Group(
    "small",
    (
        Workload(
            name="superstep",
            title="one caller: superstep",
            description=(
                "One thread. A superstep is `aput_writes` of 2 small writes, then `aput` of a "
                "checkpoint whose 3 small channels (a list, a dict and a string, 400 bytes in all) "
                "have changed. A slice is 20 supersteps on a new thread."
            ),
            prepare=one_caller,
            targets={POSTGRESQL: 0.8, SQLITE: 1.0},
            slices=10,
        ),
        Workload(
            name="callers-50",
            title="50 callers at once, each 20 supersteps on its own thread",
            description="The same superstep; 50 new threads whose input is stored already.",
            prepare=partial(many_callers, callers=50, supersteps=20),
            targets={POSTGRESQL: 0.15, SQLITE: 0.25},
        ),
        Workload(
            name="callers-500",
            title="500 callers at once",
            description="The same superstep; 500 new threads, each 4 supersteps.",
            prepare=partial(many_callers, callers=500, supersteps=4),
            targets={POSTGRESQL: 0.12, SQLITE: 0.2},
        ),
        Workload(
            name="get",
            title="`aget_tuple`, small state, one caller, warm",
            description=(
                "The latest checkpoint of one of 20 threads of 5 supersteps, 20 reads a slice. The "
                "saver has put them itself."
            ),
            prepare=one_reader,
            targets={POSTGRESQL: 0.8, SQLITE: 1.0},
            slices=10,
        ),
        Workload(
            name="get-500",
            title="500 concurrent `aget_tuple`, small state",
            description="500 threads of one superstep; each is read once, all at the same time.",
            prepare=partial(many_readers, readers=500),
            targets={POSTGRESQL: 0.5, SQLITE: 0.6},
        ),
        Workload(
            name="list-all",
            title="`alist` of all checkpoints of a 1000-superstep thread, small state",
            description="1001 checkpoints with 2 pending writes each, but the last.",
            prepare=list_all,
            targets={POSTGRESQL: 0.5, SQLITE: 0.4},
        ),
        Workload(
            name="delete",
            title="`adelete_thread` of that thread",
            description=(
                "A copy of that thread, fresh for each round: ours is copied with `acopy_thread`, "
                "the official ones by INSERT and SELECT of their rows."
            ),
            prepare=delete,
            targets={POSTGRESQL: 0.5, SQLITE: 0.3},
        ),
    ),
)
