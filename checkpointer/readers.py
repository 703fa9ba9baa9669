"""Reads of SQLite that arrive while others are under way, and share the next hop to a thread.

Python runs one thread at a time, so that many threads at once read no faster than two; and the hop
takes longer than most reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from checkpointer.worker import READ, WorkerConnection, run_in_worker

T = TypeVar("T")
Work = Callable[[WorkerConnection], Any]
Waiting = tuple[Work, "asyncio.Future[Any]"]

READERS: Final = 2
"""Hops at the same time, so that a long read does not keep all others waiting."""

MAX_SHARED: Final = 64
"""Reads that share one hop at most."""


class Readers:
    """Runs reads on the connections of one engine, each in a transaction that others may share."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, engine: sa.Engine, work: Callable[[WorkerConnection], T]) -> T:
        """Run work that only reads, at once if few others are under way.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        if self._under_way >= READERS:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((work, future))
            found: T = await future
            return found
        self._under_way += 1
        try:
            return await run_in_worker(engine, work, READ)
        finally:
            self._ended(engine)

    async def drain(self) -> None:
        """Wait until every hop for others has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, engine: sa.Engine) -> None:
        self._under_way -= 1
        while self._under_way < READERS and (batch := self._take()):
            self._under_way += 1
            # In a context of its own: it works for all callers, not for the one that came first.
            task = asyncio.create_task(self._share(engine, batch), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[Waiting]:
        """The next that share a hop, without those whose callers were cancelled."""
        batch: list[Waiting] = []
        while self._waiting and len(batch) < MAX_SHARED:
            work, future = self._waiting.popleft()
            if not future.done():
                batch.append((work, future))
        return batch

    async def _share(self, engine: sa.Engine, wanted: Sequence[Waiting]) -> None:
        def all_of(connection: WorkerConnection) -> list[Callable[[], None]]:
            return [_outcome(connection, work, future) for work, future in wanted]

        try:
            for tell in await run_in_worker(engine, all_of, READ):
                tell()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers
            for _, future in wanted:
                _tell(future, future.set_exception, exc)
        finally:
            # Some are left only where this task itself was cancelled, as a closing loop does.
            for _, future in wanted:
                future.cancel()
            self._ended(engine)


def _outcome(
    connection: WorkerConnection, work: Work, future: "asyncio.Future[Any]"
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
