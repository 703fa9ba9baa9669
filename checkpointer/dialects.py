"""All that differs between databases; no other module asks for a dialect's name.

A unit of work is a plain function of a SQLAlchemy `Connection`. PostgreSQL runs it over the
engine's own async connection; SQLite runs all of it inside aiosqlite's worker thread, in one hop.
"""

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
from checkpointer.worker import run_in_worker

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
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
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            return await connection.run_sync(work)

    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in one REPEATABLE READ transaction."""
        return await self._transact(engine, work, "REPEATABLE READ")

    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, of a level at which waiting for a lock shows what it hid.

        An engine that was passed in may have another level, or autocommit.
        """
        return await self._transact(engine, work, "READ COMMITTED")

    async def _transact(self, engine: AsyncEngine, work: Work[T], level: IsolationLevel) -> T:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=level)
            async with connection.begin():
                return await connection.run_sync(work)

    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run single statements, each a transaction of its own: one round trip a batch."""
        return await self.read(engine, work)

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
    # Variables of a statement: SQLite takes 32,766 of them since 3.32, of the year 2020.
    max_list = 10_000
    # Our transactions end before a connection is given back; a reset would be one more hop.
    pool_options: ClassVar = {"pool_reset_on_return": None}
    has_arrays = False

    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, in one deferred transaction: one snapshot."""
        return await run_in_worker(engine, work, "BEGIN")

    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """The same as `read`."""
        return await self.read(engine, work)

    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, a writer from its start: it never has to be upgraded."""
        return await run_in_worker(engine, work, "BEGIN IMMEDIATE")

    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction."""
        return await self.write(engine, work)

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
