"""Reads of SQLite that arrive while others are under way, and share the next hop to a thread.

Python runs one thread at a time, so that many threads at once read no faster than two; and the hop
takes longer than most reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool, QueuePool

from checkpointer.execution import Connection
from checkpointer.worker import READ, Hops, run_in_worker

T = TypeVar("T")
Work = Callable[[Connection], Any]
Waiting = tuple[Work, "asyncio.Future[Any]"]

READERS: Final = 2
"""Hops at the same time, so that a long read does not keep all others waiting."""

MAX_SHARED: Final = 64
"""Reads that share one hop at most."""


class Readers:
    """Runs reads on the connections of one engine, each in a transaction that others may share.

    Args:
        hops: Where reads end that must first connect, and whose callers are cancelled.
    """

    def __init__(self, hops: Hops) -> None:
        self._hops = hops
        self._waiting: deque[Waiting] = deque()
        self._alone = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        """Run work that only reads, at once if few others are under way.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        if self._alone + len(self._tasks) >= READERS:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((work, future))
            found: T = await future
            return found
        self._alone += 1
        try:
            read = run_in_worker(engine, work, READ)
            # No lock keeps a read, so that a caller who is cancelled may wait for its thread. That
            # saves a task, which takes a tenth of the read's time.
            return await (read if _has_idle(engine.pool) else self._hops.run(read))
        finally:
            self._alone -= 1
            self._start(engine)

    async def drain(self) -> None:
        """Wait until every hop for others has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, engine: AsyncEngine) -> None:
        while self._alone + len(self._tasks) < READERS and (batch := self._take()):
            # In a context of its own: it works for all callers, not for the one that came first.
            task = asyncio.create_task(self._share(engine, batch), context=Context())
            self._tasks.add(task)
            # Not at the task's own end: one that is cancelled before its first step has none.
            task.add_done_callback(partial(self._ended, engine, batch))

    def _ended(
        self, engine: AsyncEngine, batch: Sequence[Waiting], task: "asyncio.Task[None]"
    ) -> None:
        self._tasks.discard(task)
        # Some are left only where the task itself was cancelled, as a closing loop does.
        for _, future in batch:
            future.cancel()
        self._start(engine)

    def _take(self) -> list[Waiting]:
        """The next that share a hop, without those whose callers were cancelled."""
        batch: list[Waiting] = []
        while self._waiting and len(batch) < MAX_SHARED:
            work, future = self._waiting.popleft()
            if not future.done():
                batch.append((work, future))
        return batch

    async def _share(self, engine: AsyncEngine, wanted: Sequence[Waiting]) -> None:
        def all_of(connection: Connection) -> list[Callable[[], None]]:
            return [_outcome(connection, work, future) for work, future in wanted]

        try:
            for tell in await run_in_worker(engine, all_of, READ):
                tell()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers
            for _, future in wanted:
                _tell(future, future.set_exception, exc)


def _has_idle(pool: Pool) -> bool:
    return isinstance(pool, QueuePool) and pool.checkedin() > 0


def _outcome(
    connection: Connection, work: Work, future: "asyncio.Future[Any]"
) -> Callable[[], None]:
    """Run work, and return what tells its caller, for the event loop's thread."""
    try:
        found = work(connection)
    except Exception as exc:  # noqa: BLE001 - it belongs to that caller alone
        error = exc
        return lambda: _tell(future, future.set_exception, error)
    return lambda: _tell(future, future.set_result, found)


def _tell(future: "asyncio.Future[Any]", set_: Callable[[Any], None], value: object) -> None:
    if not future.done():
        set_(value)
