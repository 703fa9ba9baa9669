"""A transaction on SQLite through SQLAlchemy's own connection, with several hops for a statement.

It is used where a release of aiosqlite or SQLAlchemy lacks the private names that `worker` needs.
It is slower, and uses public names only.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import Pool, StaticPool
from sqlalchemy.sql.base import Executable

from checkpointer.execution import NOTHING, CoreConnection, Parameters, not_free, schema_of
from checkpointer.owners import check_not_inherited
from checkpointer.underlying import (
    any_text,
    in_transaction,
    no_key,
    reads_damaged,
    underlying,
)

T = TypeVar("T")
Locks = WeakKeyDictionary[Pool, asyncio.Lock]

_shared: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, Locks]()
"""Locks of pools whose callers share one connection: transactions on it wait for each other."""


class Caller:
    """The caller of a transaction, whose cancellation must not interrupt a statement.

    SQLAlchemy closes a connection when its statement is cancelled, although the thread still runs
    the statement. An in-memory database would be lost with the connection.
    """

    def __init__(self) -> None:
        self._gone = False

    def check(self) -> None:
        """Raise if the caller was cancelled, so that the transaction is rolled back.

        Raises:
            asyncio.CancelledError: The caller was cancelled.
        """
        if self._gone:
            raise asyncio.CancelledError

    async def wait(self, steps: Coroutine[Any, Any, T]) -> T:
        """Run steps to their end. If the caller is cancelled, `check` ends them early.

        The steps may set no timeout: a timeout cancels, and they do not see cancellations.

        Raises:
            asyncio.CancelledError: The caller was cancelled meanwhile.
        """
        try:
            done = await _Uncut(steps, self.leave)
        except BaseException:
            self.check()
            raise
        self.check()
        return done

    def leave(self) -> None:
        """Note that the caller was cancelled."""
        self._gone = True


class _Uncut(Generic[T]):
    """Runs steps in the caller's own task, and hides the task's cancellation from them.

    In a task of their own, they would still be cancelled when the event loop is closed.
    """

    def __init__(self, steps: Coroutine[Any, Any, T], cancelled: Callable[[], None]) -> None:
        self._steps = steps
        self._cancelled = cancelled

    def __await__(self) -> Generator[Any, None, T]:
        while True:
            try:
                awaited: asyncio.Future[Any] | None = self._steps.send(None)
            except StopIteration as end:
                done: T = end.value
                return done
            while awaited is not None and not awaited.done():
                try:
                    yield from asyncio.wait([awaited]).__await__()
                except asyncio.CancelledError:
                    self._cancelled()


class StepConnection(CoreConnection):
    """Runs statements one by one, until its caller is cancelled."""

    def __init__(self, core: sa.Connection, caller: Caller, schema: str | None) -> None:
        super().__init__(core, caller.check, schema)
        self.below = underlying(core.connection, core.engine.url.database)
        self.raw = self.below.raw

    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Sequence[Any]:
        """All rows of a statement.

        Raises:
            DamagedDataError: A value that was read as a key cannot be one.
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            return self._fetch(statement, parameters)
        except UnicodeEncodeError as exc:
            raise no_key(exc) from exc

    def _fetch(self, statement: Executable, parameters: Parameters) -> Sequence[Any]:
        try:
            return super().fetch(statement, parameters)
        except sa_exc.DBAPIError as exc:
            if not reads_damaged(self.raw, exc.orig):
                raise
        self.raw.text_factory = any_text
        try:
            return super().fetch(statement, parameters)
        finally:
            self.raw.text_factory = str

    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement once for each row of parameters.

        Raises:
            DamagedDataError: A value that was read as a key cannot be one.
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            super().execute(statement, *rows)
        except UnicodeEncodeError as exc:
            raise no_key(exc) from exc


async def run_stepwise(engine: AsyncEngine, work: Callable[[StepConnection], T], begin: str) -> T:
    """Run work in one transaction on one of the engine's connections.

    When cancelled, it waits for the running statement and rolls back, unless that is the COMMIT.

    Args:
        engine: An engine of aiosqlite.
        work: Gets the connection, on which a transaction is open.
        begin: The statement that opens it.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
        DatabaseError: Someone else has a transaction open on the connection.
    """
    caller = Caller()

    def work_on_core(core: sa.Connection) -> T:
        return work(StepConnection(core, caller, schema_of(engine.sync_engine)))

    return await _transact(engine, work_on_core, begin, caller)


async def run_core_stepwise(
    engine: AsyncEngine, work: Callable[[sa.Connection], T], begin: str
) -> T:
    """Run work in one transaction on SQLAlchemy's own connection, as Alembic needs one."""
    return await _transact(engine, work, begin, Caller())


async def join_stepwise(
    connection: AsyncConnection, join: Callable[[sa.Connection, Caller], T]
) -> T:
    """Run work on an application's connection, and let no cancellation interrupt a statement."""
    caller = Caller()
    async with _turn(connection.engine.pool):
        return await caller.wait(connection.run_sync(join, caller))


async def _transact(
    engine: AsyncEngine, work: Callable[[sa.Connection], T], begin: str, caller: Caller
) -> T:
    check_not_inherited(engine.url.database)
    within = partial(_within, work=work, begin=begin, caller=caller)
    async with _turn(engine.pool):
        connection = await engine.connect()
        try:
            return await caller.wait(connection.run_sync(within))
        finally:
            await caller.wait(connection.close())


def _turn(pool: Pool) -> AbstractAsyncContextManager[object]:
    """Return a lock if all callers share one connection, and a context that does nothing if not."""
    if not isinstance(pool, StaticPool):
        return nullcontext()
    locks = _shared.setdefault(asyncio.get_running_loop(), WeakKeyDictionary())
    return locks.setdefault(pool, asyncio.Lock())


def _within(
    core: sa.Connection, work: Callable[[sa.Connection], T], begin: str, caller: Caller
) -> T:
    below = underlying(core.connection, core.engine.url.database)
    raw, implicit = below.raw, below.autocommit is False
    if raw.in_transaction and not implicit:
        raise not_free("SQLite connection")
    with core.get_transaction() or core.begin():
        if raw.in_transaction:  # a listener or the driver began it, perhaps not as `begin` would
            core.exec_driver_sql("ROLLBACK")
        core.exec_driver_sql(begin)
        try:
            caller.check()  # it may have waited long for another process
            done = work(core)
            caller.check()
            # Here and not by the driver, which does nothing in its mode `autocommit=True`.
            if not implicit:
                core.exec_driver_sql("COMMIT")
        except BaseException:
            if not implicit and in_transaction(raw):
                core.exec_driver_sql("ROLLBACK")
            raise
        return done
