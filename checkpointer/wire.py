"""A unit of work on a pooled connection of asyncpg, without SQLAlchemy's execution in between."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, StaticPool

from checkpointer.execution import (
    SCHEMA_MAP,
    DriverConnection,
    greenlet_spawn,
    not_free,
    schema_of,
)
from checkpointer.limits import Limit
from checkpointer.pooler import is_pooled
from checkpointer.renewal import is_outdated, renew

T = TypeVar("T")

_EVENTS: Final = (
    "engine_connect",
    "begin",
    "commit",
    "rollback",
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
)

SLOW_CLOSE: Final = 1.0
"""Seconds after which a server is held to be gone that does not let a connection end."""

DRIVER: Final = "asyncpg"
"""The driver that this module knows, as SQLAlchemy's dialect names it."""


class WireConnection(DriverConnection):
    """A connection of asyncpg, which keeps the statements that it has prepared."""

    def __init__(
        self,
        adapted: AdaptedConnection,
        dialect: sa.Dialect,
        limit: Limit,
        schema: str | None = None,
    ) -> None:
        super().__init__(dialect, schema)
        self.driver: Any = adapted.driver_connection
        self.wait: Callable[[Callable[[Any], Awaitable[Any]]], Any] = adapted.run_async
        self._limit = limit

    def run(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """Run a statement, in one round trip once it is prepared; its rows."""
        rows = self.wait(lambda driver: driver.fetch(sql, *values))
        self._limit.extend()
        return cast("Iterable[Sequence[Any]]", rows)

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values."""
        self.wait(lambda driver: driver.executemany(sql, list(rows)))
        self._limit.extend()


async def run_on_wire(
    engine: sa.Engine,
    work: Callable[[WireConnection], T],
    limit: Limit,
    isolation: str | None = None,
) -> T:
    """Run work on one of the engine's connections.

    Args:
        engine: The sync side of an engine of asyncpg.
        work: Gets the connection.
        limit: How long to wait for each answer.
        isolation: The level of a transaction round the work; without one, each statement is a
            transaction of its own.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused or failed.
    """
    with wrapping_errors(engine):
        return cast("T", await greenlet_spawn(_checked_out, engine, work, limit, isolation))


@contextmanager
def wrapping_errors(engine: sa.Engine) -> Iterator[None]:
    """Raise asyncpg's errors as SQLAlchemy's, which lets those of connecting pass as they are."""
    known = engine.driver == DRIVER
    unwrapped = (*_errors(), cast("Any", engine.dialect).loaded_dbapi.Error) if known else ()
    try:
        yield
    except sa_exc.DBAPIError as exc:
        exc.connection_invalidated |= known and _is_internal(exc.orig)
        raise
    except unwrapped as exc:
        lost = _is_internal(exc)
        raise sa_exc.DBAPIError(None, None, exc, connection_invalidated=lost) from exc


def _checked_out(
    engine: sa.Engine,
    work: Callable[[WireConnection], T],
    limit: Limit,
    isolation: str | None,
) -> T:
    pooled, driver = _open_connection(engine)
    adapted = cast("AdaptedConnection", pooled.dbapi_connection)
    limit.extend()
    try:
        if isolation is None and is_pooled(adapted):
            # asyncpg looks types up between a statement's preparation and its execution, with a
            # setting changed meanwhile: only a transaction keeps all that on one server connection.
            isolation = "READ COMMITTED"
        connection = WireConnection(adapted, engine.dialect, limit, schema_of(engine))
        return work(connection) if isolation is None else _transact(connection, work, isolation)
    except BaseException as exc:
        # What was cut off leaves the connection in a state that nobody knows.
        cut_off = isinstance(exc, TimeoutError) or not isinstance(exc, Exception)
        lost = _is_lost(driver, exc)
        if cut_off or lost or driver.is_in_transaction():
            pooled.invalidate(exc)
        if lost and isinstance(exc, _errors()):
            raise sa_exc.DBAPIError(None, None, exc, connection_invalidated=True) from exc
        raise
    finally:
        pooled.close()


def _open_connection(engine: sa.Engine) -> tuple[PoolProxiedConnection, Any]:
    """A pooled connection, and asyncpg's own; not one that the server has closed meanwhile.

    Raises:
        DatabaseError: The application has a transaction open on it.
    """
    pooled = engine.raw_connection()
    while (driver := cast("Any", pooled.driver_connection)).is_closed():
        pooled.invalidate()
        pooled.close()
        pooled = engine.raw_connection()
    if driver.is_in_transaction():
        if isinstance(engine.pool, StaticPool):
            pooled.close()
            raise not_free("connection")
        # A listener to the pool's events has sent something, a SET for example, which SQLAlchemy
        # puts into a transaction; without an end, our statements would go into it, and be lost.
        pooled.commit()
    return pooled, driver


def _transact(connection: WireConnection, work: Callable[[WireConnection], T], level: str) -> T:
    transaction = connection.driver.transaction(isolation=level.lower().replace(" ", "_"))
    connection.wait(lambda _: transaction.start())
    try:
        done = work(connection)
    except Exception as exc:
        if not _is_lost(connection.driver, exc):
            connection.wait(lambda _: transaction.rollback())
        raise
    connection.wait(lambda _: transaction.commit())
    return done


def close_in_time(engine: sa.Engine, connection: Any, record: ConnectionPoolEntry) -> None:
    """Before a pool closes a connection: asyncpg would wait for the server's answer for ever."""
    if is_outdated(engine.pool, record):
        connection.driver_connection.terminate()
        return
    started = time.monotonic()
    connection.terminate()  # SQLAlchemy's: in good order if that takes no longer than 2 s
    if time.monotonic() - started > SLOW_CLOSE:
        # The others would take as long, one after the other.
        renew(engine.pool)


def _is_lost(driver: Any, exc: BaseException) -> bool:
    """Whether a connection has ended, or is about to."""
    return bool(driver.is_closed()) or _is_internal(exc)


def _is_internal(exc: BaseException | None) -> bool:
    """Whether asyncpg has lost the thread of its protocol; SQLAlchemy does not know that one.

    It does so when a server that shuts down says so just before it is asked something.
    """
    internal = _errors()[-1]
    return isinstance(exc, internal) or isinstance(getattr(exc, "__cause__", None), internal)


@cache
def _errors() -> tuple[type[Exception], ...]:
    """What asyncpg raises; imported late, because programs on SQLite do not need it."""
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415

    return asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError


def is_usable(engine: sa.Engine) -> bool:
    """Whether work may run on asyncpg's own connections, past SQLAlchemy's execution."""
    return engine.driver == DRIVER and greenlet_spawn is not None and not is_watched(engine)


def is_watched(engine: sa.Engine) -> bool:
    """Whether someone wants to see each statement, or changes it: by events, log or options.

    Not by a schema for our tables, which every connection of ours knows.
    """
    if engine.get_execution_options().keys() - {SCHEMA_MAP}:
        return True
    try:
        heard = [getattr(engine.dispatch, name) for name in _EVENTS]
        return any(heard) or engine.logger.isEnabledFor(logging.INFO)
    except AttributeError:
        return True  # SQLAlchemy documents neither: where they are not, anyone might watch
