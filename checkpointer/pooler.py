"""Poolers such as PgBouncer: how one is told from a server, and how drivers connect through it.

In transaction mode, a pooler may give each transaction another connection to the server. What was
prepared on one is unknown on the next, or stands there for another process's statement.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import AdaptedConnection

from checkpointer.errors import ConfigurationError
from checkpointer.limits import TIMEOUT

Connect: TypeAlias = Callable[..., Awaitable[Any]]

_CACHE: Final = "statement_cache_size"
_THRESHOLD: Final = "prepare_threshold"

_NUMBERS: Final[dict[str, type[int] | type[float]]] = {
    _CACHE: int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
    "timeout": float,
    "command_timeout": float,
}
"""Options of asyncpg that it takes as numbers; in a URL they are text."""

_pooled: Final = WeakKeyDictionary[Any, bool]()
"""What is known of connections of asyncpg."""


def is_pooled(adapted: AdaptedConnection) -> bool:
    """Whether a pooler stands between a connection of asyncpg and the server.

    Asked once a connection; within a greenlet, as work on a connection is.

    Args:
        adapted: SQLAlchemy's connection round it.
    """
    pooled = _pooled.get(adapted.driver_connection)
    return adapted.run_async(_ask_asyncpg) if pooled is None else pooled


def connect_args(url: sa.URL) -> dict[str, Any]:
    """What has the connections of an engine of our own work through a pooler.

    Nothing is changed where the URL, or an option of the driver, says how much to prepare.

    Raises:
        ConfigurationError: The URL gives asyncpg an option that should be a number and is none.
    """
    driver = url.get_driver_name()
    if driver == "psycopg":
        return {"async_creator_fn": _connect_psycopg}
    if driver != "asyncpg":
        return {}
    args: dict[str, Any] = {"async_creator_fn": _Asyncpg().connect}
    for name in _NUMBERS.keys() & url.query.keys():
        text = str(url.query[name])
        try:
            args[name] = _NUMBERS[name](text)
        except ValueError as exc:
            raise ConfigurationError(
                f"found {name}={text} in the URL, expected a number; see asyncpg.connect"
            ) from exc
    return args


class _Asyncpg:
    """Connects asyncpg: as ever, until a pooler is met, and then so that it keeps no statement."""

    def __init__(self) -> None:
        self._met = False

    async def connect(self, *args: Any, **options: Any) -> Any:
        """A new connection."""
        import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415

        if self._met:
            options = {_CACHE: 0} | options
        connection = await asyncpg.connect(*args, **options)
        if _CACHE in options:
            return connection
        try:
            async with asyncio.timeout(options.get("timeout", TIMEOUT)):
                self._met = await _ask_asyncpg(connection)
        except BaseException:
            connection.terminate()
            raise
        if not self._met:
            return connection
        connection.terminate()
        return await self.connect(*args, **options)


async def _connect_psycopg(*args: Any, **options: Any) -> Any:
    """A new connection of psycopg, which prepares nothing if there is a pooler."""
    from psycopg import AsyncConnection  # noqa: PLC0415

    connection = await AsyncConnection.connect(*args, **options)
    try:
        async with asyncio.timeout(float(options.get("connect_timeout") or TIMEOUT)):
            if _THRESHOLD not in options and await _ask_psycopg(connection):
                connection.prepare_threshold = None
    except BaseException:
        await connection.close()
        raise
    return connection


async def _ask_asyncpg(connection: Any) -> bool:
    pooled: bool = await connection.execute(_question(connection.get_server_pid())) == "SELECT 0"
    _pooled[connection] = pooled
    return pooled


async def _ask_psycopg(connection: Any) -> bool:
    cursor = await connection.execute(_question(connection.info.backend_pid))
    await connection.rollback()
    return bool(cursor.rowcount == 0)


def _question(process: int) -> str:
    """One row if a connection leads to the server's process that greeted it, and nothing prepared.

    A pooler greets clients before it has a server for them, and makes the process's number up.
    """
    return f"SELECT WHERE pg_backend_pid() = {process}"
