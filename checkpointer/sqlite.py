"""SQLite: a whole transaction runs inside aiosqlite's worker thread, in one hop."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import PurePath
from threading import Thread
from typing import Any, TypeVar

import aiosqlite
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from checkpointer.dialect import CoreWork, Dialect, Work
from checkpointer.joining import join
from checkpointer.limits import TIMEOUT
from checkpointer.readers import Readers
from checkpointer.worker import READ, WRITE, Hops, run_core_in_worker, run_in_worker

T = TypeVar("T")


class SQLite(Dialect):
    """SQLite, through aiosqlite."""

    name = "sqlite"
    async_driver = "aiosqlite"
    upgrades_on_first_use = True
    # Three lists are a statement's most, and SQLite takes 32,766 variables in it since 3.32, of the
    # year 2020; lists are filled up to a power of two.
    max_list = 8192
    locks_rows = False
    statements_travel = False
    has_arrays = False
    has_schemas = False

    def __init__(self, timeout: float = TIMEOUT) -> None:
        super().__init__(timeout)
        # Only one transaction may write to a file. Those of this process wait for each other here
        # and not in SQLite, which sleeps between two looks, up to 0.1 s, with a thread each.
        self._writing = asyncio.Lock()
        self._hops = Hops()
        self._readers = Readers(self._hops)

    def pool_options(self) -> dict[str, Any]:
        """Our transactions end before a connection is given back: a reset is one more hop."""
        return {"pool_reset_on_return": None}

    def connect_args(self, url: sa.URL) -> dict[str, Any]:
        """What opens a file. It does not wait."""
        del url
        return {"async_creator_fn": _open}

    def namespace(self, url: sa.URL) -> str:
        """The file's name: its directory, and the query of a URI, are nobody's business."""
        return PurePath((url.database or "").partition("?")[0].removeprefix("file:")).name

    def prepare(self, engine: AsyncEngine) -> None:
        """Set each connection up, and begin transactions ourselves."""
        event.listen(engine.sync_engine, "connect", partial(_set_up, timeout=self.timeout))
        event.listen(engine.sync_engine, "begin", _begin)

    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in one deferred transaction: one snapshot."""
        return await self._readers.read(engine, work)

    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """The same, in a transaction of its own."""
        return await self._hops.run(run_in_worker(engine, work, READ))

    async def drain(self) -> None:
        """Wait for the reads that share a hop, and for hops whose callers were cancelled."""
        await self._readers.drain()
        await self._hops.drain()

    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, a writer from its start: it never has to be upgraded."""
        async with self._turn():
            return await self._hops.run(run_in_worker(engine, work, WRITE))

    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction."""
        return await self.write(engine, work)

    async def inspect(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work that only looks, in one deferred transaction."""
        return await self._hops.run(run_core_in_worker(engine, work, READ))

    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction, a writer from its start."""
        async with self._turn():
            return await self._hops.run(run_core_in_worker(engine, work, WRITE))

    async def join(
        self, connection: AsyncConnection, work: Work[T], *, schema: str | None, writes: bool
    ) -> T:
        """Run work in one hop; what writes, as a writer from its start and within a savepoint."""
        return await join(connection, work, schema, writes=writes)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be this process's only writer.

        Raises:
            sqlalchemy.exc.TimeoutError: Others of this process took too long, as they do when they
                wait for another process themselves.
        """
        if self._writing.locked():
            try:
                async with asyncio.timeout(self.timeout):
                    await self._writing.acquire()
            except TimeoutError as exc:
                raise sa_exc.TimeoutError(
                    f"found other writers of this process for {self.timeout:g} s, expected a turn"
                ) from exc
        else:
            await self._writing.acquire()
        try:
            yield
        finally:
            self._writing.release()

    def insert(self, table: sa.Table) -> sqlite.Insert:
        """SQLite's INSERT."""
        return sqlite.insert(table)

    def is_any_of(self, column: sa.ColumnElement[T], name: str) -> sa.ColumnElement[bool]:
        """IN with one parameter an item: SQLite has no arrays."""
        return column.in_(sa.bindparam(name, expanding=True, type_=column.type))

    def json_contains(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """A function of ours, which the worker defines on each connection."""
        contained = sa.bindparam(name, type_=sa.JSON(none_as_null=False))
        return sa.func.checkpointer_contains(column, contained, type_=sa.Boolean) == sa.true()

    def json_size(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Its text in UTF-8."""
        return sa.func.length(sa.cast(column, sa.LargeBinary), type_=sa.Integer)

    def lock_schema(self, connection: sa.Connection) -> None:
        """Nothing more to do: `BEGIN IMMEDIATE` holds the file's write lock already."""


async def _open(*args: Any, **options: Any) -> aiosqlite.Connection:
    """Open a file, in a thread that ends with the process, and at once if that fails.

    A thread whose file cannot be opened still tells the event loop that it ends: where the loop is
    closed by then, it would print a traceback. And aiosqlite forgets the connection that its thread
    has opened by the time that the call is cancelled.
    """
    opened: list[sqlite3.Connection] = []
    make = options.pop("factory", sqlite3.Connection)

    def factory(*given: Any, **named: Any) -> sqlite3.Connection:
        opened.append(make(*given, **named))
        return opened[0]

    connection = aiosqlite.connect(*args, factory=factory, **options)
    # Before its version 0.22, the connection is the thread. Where neither is, it ends as it likes.
    thread: object = getattr(connection, "_thread", connection)

    def end() -> None:
        if isinstance(thread, Thread) and thread.is_alive():
            thread.join()
        for one in opened:
            with suppress(sqlite3.ProgrammingError):  # one in memory obeys its own thread alone
                one.close()

    if isinstance(thread, Thread):
        thread.daemon = True  # SQLAlchemy's dialect sets this as well
    try:
        return await connection
    except BaseException:
        await asyncio.to_thread(end)
        raise


def _set_up(dbapi_connection: Any, record: ConnectionPoolEntry, *, timeout: float) -> None:
    """Prepare a new connection of SQLite."""
    del record
    # DDL, too, has to wait for our own BEGIN: the legacy mode commits it at once and leaves half a
    # migration behind.
    dbapi_connection.isolation_level = None
    try:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(timeout * 1000)}")
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            # What cannot be written is read in the mode that it has.
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
        # No acknowledged checkpoint is lost at power loss.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()
    except BaseException:
        dbapi_connection.close()  # the pool would leave it to end when it likes
        raise


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")
