"""A thread whose row somebody holds delays no other thread, and takes one connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa
from storing import checkpoint, config, put

from checkpointer import AsyncSQLAlchemySaver, RetentionPolicy, create_saver
from checkpointer.writer import MAX_HELD, SLOW, Writer

Saver = AsyncSQLAlchemySaver
Hold = Callable[[Saver], AbstractAsyncContextManager[None]]

pytestmark = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)

HELD: Final = config("held", "1")
FREE: Final = config("free", "1")

POLICY: Final = RetentionPolicy(keep_last=1, protected_threads=["free", "another"])


def libpq(url: str) -> str:
    """The same database, for another driver."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@asynccontextmanager
async def by_a_statement(other: Saver) -> AsyncIterator[None]:
    """Somebody holds the row, in a transaction that stays open."""
    where = libpq(other.engine.url.render_as_string(hide_password=False))
    async with await psycopg.AsyncConnection.connect(where) as connection:
        await connection.execute(
            "SELECT FROM checkpointer_threads WHERE thread_id = 'held' FOR UPDATE"
        )
        yield
        await connection.rollback()


@asynccontextmanager
async def by_using(other: Saver) -> AsyncIterator[None]:
    """An application's transaction has put to the thread, and is still open."""
    async with other.engine.connect() as connection:
        await other.using(connection).aput_writes(HELD, [("a", 1)], "the application's task")
        yield
        await connection.rollback()


def held_by(work: Callable[[Saver], Awaitable[object]]) -> Hold:
    """Work of another process holds the row, and waits before it commits."""

    @asynccontextmanager
    async def hold(other: Saver) -> AsyncIterator[None]:
        locked, released = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        backend = other._backend  # noqa: SLF001
        write = backend.database.write

        async def stopping(unit: Any) -> object:
            def then_wait(connection: Any) -> object:
                done = unit(connection)
                loop.call_soon(locked.set)
                connection.wait(lambda _: released.wait())
                return done

            return await write(then_wait)

        backend.database.write = stopping  # type: ignore[assignment, method-assign]
        working = asyncio.ensure_future(work(other))
        await locked.wait()
        yield
        released.set()
        await working

    return hold


HOLDERS: Final[dict[str, Hold]] = {
    "a statement": by_a_statement,
    "using()": by_using,
    "aprune": held_by(lambda other: other.aprune(["held"])),
    "aretain": held_by(lambda other: other.aretain(POLICY)),
    "acopy_thread": held_by(lambda other: other.acopy_thread("held", "a copy")),
}


@pytest.fixture
async def saver(migrated_url: str) -> AsyncIterator[Saver]:
    async with create_saver(migrated_url) as saver:
        for thread in ("held", "free", "another"):
            at = await put(saver, config(thread), "0", a="x" * 1000)
            await put(saver, at, "1", a="y" * 1000)
        yield saver


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
async def test_a_held_thread_delays_no_other(saver: Saver, migrated_url: str, hold: Hold) -> None:
    async with create_saver(migrated_url) as other, hold(other):
        # Single puts on an idle saver, one for the held thread before each.
        waiting = [asyncio.create_task(saver.aput_writes(HELD, [("a", 1)], "the first"))]
        await asyncio.sleep(2 * SLOW)
        for number in range(5):
            await asyncio.wait_for(saver.aput_writes(FREE, [("a", 1)], f"task {number}"), 10)
        # A fan-out on it, in one batch with others.
        waiting += [
            asyncio.create_task(saver.aput_writes(HELD, [("a", number)], f"task {number}"))
            for number in range(25)
        ]
        free = [put(saver, FREE, f"2{n}", a="z" * 1000) for n in range(5)]
        another = [saver.aput_writes(config("another", "1"), [("a", n)], f"{n}") for n in range(5)]
        async with asyncio.timeout(10):
            await asyncio.gather(*free, *another)
            assert await saver.aget_tuple(HELD) is not None
        assert await _waiting_connections(migrated_url) == 1
        assert not any(task.done() for task in waiting)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    found = await saver.aget_tuple(HELD)
    assert found is not None
    assert found.pending_writes is not None
    assert {task for task, *_ in found.pending_writes} >= {f"task {n}" for n in range(25)}


async def test_a_batch_passes_over_a_thread_that_is_held(saver: Saver, migrated_url: str) -> None:
    """It is one statement for all threads, and does not wait for the one."""
    async with create_saver(migrated_url) as other, by_a_statement(other):
        puts = {
            thread: asyncio.create_task(put(saver, config(thread, "1"), "2", a="z" * 1000))
            for thread in ("free", "held", "another")
        }
        started = time.monotonic()
        async with asyncio.timeout(10):
            await asyncio.gather(puts["free"], puts["another"])
        assert time.monotonic() - started < 10
        assert not puts["held"].done()
    await asyncio.wait_for(puts["held"], 30)


async def test_many_held_threads_delay_no_other(saver: Saver, migrated_url: str) -> None:
    names = [f"held {number}" for number in range(25)]
    for name in names:
        await put(saver, config(name), "1", a="x" * 1000)
    async with await psycopg.AsyncConnection.connect(libpq(migrated_url)) as connection:
        await connection.execute(
            "SELECT FROM checkpointer_threads WHERE thread_id LIKE 'held %' FOR UPDATE"
        )
        held = [
            asyncio.create_task(saver.aput(config(n, "1"), checkpoint("2", {"a": "y"}), {}, {}))
            for n in names
        ]
        await asyncio.sleep(10 * SLOW)
        async with asyncio.timeout(10):
            for number in range(5):
                await saver.aput_writes(FREE, [("a", 1)], f"task {number}")
            await asyncio.gather(*(saver.aget_tuple(FREE) for _ in range(10)))
        assert await _waiting_connections(migrated_url) <= MAX_HELD + 1
        assert not any(task.done() for task in held)
        await connection.rollback()
    await asyncio.wait_for(asyncio.gather(*held), 30)


async def test_who_waits_for_a_held_thread_does_nothing_meanwhile(
    saver: Saver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    begin = Writer._begin  # noqa: SLF001

    def counted(self: Writer, *args: Any, **options: Any) -> None:
        begun.append(1)
        begin(self, *args, **options)

    monkeypatch.setattr(Writer, "_begin", counted)
    async with create_saver(migrated_url) as other, by_a_statement(other):
        puts = [asyncio.create_task(saver.aput_writes(HELD, [("a", 1)], "the first"))]
        await asyncio.sleep(2 * SLOW)
        puts += [
            asyncio.create_task(saver.aput_writes(HELD, [("a", n)], f"task {n}")) for n in range(3)
        ]
        await asyncio.sleep(10 * SLOW)
        assert len(begun) <= 3
    async with asyncio.timeout(30):
        await asyncio.gather(*puts)


async def _waiting_connections(url: str) -> int:
    """How many connections to the database wait for a lock."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with await psycopg.AsyncConnection.connect(libpq(url)) as connection:
        row = await (await connection.execute(sql)).fetchone()
    assert row is not None
    return int(row[0])
