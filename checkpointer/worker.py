"""A whole transaction inside the worker thread of an aiosqlite connection, in one hop.

The stock dialect hops to that thread three to four times a statement. In one hop, a transaction is
also whole on a connection that others share, as those of an in-memory database do.
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
from sqlalchemy.pool import PoolProxiedConnection, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from checkpointer.errors import DamagedDataError
from checkpointer.execution import SCHEMA_MAP, DriverConnection, not_free, schema_of
from checkpointer.owners import check_not_inherited, note_open_file
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


def _any_text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


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
            # What a caller gives was checked. This was read, by way of `_any_text`.
            raise DamagedDataError(
                f"found the key {exc.object!r} in the database, expected text in UTF-8; restore "
                f"its row from a backup, or delete the thread with adelete_thread"
            ) from exc

    def _fetched(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        try:
            return self._cursor.execute(sql, values).fetchall()
        except sqlite3.OperationalError as exc:
            if hasattr(exc, "sqlite_errorcode") or self.raw.text_factory is not str:
                raise
        # The module's own error: text that is not UTF-8, where damage has put it. Whoever reads
        # the row tells what is wrong with it, and the other rows stay readable.
        self.raw.text_factory = _any_text
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


async def run_in_worker(engine: sa.Engine, work: Callable[[WorkerConnection], T], begin: str) -> T:
    """Run work in one transaction on one of the engine's connections.

    When cancelled, it waits for the thread, whose transaction is rolled back unless it is being
    committed already.

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
    options = engine.get_execution_options()
    return await _run(engine, partial(_transact_core, work=work, begin=begin, options=options))


async def _run(engine: sa.Engine, transact: Transact[T]) -> T:
    try:
        return cast("T", await greenlet_spawn(_hop, engine, transact))
    except sqlite3.Error as exc:
        raise sa_exc.DBAPIError(None, None, exc) from exc


def _hop(engine: sa.Engine, transact: Transact[T]) -> T:
    check_not_inherited(engine.url.database)
    pooled = engine.raw_connection()
    try:
        return run_in_thread(pooled, engine, transact, schema_of(engine))
    finally:
        # None of our transactions is open any more. A reset would be one more hop; and one more
        # that can be cancelled, which SQLAlchemy logs as an error.
        cast("Any", pooled)._close_special(transaction_reset=True)  # noqa: SLF001


def run_in_thread(
    pooled: PoolProxiedConnection, engine: sa.Engine, transact: Transact[T], schema: str | None
) -> T:
    """Run something in a pooled connection's own thread, which has ended when this returns.

    Args:
        pooled: The connection.
        engine: The engine that has lent it.
        transact: Gets the connection, and the hop that tells whether it is wanted still.
        schema: Where the tables stand.
    """
    driver = cast("Any", pooled.driver_connection)

    def run(hop: Hop[T]) -> T:
        connection = pooled.info.get(_CONNECTION)
        if connection is None:
            raw = driver._conn  # noqa: SLF001
            raw.create_function("checkpointer_contains", 2, contains_json, deterministic=True)
            note_open_file(raw, engine.url.database)
            connection = pooled.info[_CONNECTION] = WorkerConnection(raw, engine.dialect)
        connection.schema = schema  # engines with several may share a pool
        return transact(connection, hop)

    hop = Hop(run)
    try:
        # aiosqlite has no public way to run a function in its thread; SQLAlchemy's dialect
        # reaches for the same queue.
        await_only(driver._execute(hop))  # noqa: SLF001
        return hop.outcome()
    except asyncio.CancelledError:
        hop.unwanted = True
        _wait_for_thread(driver)
        raise


def _wait_for_thread(driver: Any) -> None:
    """Wait until a connection's thread has done all that it was given, however often cancelled."""
    while driver._running:  # noqa: SLF001 - as above; what was closed takes nothing more
        with suppress(asyncio.CancelledError):
            await_only(driver._execute(int))  # noqa: SLF001 - it does one thing after another
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
