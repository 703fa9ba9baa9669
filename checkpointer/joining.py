"""Work on SQLite inside a transaction that an application has open, in one hop."""

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from checkpointer.errors import UsageError
from checkpointer.tables import threads
from checkpointer.worker import READ, WRITE, Hop, WorkerConnection, run_in_thread

T = TypeVar("T")

SAVEPOINT: Final = "checkpointer"

_HOLD: Final = sa.delete(threads).where(sa.false())
"""Takes the file's write lock, and waits for it, as long as the transaction has read nothing."""


def join_in_worker(
    core: sa.Connection,
    work: Callable[[WorkerConnection], T],
    schema: str | None,
    *,
    writes: bool,
) -> T:
    """Run work on an application's connection; to be called within a greenlet of SQLAlchemy's.

    When cancelled, it waits for the connection's thread, which undoes what it has written.

    Args:
        core: The connection.
        work: Gets the sqlite3 connection, on which a transaction is open.
        schema: Where the tables stand.
        writes: Whether it may write.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
        sqlalchemy.exc.InvalidRequestError: The connection cannot be used.
        UsageError: The driver commits each statement at once, or might commit a savepoint.
    """
    # SQLAlchemy begins its transaction, tells listeners, and refuses a connection that has ended.
    core.exec_driver_sql("SELECT 1")
    # Without a BEGIN before it, a savepoint is what began the transaction: its RELEASE commits. The
    # driver's legacy mode sends none before the first change, and nothing tells whether it has.
    loose = core.in_nested_transaction() and not core.dispatch.begin
    transact = partial(_join, work=work, writes=writes, loose=loose)
    try:
        return run_in_thread(core.connection, core.engine, transact, schema)
    except sqlite3.Error as exc:
        raise sa_exc.DBAPIError(None, None, exc) from exc


def _join(
    connection: WorkerConnection,
    hop: Hop[Any],
    work: Callable[[WorkerConnection], T],
    *,
    writes: bool,
    loose: bool,
) -> T:
    raw = connection.raw
    if getattr(raw, "autocommit", None) is True:
        raise UsageError(
            "found an SQLite connection of the driver's mode autocommit=True, expected one with "
            "transactions; leave that option of the driver out"
        )
    if writes and loose and getattr(raw, "autocommit", None) is not False:
        raise UsageError(
            "found a savepoint on an SQLite connection whose transaction may have begun with it, "
            "expected one whose end does not commit; let the engine begin transactions: "
            '`@event.listens_for(engine.sync_engine, "begin")` on a function of the connection '
            'that does `connection.exec_driver_sql("BEGIN")`'
        )
    # In its legacy mode, the driver has begun nothing before the application's first change.
    began = not raw.in_transaction
    if not writes:
        return _read(connection, work) if began else work(connection)
    if began:
        raw.execute(WRITE)
    raw.execute(f"SAVEPOINT {SAVEPOINT}")
    try:
        connection.execute(_HOLD, {})
        done = work(connection)
        hop.check()
    except BaseException:
        if raw.in_transaction:  # SQLite itself may have rolled all of it back
            raw.execute(f"ROLLBACK TO {SAVEPOINT}")
            raw.execute(f"RELEASE {SAVEPOINT}")
        raise
    raw.execute(f"RELEASE {SAVEPOINT}")
    return done


def _read(connection: WorkerConnection, work: Callable[[WorkerConnection], T]) -> T:
    """Run work that reads in a transaction of its own: one that went on could not write later."""
    connection.raw.execute(READ)
    try:
        return work(connection)
    finally:
        connection.raw.rollback()
