"""PostgreSQL: work runs over asyncpg's own connection, or over SQLAlchemy's for other drivers."""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from checkpointer import pooler
from checkpointer.dialect import CoreWork, Dialect, Work
from checkpointer.errors import InvalidInputError
from checkpointer.execution import CoreConnection, schema_of
from checkpointer.limits import Limit
from checkpointer.quoting import quoted
from checkpointer.rereading import read_steadily
from checkpointer.wire import DRIVER, close_in_time, is_usable, run_on_wire, wrapping_errors

T = TypeVar("T")

MIGRATION_LOCK: Final = 0x636865636B707472
"""The key of PostgreSQL's advisory lock round migrations: "checkptr" in ASCII."""


_CHECKOUT: Final = 3
"""Timeouts until a connection is there: a turn in the pool, connecting, and what the pool asks."""

POOL_SIZE: Final = 20
"""Connections to a server that an engine of our own keeps: the official savers' usual pool."""

_CONNECT_TIMEOUTS: Final[dict[str, tuple[str, Callable[[float], float]]]] = {
    "asyncpg": ("timeout", float),
    "psycopg": ("connect_timeout", ceil),
}
"""What drivers call the seconds that connecting may take."""


class PostgreSQL(Dialect):
    """PostgreSQL, through any async driver."""

    name = "postgresql"
    async_driver = "asyncpg"
    upgrades_on_first_use = False
    max_list = 50_000
    locks_rows = True
    statements_travel = True
    has_arrays = True
    has_schemas = True

    def pool_options(self) -> dict[str, Any]:
        """As many connections as the official savers', and no endless wait for one."""
        return {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": self.timeout}

    def connect_args(self, url: sa.URL) -> dict[str, Any]:
        """How long connecting may take, unless the URL says so; and what poolers need."""
        name, unit = _CONNECT_TIMEOUTS.get(url.get_driver_name(), ("", float))
        limit = {name: unit(self.timeout)} if name and name not in url.query else {}
        return limit | pooler.connect_args(url)

    def prepare(self, engine: AsyncEngine) -> None:
        """See that closing a connection waits for no server that is gone."""
        if engine.driver == DRIVER:
            event.listen(engine.sync_engine, "close", partial(close_in_time, engine.sync_engine))

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
        async with Limit(self.timeout) as limit:
            limit.extend(_CHECKOUT)
            return await self._run_core(engine, work, None, limit)

    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction, which may take as long as it needs."""
        return await self._run_core(engine, work, "READ COMMITTED")

    async def _run(self, engine: AsyncEngine, work: Work[T], level: IsolationLevel | None) -> T:
        """Run work in a transaction of that level, or without one each statement in its own."""
        async with Limit(self.timeout) as limit:
            limit.extend(_CHECKOUT)
            if is_usable(engine.sync_engine):
                return await run_on_wire(engine.sync_engine, work, limit, level)

            def work_on_core(core: sa.Connection) -> T:
                return work(CoreConnection(core, limit.extend, schema_of(engine.sync_engine)))

            return await self._run_core(engine, work_on_core, level, limit)

    async def _run_core(
        self,
        engine: AsyncEngine,
        work: CoreWork[T],
        level: IsolationLevel | None,
        limit: Limit | None = None,
    ) -> T:
        with wrapping_errors(engine.sync_engine):
            async with engine.connect() as connection:
                if limit is not None:
                    limit.extend()
                await connection.execution_options(isolation_level=level or "AUTOCOMMIT")
                if level is None:
                    return await connection.run_sync(work)
                async with connection.begin():
                    return await connection.run_sync(work)

    async def join(
        self, connection: AsyncConnection, work: Work[T], *, schema: str | None, writes: bool
    ) -> T:
        """Run work over SQLAlchemy's connection, within a savepoint.

        Reads, too: after a statement that failed outside of one, COMMIT rolls all back unsaid.
        """

        def work_on_core(core: sa.Connection) -> T:
            joined = CoreConnection(core, limit.extend, schema)
            with core.begin_nested():
                return work(joined) if writes else read_steadily(joined, self, work)

        async with Limit(self.timeout) as limit:
            limit.extend()
            with wrapping_errors(connection.engine.sync_engine):
                return await connection.run_sync(work_on_core)

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

    def json_size(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """As it stands in the row, without reading it."""
        return sa.func.pg_column_size(column, type_=sa.Integer)

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
                f"found the {kind} {quoted(value)} with a NUL character, expected text without: "
                f"PostgreSQL cannot store it; remove the character"
            )
        super().check_identifier(kind, value)
