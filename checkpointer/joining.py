"""Work on SQLite inside a transaction that an application has open, in one hop if that can be."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection

from checkpointer.errors import UsageError
from checkpointer.execution import Connection
from checkpointer.stepwise import Caller, StepConnection, join_stepwise
from checkpointer.tables import threads
from checkpointer.underlying import in_transaction, underlying
from checkpointer.worker import READ, WRITE, Hop, WorkerConnection, run_in_thread

T = TypeVar("T")

SAVEPOINT: Final = "checkpointer"

_HOLD: Final = sa.delete(threads).where(sa.false())
"""Takes the file's write lock, and waits for it, as long as the transaction has read nothing."""


async def join(
    connection: AsyncConnection,
    work: Callable[[Connection], T],
    schema: str | None,
    *,
    writes: bool,
) -> T:
    """Run work on an application's connection.

    When cancelled, it waits for the connection's thread, which undoes what it has written.

    Args:
        connection: The connection.
        work: Gets the connection, on which a transaction is open.
        schema: Where the tables stand.
        writes: Whether it may write.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
        sqlalchemy.exc.InvalidRequestError: The connection cannot be used.
        UsageError: The driver commits each statement at once, or might commit a savepoint.
    """
    in_worker = partial(_join_in_worker, work=work, schema=schema, writes=writes)
    # Whole: SQLAlchemy closes a connection whose statement is cancelled.
    if await Caller().wait(connection.run_sync(_takes_functions)):
        return await connection.run_sync(in_worker)
    return await join_stepwise(
        connection, partial(_join_core, work=work, schema=schema, writes=writes)
    )


def _takes_functions(core: sa.Connection) -> bool:
    # SQLAlchemy begins its transaction, tells listeners, and refuses a connection that has ended.
    core.exec_driver_sql("SELECT 1")
    return underlying(core.connection, core.engine.url.database).takes_functions


def _join_in_worker(
    core: sa.Connection, work: Callable[[Connection], T], schema: str | None, *, writes: bool
) -> T:
    loose = _is_loose(core)

    def transact(connection: WorkerConnection, hop: Hop[Any]) -> T:
        raw = connection.raw
        mode = getattr(raw, "autocommit", None)
        joined = Joined(connection, raw, mode, raw.execute, hop.check)
        return joined.run(work, writes=writes, loose=loose)

    try:
        return run_in_thread(core.connection, core.engine, transact, schema)
    except sqlite3.Error as exc:
        raise sa_exc.DBAPIError(None, None, exc) from exc


def _join_core(
    core: sa.Connection,
    caller: Caller,
    work: Callable[[Connection], T],
    schema: str | None,
    *,
    writes: bool,
) -> T:
    connection = StepConnection(core, caller, schema)
    raw, mode = connection.raw, connection.below.autocommit
    joined = Joined(connection, raw, mode, core.exec_driver_sql, caller.check)
    return joined.run(work, writes=writes, loose=_is_loose(core))


def _is_loose(core: sa.Connection) -> bool:
    """Whether the end of a savepoint may commit: without a BEGIN before it, it is what began.

    The driver's legacy mode sends no BEGIN before the first change, and nothing tells whether it
    has; a listener may have. What SQLAlchemy does not tell us counts as none.
    """
    dispatch = getattr(core, "dispatch", None)
    return core.in_nested_transaction() and not getattr(dispatch, "begin", None)


@dataclass(frozen=True, slots=True)
class Joined:
    """An application's connection, while work of ours runs in its transaction.

    Attributes:
        connection: What work gets.
        raw: The sqlite3 connection below.
        execute: Runs a statement that returns nothing.
        check: Raises if nobody wants the work any more.
    """

    connection: Connection
    raw: sqlite3.Connection
    autocommit: object
    execute: Callable[[str], object]
    check: Callable[[], None]

    def run(self, work: Callable[[Connection], T], *, writes: bool, loose: bool) -> T:
        """Run work; what it has written is undone if it fails.

        Raises:
            UsageError: The driver commits each statement at once, or might commit a savepoint.
        """
        if self.autocommit is True:
            raise UsageError(
                "found an SQLite connection of the driver's mode autocommit=True, expected one "
                "with transactions; leave that option of the driver out"
            )
        if writes and loose and self.autocommit is not False:
            raise UsageError(
                "found a savepoint on an SQLite connection whose transaction may have begun with "
                "it, expected one whose end does not commit; let the engine begin transactions: "
                '`@event.listens_for(engine.sync_engine, "begin")` on a function of the '
                'connection that does `connection.exec_driver_sql("BEGIN")`'
            )
        # In its legacy mode, the driver has begun nothing before the application's first change.
        began = not self.raw.in_transaction
        if not writes:
            return self._read(work) if began else work(self.connection)
        if began:
            self.execute(WRITE)
        return self._write(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        self.execute(f"SAVEPOINT {SAVEPOINT}")
        try:
            self.connection.execute(_HOLD, {})
            done = work(self.connection)
            self.check()
        except BaseException:
            if in_transaction(self.raw):  # SQLite itself may have rolled all of it back
                self.execute(f"ROLLBACK TO {SAVEPOINT}")
                self.execute(f"RELEASE {SAVEPOINT}")
            raise
        self.execute(f"RELEASE {SAVEPOINT}")
        return done

    def _read(self, work: Callable[[Connection], T]) -> T:
        """Run work that reads in a transaction of its own: else it could not write later."""
        self.execute(READ)
        try:
            return work(self.connection)
        finally:
            if in_transaction(self.raw):
                self.execute("ROLLBACK")
