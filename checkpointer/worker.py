"""A whole transaction inside the worker thread of an aiosqlite connection, in one hop.

The stock dialect hops to that thread three to four times a statement. In one hop, a transaction is
also whole on a connection that others share, as those of an in-memory database do. Where aiosqlite
is not as it is known here, the same work runs step by step (see `stepwise`).
"""

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection, StaticPool

from checkpointer.execution import (
    SCHEMA_MAP,
    Connection,
    DriverConnection,
    greenlet_spawn,
    not_free,
    schema_of,
)
from checkpointer.owners import check_not_inherited
from checkpointer.stepwise import run_core_stepwise, run_stepwise
from checkpointer.underlying import any_text, give_back, no_key, reads_damaged, underlying

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
            DamagedDataError: A value that was read as a key cannot be one.
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            return self._fetched(sql, values)
        except sqlite3.Error as exc:
            raise sa_exc.DBAPIError(None, None, exc) from exc
        except UnicodeEncodeError as exc:
            raise no_key(exc) from exc

    def _fetched(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        try:
            return self._cursor.execute(sql, values).fetchall()
        except sqlite3.OperationalError as exc:
            if not reads_damaged(self.raw, exc):
                raise
        self.raw.text_factory = any_text
        try:
            return self._cursor.execute(sql, values).fetchall()
        finally:
            self.raw.text_factory = str

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused or failed.
        """
        try:
            self._cursor.executemany(sql, rows)
        except sqlite3.Error as exc:
            raise sa_exc.DBAPIError(None, None, exc) from exc


class Hop(Generic[T]):
    """What a connection's thread is to run, and what has come of it.

    The thread keeps the last function that it has run, and what that returned, until it gets the
    next. Neither may keep an engine alive, or what was read.

    Attributes:
        unwanted: Set from the event loop's thread, once nobody waits any more.
    """

    def __init__(self, run: "Callable[[Hop[T]], T]") -> None:
        self.unwanted = False
        self._given = [run]
        self._done: list[T] = []
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """Run, in the connection's thread."""
        run = self._given.pop()
        try:
            self.check()
            self._done.append(run(self))
        except BaseException as exc:  # noqa: BLE001 - it belongs to the caller
            self._error = exc

    def check(self) -> None:
        """End a transaction that nobody wants any more.

        Raises:
            asyncio.CancelledError: The caller was cancelled.
        """
        if self.unwanted:
            raise asyncio.CancelledError

    def outcome(self) -> T:
        """What has come of it; to be asked for once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._done.pop()


Transact = Callable[[WorkerConnection, Hop[Any]], T]


class Hops:
    """Hops that end by themselves where their callers are cancelled.

    A thread cannot be stopped. Its connection goes back to the pool when it has ended, and not
    while it still works there; the caller does not wait for that.
    """

    def __init__(self) -> None:
        self._left: set[asyncio.Task[Any]] = set()

    async def run(self, hop: Coroutine[Any, Any, T]) -> T:
        """What a hop returns. One whose caller is cancelled rolls back if it still can."""
        task = asyncio.create_task(hop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            if not task.cancelling():  # a closing loop has cancelled it already
                task.cancel()
            raise

    async def drain(self) -> None:
        """Wait until the hops have ended whose callers were cancelled."""
        while self._left:
            await asyncio.wait(self._left)


async def run_in_worker(engine: AsyncEngine, work: Callable[[Connection], T], begin: str) -> T:
    """Run work in one transaction on one of the engine's connections.

    When cancelled, it waits for the thread, whose transaction is rolled back unless it is being
    committed already.

    Args:
        engine: An engine of aiosqlite.
        work: Gets the connection, on which a transaction is open.
        begin: The statement that opens it, `READ` or `WRITE`.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
        DatabaseError: Someone else has a transaction open on the connection.
    """
    done = await _run(engine.sync_engine, partial(_transact, work=work, begin=begin))
    return done[0] if done else await run_stepwise(engine, work, begin)


async def run_core_in_worker(
    engine: AsyncEngine, work: Callable[[sa.Connection], T], begin: str
) -> T:
    """Run work in one transaction on SQLAlchemy's own connection, as Alembic needs one."""
    options = engine.get_execution_options()
    transact = partial(_transact_core, work=work, begin=begin, options=options)
    done = await _run(engine.sync_engine, transact)
    return done[0] if done else await run_core_stepwise(engine, work, begin)


async def _run(engine: sa.Engine, transact: Transact[T]) -> tuple[T] | None:
    """Return what comes of a transaction, or `None` if no thread takes it."""
    if greenlet_spawn is None:
        return None
    try:
        return cast("tuple[T] | None", await greenlet_spawn(_hop, engine, transact))
    except sqlite3.Error as exc:
        raise sa_exc.DBAPIError(None, None, exc) from exc


def _hop(engine: sa.Engine, transact: Transact[T]) -> tuple[T] | None:
    check_not_inherited(engine.url.database)
    pooled = engine.raw_connection()
    try:
        if not underlying(pooled, engine.url.database).takes_functions:
            return None
        return (run_in_thread(pooled, engine, transact, schema_of(engine)),)
    finally:
        give_back(pooled)


def run_in_thread(
    pooled: PoolProxiedConnection, engine: sa.Engine, transact: Transact[T], schema: str | None
) -> T:
    """Run something in a pooled connection's own thread, which has ended when this returns.

    Args:
        pooled: The connection, whose thread takes functions.
        engine: The engine that has lent it.
        transact: Gets the connection, and the hop that tells whether it is wanted still.
        schema: Where the tables stand.
    """
    raw = underlying(pooled, engine.url.database).raw

    def run(hop: Hop[T]) -> T:
        connection = pooled.info.get(_CONNECTION)
        if connection is None:
            connection = pooled.info[_CONNECTION] = WorkerConnection(raw, engine.dialect)
        connection.schema = schema  # engines with several may share a pool
        return transact(connection, hop)

    adapted = cast("Any", pooled.dbapi_connection)
    hop = Hop(run)
    try:
        # aiosqlite has no public way to run a function in its thread: see `underlying`.
        adapted.run_async(lambda driver: driver._execute(hop))  # noqa: SLF001
        return hop.outcome()
    except asyncio.CancelledError:
        hop.unwanted = True
        _wait_for_thread(adapted)
        raise


def _wait_for_thread(adapted: Any) -> None:
    """Wait until a connection's thread has done all that it was given, however often cancelled."""
    while True:
        with suppress(asyncio.CancelledError):
            # It does one thing after another, and what was closed takes nothing more.
            with suppress(ValueError):
                adapted.run_async(lambda driver: driver._execute(int))  # noqa: SLF001
            return


def _transact(
    connection: WorkerConnection,
    hop: Hop[Any],
    work: Callable[[WorkerConnection], T],
    begin: str,
) -> T:
    """Run work in a transaction opened by `begin`; none stays open, whatever fails."""
    raw = connection.raw
    with _driver_autocommit(raw), _rolling_back(raw):
        raw.execute(begin)
        hop.check()  # it may have waited long for another process
        done = work(connection)
        # Holding the file's write lock: what is put after a call was cancelled comes after it.
        hop.check()
        raw.execute("COMMIT")
    return done


def _transact_core(
    connection: WorkerConnection,
    hop: Hop[Any],
    work: Callable[[sa.Connection], T],
    begin: str,
    options: Mapping[str, Any],
) -> T:
    raw = connection.raw
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: raw,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
        execution_options={SCHEMA_MAP: options.get(SCHEMA_MAP)},
    )
    # Connected before the transaction, because connecting rolls back.
    with _driver_autocommit(raw), engine.connect() as core, _rolling_back(raw):
        raw.execute(begin)
        with core.begin():
            hop.check()
            done = work(core)
            hop.check()
            return done


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
