"""A whole transaction inside the worker thread of an aiosqlite connection, in one hop.

The stock dialect hops to that thread three to four times a statement. In one hop, a transaction is
also whole on a connection that others share, as those of an in-memory database do.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from checkpointer.execution import DriverConnection, not_free
from checkpointer.projection import contains_json

T = TypeVar("T")

_SETTINGS: Final[dict[str, Any]] = {"isolation_level": None}
"""With these, the driver neither opens nor closes a transaction by itself. They are set from the
last to the first: in the mode of Python 3.12, `isolation_level` has no meaning."""
if sys.version_info >= (3, 12):
    _SETTINGS["autocommit"] = sqlite3.LEGACY_TRANSACTION_CONTROL

READ: Final = "BEGIN"
WRITE: Final = "BEGIN IMMEDIATE"
"""How transactions begin: a writer has the file's write lock from its start."""

_CONNECTION: Final = "checkpointer_connection"
"""Where a pooled connection keeps its `WorkerConnection`."""


class WorkerConnection(DriverConnection):
    """A connection of the sqlite3 module, inside the thread that it belongs to."""

    def __init__(self, raw: sqlite3.Connection, dialect: sa.Dialect) -> None:
        super().__init__(dialect)
        self.raw = raw
        self._cursor = raw.cursor()
        self._cursor.row_factory = None  # the application may have set another

    def run(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """Run a statement; its rows.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            return self._cursor.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise sa_exc.DBAPIError(None, None, exc) from exc

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            self._cursor.executemany(sql, rows)
        except sqlite3.Error as exc:
            raise sa_exc.DBAPIError(None, None, exc) from exc


async def run_in_worker(engine: sa.Engine, work: Callable[[WorkerConnection], T], begin: str) -> T:
    """Run work in one transaction on one of the engine's connections.

    Args:
        engine: The sync side of an engine of aiosqlite.
        work: Gets the connection, on which a transaction is open.
        begin: The statement that opens it, `READ` or `WRITE`.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
        DatabaseError: Someone else has a transaction open on the connection.
    """
    return await _run(engine, partial(_transact, work=work, begin=begin))


async def run_core_in_worker(
    engine: sa.Engine, work: Callable[[sa.Connection], T], begin: str
) -> T:
    """The same for work on SQLAlchemy's own connection, as Alembic needs one."""
    return await _run(engine, partial(_transact_core, work=work, begin=begin))


async def _run(engine: sa.Engine, transact: Callable[[WorkerConnection], T]) -> T:
    try:
        return cast("T", await greenlet_spawn(_hop, engine, transact))
    except sqlite3.Error as exc:
        raise sa_exc.DBAPIError(None, None, exc) from exc


def _hop(engine: sa.Engine, transact: Callable[[WorkerConnection], T]) -> T:
    pooled = engine.raw_connection()
    driver = cast("Any", pooled.driver_connection)

    def run() -> T:
        connection = pooled.info.get(_CONNECTION)
        if connection is None:
            raw = driver._conn  # noqa: SLF001
            raw.create_function("checkpointer_contains", 2, contains_json, deterministic=True)
            connection = pooled.info[_CONNECTION] = WorkerConnection(raw, engine.dialect)
        return transact(connection)

    try:
        # aiosqlite has no public way to run a function in its thread; SQLAlchemy's dialect
        # reaches for the same queue.
        return cast("T", await_only(driver._execute(run)))  # noqa: SLF001
    finally:
        pooled.close()


def _transact(connection: WorkerConnection, work: Callable[[WorkerConnection], T], begin: str) -> T:
    """Run work in a transaction opened by `begin`; none stays open, whatever fails."""
    raw = connection.raw
    with _driver_autocommit(raw), _rolling_back(raw):
        raw.execute(begin)
        done = work(connection)
        raw.execute("COMMIT")
    return done


def _transact_core(
    connection: WorkerConnection, work: Callable[[sa.Connection], T], begin: str
) -> T:
    raw = connection.raw
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: raw,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
    )
    # Connected before the transaction, because connecting rolls back.
    with _driver_autocommit(raw), engine.connect() as core, _rolling_back(raw):
        raw.execute(begin)
        with core.begin():
            return work(core)


@contextmanager
def _rolling_back(raw: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if raw.in_transaction:  # also after a COMMIT that failed
            raw.rollback()
        raise


def _driver_autocommit(raw: sqlite3.Connection) -> AbstractContextManager[None]:
    """Keep the driver from opening and closing transactions by itself, as its legacy mode does.

    Raises:
        DatabaseError: Someone else has a transaction open on the connection.
    """
    legacy = getattr(raw, "autocommit", None) in {None, _SETTINGS.get("autocommit")}
    if legacy and raw.in_transaction:
        # Changing the mode would commit it.
        raise not_free("SQLite connection")
    return nullcontext() if legacy and raw.isolation_level is None else _set_for_a_while(raw)


@contextmanager
def _set_for_a_while(raw: sqlite3.Connection) -> Iterator[None]:
    before = {name: getattr(raw, name) for name in _SETTINGS}
    for name in reversed(_SETTINGS):
        if before[name] != _SETTINGS[name]:
            setattr(raw, name, _SETTINGS[name])
    try:
        yield
    finally:
        for name, value in before.items():
            if value != _SETTINGS[name]:
                setattr(raw, name, value)
