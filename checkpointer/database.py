"""An engine, and the one way to run work on it: attempts, retries and errors of ours."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool, QueuePool

from checkpointer.dialect import CoreWork, Work
from checkpointer.dialects import dialect_of
from checkpointer.engine import shown
from checkpointer.execution import schema_of
from checkpointer.faults import needs_new_connections, translated
from checkpointer.figures import Telemetry, current
from checkpointer.limits import TIMEOUT
from checkpointer.renewal import renew
from checkpointer.retrying import Retrying

T = TypeVar("T")
W = TypeVar("W")

PATIENCE: Final = 30.0
"""Seconds for which a transaction is tried again, unless told otherwise."""


class Database:
    """An engine, and the one way to run work on it.

    Work is run again, as a whole transaction, while the database is away or held by others. So it
    may run more than once, and must leave nothing behind but what it returns.

    Args:
        engine: Any async engine of a supported database. Its execution option
            `schema_translate_map` says which schema the tables stand in (see `engine.in_schema`).
        owned: Whether `dispose` closes it: true for an engine that we made ourselves.
        patience: Seconds for which a transaction is tried again, from its first failure on.
        timeout: Seconds that a server may take for one answer.
        telemetry: Who asks what operations take, if anybody does.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        owned: bool,
        patience: float = PATIENCE,
        timeout: float = TIMEOUT,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.engine = engine
        self.telemetry = telemetry
        self.owned = owned
        self.dialect = dialect_of(engine, timeout=timeout)
        self._where = shown(engine.url)
        connections = _bound(engine.pool) if self.dialect.locks_rows else None
        self._turns = None if connections is None else asyncio.Semaphore(connections)
        self._retrying = Retrying(self._where, patience)
        self._disposing: asyncio.Task[None] | None = None

    @property
    def schema(self) -> str | None:
        """The schema that the tables stand in, `None` for the database's own default."""
        return schema_of(self.engine.sync_engine)

    def call_when_away(self, function: Callable[[], None]) -> None:
        """Have a function called whenever the database turns out to be away, before a retry."""
        self._retrying.on_away = function

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.read, self._counted(work))

    async def read_snapshot(self, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.read_snapshot, self._counted(work, begins=True))

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction and commit it. Nothing is stored if it raises.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.write, self._counted(work, begins=True))

    async def put(self, work: Work[T]) -> T:
        """Run work that puts a batch. Of each thread, all is stored and committed, or nothing.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.put, self._counted(work))

    async def put_once(self, work: Work[T]) -> T:
        """The same, in one attempt: the caller knows how to try again.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.put, self._counted(work), once=True)

    async def inspect(self, work: CoreWork[T]) -> T:
        """Run work that only looks, on SQLAlchemy's own connection.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.inspect, work)

    async def migrate(self, work: CoreWork[T]) -> T:
        """Run work in one transaction on SQLAlchemy's own connection, and commit it.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._run(self.dialect.migrate, work)

    async def dispose(self) -> None:
        """Close the engine's connections, if the engine is ours; also where this is cancelled."""
        await self.dialect.drain()
        if self.owned:
            if self._disposing is None:
                self._disposing = asyncio.create_task(self.engine.dispose())
            await asyncio.shield(self._disposing)

    def _counted(self, work: Work[T], *, begins: bool = False) -> Work[T]:
        """Work whose statements are counted, if somebody asks and an operation is under way."""
        if self.telemetry is None or (figures := current.get()) is None:
            return work
        return figures.counted(work, travels=self.dialect.statements_travel, begins=begins)

    async def _run(
        self, operate: Callable[[AsyncEngine, W], Awaitable[T]], work: W, *, once: bool = False
    ) -> T:
        attempt = partial(self._attempt, operate, work)
        return await (self._retrying.run_once(attempt) if once else self._retrying.run(attempt))

    async def _attempt(self, operate: Callable[[AsyncEngine, W], Awaitable[T]], work: W) -> T:
        try:
            async with self._turn():
                return await operate(self.engine, work)
        except (sa_exc.SQLAlchemyError, OSError) as exc:
            error = translated(exc, self._where)
            if needs_new_connections(exc):
                renew(self.engine.pool)
            raise error from exc

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Ask the pool for a connection when it may have one, in the order of asking.

        Its own queue is not fair: callers that work in a loop keep another one waiting.

        Raises:
            sqlalchemy.exc.TimeoutError: Others took too long.
        """
        if self._turns is None:
            yield
            return
        try:
            async with asyncio.timeout(self.dialect.timeout if self._turns.locked() else None):
                await self._turns.acquire()
        except TimeoutError as exc:
            raise sa_exc.TimeoutError("found no connection that became free, expected one") from exc
        try:
            yield
        finally:
            self._turns.release()


def _bound(pool: Pool) -> int | None:
    """How many connections a pool has at most; `None` if that is not known: it keeps order itself.

    SQLAlchemy has no public name for the connections beyond the pool's size.
    """
    overflow: object = getattr(pool, "_max_overflow", None)
    if not isinstance(pool, QueuePool) or not isinstance(overflow, int) or overflow < 0:
        return None
    return pool.size() + overflow
