"""All that differs between databases; no other module asks for a dialect's name.

A unit of work is a plain function of a `Connection`. On PostgreSQL it runs over asyncpg's own
connection, or over SQLAlchemy's for other drivers; on SQLite, all of it runs inside aiosqlite's
worker thread, in one hop.
"""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from checkpointer.errors import ConfigurationError, InvalidInputError
from checkpointer.execution import Connection, CoreConnection
from checkpointer.readers import Readers
from checkpointer.wire import DRIVER, is_watched, run_on_wire
from checkpointer.worker import READ, WRITE, run_core_in_worker, run_in_worker

T = TypeVar("T")
Work = Callable[[Connection], T]
CoreWork = Callable[[sa.Connection], T]
Insert = postgresql.Insert | sqlite.Insert

MIGRATION_LOCK: Final = 0x636865636B707472
"""The key of PostgreSQL's advisory lock round migrations: "checkptr" in ASCII."""


POOL_SIZE: Final = 20
"""Connections to a server that an engine of our own keeps: the official savers' usual pool."""


class Dialect(ABC):
    """One kind of database: how it runs work, and the statements it spells in its own way."""

    name: ClassVar[str]
    async_driver: ClassVar[str]
    upgrades_on_first_use: ClassVar[bool]
    max_list: ClassVar[int]
    """Items that one statement may take in a list (see `is_any_of`)."""

    pool_options: ClassVar[dict[str, Any]]
    """Options of an engine of our own, unless the caller chooses another pool."""

    has_arrays: ClassVar[bool]
    """Whether rows may be passed as one array a column, and changed in WITH clauses."""

    @abstractmethod
    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads. Its statements need not see one snapshot."""

    @abstractmethod
    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same."""

    @abstractmethod
    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, which may write, and commit it."""

    @abstractmethod
    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that puts a batch, so that all of a thread's puts are stored or none."""

    @abstractmethod
    async def inspect(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work that only looks, on SQLAlchemy's own connection."""

    @abstractmethod
    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction on SQLAlchemy's own connection, and commit it."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait for what still runs for callers that were cancelled."""

    @abstractmethod
    def insert(self, table: sa.Table) -> Insert:
        """An INSERT that knows ON CONFLICT."""

    @abstractmethod
    def is_any_of(self, column: sa.ColumnElement[T], name: str) -> sa.ColumnElement[bool]:
        """Whether `column` equals an item of the list bound as `name`."""

    @abstractmethod
    def json_contains(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Whether a JSON column contains the object bound as `name`: PostgreSQL's `@>`."""

    @abstractmethod
    def is_unavailable(self, exc: sa_exc.DBAPIError) -> bool:
        """Whether an error says that the database cannot be reached, or is held by others."""

    @abstractmethod
    def lock_schema(self, connection: sa.Connection) -> None:
        """Within a transaction: let only one migration of this database run at a time."""

    def check_identifier(self, kind: str, value: str) -> None:
        """Refuse an identifier that the database's text columns cannot hold.

        Raises:
            InvalidInputError: It holds a lone surrogate.
        """
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInputError(
                f"found the {kind} {value!r} with the lone surrogate {value[exc.start]!r}, "
                f"expected Unicode text; replace that character"
            ) from exc


class PostgreSQL(Dialect):
    """PostgreSQL, through any async driver."""

    name = "postgresql"
    async_driver = "asyncpg"
    upgrades_on_first_use = False
    max_list = 50_000
    pool_options: ClassVar = {"pool_size": POOL_SIZE, "max_overflow": 0}
    has_arrays = True

    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in autocommit: no BEGIN and no ROLLBACK travel."""
        return await self._run(engine, work, None)

    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in one REPEATABLE READ transaction."""
        return await self._run(engine, work, "REPEATABLE READ")

    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, of a level at which waiting for a lock shows what it hid.

        An engine that was passed in may have another level, or autocommit.
        """
        return await self._run(engine, work, "READ COMMITTED")

    async def inspect(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work that only looks, in autocommit."""
        return await self._run_core(engine, work, None)

    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction."""
        return await self._run_core(engine, work, "READ COMMITTED")

    async def _run(self, engine: AsyncEngine, work: Work[T], level: IsolationLevel | None) -> T:
        """Run work in a transaction of that level, or without one each statement in its own."""
        if engine.driver == DRIVER and not is_watched(engine.sync_engine):
            return await run_on_wire(engine.sync_engine, work, level)
        return await self._run_core(engine, lambda core: work(CoreConnection(core)), level)

    async def _run_core(
        self, engine: AsyncEngine, work: CoreWork[T], level: IsolationLevel | None
    ) -> T:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=level or "AUTOCOMMIT")
            if level is None:
                return await connection.run_sync(work)
            async with connection.begin():
                return await connection.run_sync(work)

    async def drain(self) -> None:
        """Nothing to wait for: what is cancelled is cut off."""

    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run single statements, each a transaction of its own: one round trip a batch."""
        return await self._run(engine, work, None)

    def insert(self, table: sa.Table) -> postgresql.Insert:
        """PostgreSQL's INSERT."""
        return postgresql.insert(table)

    def is_any_of(self, column: sa.ColumnElement[T], name: str) -> sa.ColumnElement[bool]:
        """One array parameter, so that the statement stays the same for any number of items."""
        return column == sa.any_(sa.bindparam(name, type_=postgresql.ARRAY(column.type)))

    def json_contains(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """The operator itself."""
        contained = sa.bindparam(name, type_=postgresql.JSONB(none_as_null=False))
        return column.bool_op("@>")(contained)

    def is_unavailable(self, exc: sa_exc.DBAPIError) -> bool:
        """A lost connection, or SQLSTATE class 08 (connection) or 57P (shutting down)."""
        state = str(getattr(exc.orig, "sqlstate", None) or "")
        return exc.connection_invalidated or state.startswith(("08", "57P"))

    def lock_schema(self, connection: sa.Connection) -> None:
        """A transaction's advisory lock: a session's would outlive it behind a pooler."""
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))

    def check_identifier(self, kind: str, value: str) -> None:
        """Refuse NUL as well, which PostgreSQL's text cannot hold.

        Raises:
            InvalidInputError: It holds NUL or a lone surrogate.
        """
        if "\0" in value:
            raise InvalidInputError(
                f"found the {kind} {value!r} with a NUL character, expected text without: "
                f"PostgreSQL cannot store it; remove the character"
            )
        super().check_identifier(kind, value)


class SQLite(Dialect):
    """SQLite, through aiosqlite."""

    name = "sqlite"
    async_driver = "aiosqlite"
    upgrades_on_first_use = True
    # Three lists are a statement's most, and SQLite takes 32,766 variables in it since 3.32, of the
    # year 2020; lists are filled up to a power of two.
    max_list = 8192
    # Our transactions end before a connection is given back; a reset would be one more hop.
    pool_options: ClassVar = {"pool_reset_on_return": None}
    has_arrays = False

    def __init__(self) -> None:
        # Only one transaction may write to a file. Those of this process wait for each other here
        # and not in SQLite, which sleeps between two looks, up to 0.1 s, with a thread each.
        self._writing = asyncio.Lock()
        self._readers = Readers()

    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in one deferred transaction: one snapshot."""
        return await self._readers.read(engine.sync_engine, work)

    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """The same, in a transaction of its own."""
        return await run_in_worker(engine.sync_engine, work, READ)

    async def drain(self) -> None:
        """Wait for the reads that share a hop."""
        await self._readers.drain()

    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, a writer from its start: it never has to be upgraded."""
        async with self._writing:
            return await run_in_worker(engine.sync_engine, work, WRITE)

    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction."""
        return await self.write(engine, work)

    async def inspect(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work that only looks, in one deferred transaction."""
        return await run_core_in_worker(engine.sync_engine, work, READ)

    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction, a writer from its start."""
        async with self._writing:
            return await run_core_in_worker(engine.sync_engine, work, WRITE)

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

    def is_unavailable(self, exc: sa_exc.DBAPIError) -> bool:
        """Another transaction held the file, or our own connection, for longer than we wait."""
        code = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF
        return exc.connection_invalidated or code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

    def lock_schema(self, connection: sa.Connection) -> None:
        """Nothing more to do: `BEGIN IMMEDIATE` holds the file's write lock already."""


def dialect_of(engine: AsyncEngine) -> Dialect:
    """The kind of database behind an engine, told by `engine.dialect` alone.

    Raises:
        ConfigurationError: It is none of those that this package supports.
    """
    return dialect_named(engine.dialect.name)


def dialect_named(name: str) -> Dialect:
    """The dialect that SQLAlchemy calls `name`.

    Raises:
        ConfigurationError: It is none of those that this package supports.
    """
    for dialect in (PostgreSQL, SQLite):
        if dialect.name == name:
            return dialect()
    raise ConfigurationError(
        f"found a database of the kind {name!r}, expected postgresql or sqlite; use a URL that "
        f"starts with postgresql+asyncpg:// or sqlite+aiosqlite:///"
    )


def prepare_engine(engine: AsyncEngine, *, busy_timeout: float) -> None:
    """Install the hooks that an engine of our own needs; only SQLite needs any.

    Args:
        engine: The engine, not yet connected.
        busy_timeout: Seconds to wait for another process's transaction.
    """
    if engine.dialect.name != SQLite.name:
        return

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        del record
        # DDL, too, has to wait for our own BEGIN: the legacy mode commits it at once and leaves
        # half a migration behind.
        dbapi_connection.isolation_level = None
        try:
            cursor = dbapi_connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {round(busy_timeout * 1000)}")
            cursor.execute("PRAGMA journal_mode = WAL")
            # No acknowledged checkpoint is lost at power loss.
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.close()
        except BaseException:
            dbapi_connection.close()  # the pool would leave it to end when it likes
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")
