"""Cancels tasks at one of their suspensions, so that a test can go through all of them."""

import asyncio
import sqlite3
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from storing import LARGE, config, contents, put

import checkpointer
from checkpointer import AsyncSQLAlchemySaver

T = TypeVar("T")
Saver = AsyncSQLAlchemySaver

PACKAGE = str(Path(checkpointer.__file__).parent)

PATIENCE = 40.0
"""Seconds that a test waits for what ends by itself, on a machine whose disk may stall."""


class Way(Enum):
    """When a task that suspends is cancelled."""

    AT_ONCE = "at once"
    """Before it begins to wait."""

    WHEN_DONE = "when done"
    """When what it waits for is there, and before it gets it."""

    ON_AND_ON = "on and on"
    """At once, and at each later suspension again, as anyio's cancel scopes do."""

    NEVER_BEGUN = "never begun"
    """Before its first step; tasks are counted then, and not suspensions."""


class Cancelling:
    """Runs coroutines, and cancels the task of one at the suspension number `at` of them all.

    Attributes:
        count: The suspensions so far; the tasks begun, for `Way.NEVER_BEGUN`.
        cancelled: Whether a task was cancelled.
    """

    def __init__(self, way: Way, at: int) -> None:
        self._way = way
        self._at = at
        self.count = 0
        self.cancelled = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns."""
        return await self._driven(work)

    @contextmanager
    def in_the_packages_tasks(self) -> Iterator[None]:
        """Meanwhile, run what the package itself makes tasks of, for callers or for itself."""
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None

        def create(
            loop: asyncio.AbstractEventLoop, work: Any, **options: Any
        ) -> "asyncio.Task[Any]":
            ours = getattr(work, "cr_code", None) and work.cr_code.co_filename.startswith(PACKAGE)
            if not ours:
                return asyncio.Task(work, loop=loop, **options)
            if self._way is Way.NEVER_BEGUN:
                task = asyncio.Task(work, loop=loop, **options)
                self.count += 1
                if self.count == self._at:
                    self._cancel(task)
                return task
            return asyncio.Task(self.run(work), loop=loop, **options)

        loop.set_task_factory(create)
        try:
            yield
        finally:
            loop.set_task_factory(None)

    @types.coroutine
    def _driven(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        step: Callable[[Any], Any] = work.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as end:
                done: T = end.value
                return done
            self.count += 1
            self._interfere(awaited)
            try:
                value = yield awaited
            except BaseException as exc:  # noqa: BLE001 - the work's to deal with
                step, value = work.throw, exc
            else:
                step = work.send

    def _interfere(self, awaited: "asyncio.Future[Any] | None") -> None:
        task = asyncio.current_task()
        assert task is not None
        due = self.count == self._at
        if due and self._way is Way.WHEN_DONE and awaited is not None:
            awaited.add_done_callback(lambda _: self._cancel(task))
        elif due or (self.count > self._at and self._way is Way.ON_AND_ON):
            self._cancel(task)

    def _cancel(self, task: "asyncio.Task[Any]") -> None:
        self.cancelled = True
        task.cancel()


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.002)


OTHERS = """
SELECT state, query FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Onlooker:
    """Looks at a database on a connection of its own, past all of the package's own code."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self._connection: Any
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite:
            self._connection = sqlite3.connect(
                parsed.database or "", timeout=0, isolation_level=None
            )
        else:
            libpq = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
            self._connection = psycopg.connect(libpq, autocommit=True)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rows(self, thread_id: str) -> list[object]:
        """All that is stored of a thread, but for its state and its times."""
        return contents(lambda sql: self._connection.execute(sql).fetchall(), thread_id)

    async def sees_no_transaction(self) -> None:
        """No session but this one is in a transaction, nor about to be."""
        if self._sqlite:
            # Whoever held the file's lock would refuse this at once.
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("ROLLBACK")
            return
        busy = f"{OTHERS} AND state <> 'idle'"
        await eventually(lambda: not self._connection.execute(busy).fetchall(), "a transaction")

    def sessions(self) -> int:
        """How many sessions there are besides this one, where the database has any."""
        return 0 if self._sqlite else len(self._connection.execute(OTHERS).fetchall())


async def at_rest(saver: Saver, onlooker: Onlooker) -> None:
    """Wait until a saver is at rest; then nothing may be left of what it did."""
    pool: Any = saver.engine.pool
    await eventually(lambda: pool.checkedout() == 0, "a connection that was not given back")
    await onlooker.sees_no_transaction()


def engine_for(url: str, kind: str) -> AsyncEngine:
    """An engine as an application makes it.

    Args:
        url: The database.
        kind: "given", "watched" for one whose statements someone looks at, or "psycopg".
    """
    if kind == "psycopg":
        return create_async_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    engine = create_async_engine(url)
    if kind == "watched":
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    return engine


@dataclass(frozen=True)
class Operation:
    """One of a saver's operations.

    Attributes:
        run: Runs it on the threads of a key.
        changes: The threads that it changes, each in a transaction of its own.
    """

    run: Callable[[Saver, str], Awaitable[object]]
    changes: Callable[[str], Sequence[str]] = lambda key: ()


def other(key: str) -> str:
    """The second thread of a key."""
    return f"{key}, the other"


def copied(key: str) -> str:
    """The thread that a key's is copied to."""
    return f"{key}, copied"


async def listed(saver: Saver, key: str) -> object:
    """All checkpoints of a key's thread."""
    return [one async for one in saver.alist(config(key))]


async def read_at_once(saver: Saver, key: str) -> object:
    """Several reads, of which SQLite's share their hops to a thread."""

    async def read() -> object:
        return await saver.aget_tuple(config(key))

    return await asyncio.gather(*(read() for _ in range(6)))


def both(key: str) -> Sequence[str]:
    """Both threads of a key."""
    return [key, other(key)]


OPERATIONS: dict[str, Operation] = {
    "aget_tuple": Operation(lambda saver, key: saver.aget_tuple(config(key))),
    "aget_tuple, at once": Operation(read_at_once),
    "alist": Operation(listed),
    "aput": Operation(
        lambda saver, key: put(saver, config(key, "2"), "3", a=[*LARGE, "new" * 3000], b=3),
        lambda key: [key],
    ),
    "aput_writes": Operation(
        lambda saver, key: saver.aput_writes(config(key, "2"), [("a", LARGE * 2), ("b", 1)], "b"),
        lambda key: [key],
    ),
    "adelete_thread": Operation(lambda saver, key: saver.adelete_thread(key), lambda key: [key]),
    "adelete_for_runs": Operation(lambda saver, key: saver.adelete_for_runs([f"{key} 0"]), both),
    "acopy_thread": Operation(
        lambda saver, key: saver.acopy_thread(key, copied(key)), lambda key: [copied(key)]
    ),
    "acopy_thread, up to a checkpoint": Operation(
        lambda saver, key: saver.acopy_thread(key, copied(key), checkpoint_id="1"),
        lambda key: [copied(key)],
    ),
    "aprune": Operation(lambda saver, key: saver.aprune(both(key)), both),
    "aprune, delete": Operation(
        lambda saver, key: saver.aprune(both(key), strategy="delete"), both
    ),
    "aget_delta_channel_history": Operation(
        lambda saver, key: saver.aget_delta_channel_history(config=config(key), channels=["a"])
    ),
    "averify": Operation(lambda saver, key: saver.averify(key)),
}
"""All but `setup` and `aclose`, which have no threads."""


async def prepare(saver: Saver, key: str) -> None:
    """Store what an operation needs: two threads of three checkpoints of two runs, with writes."""

    async def fill(thread: str) -> None:
        at = config(thread)
        for number in range(3):
            run = {"run_id": f"{key} {number % 2}"}
            at = await put(saver, at, str(number), run, a=[*LARGE, number], b=number)
            await saver.aput_writes(at, [("a", LARGE[: number * 100]), ("b", number)], "a")

    await asyncio.gather(*map(fill, both(key)))
