"""A database URL or an engine, to a `Database` that runs work on it."""

import os
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpointer.dialects import CoreWork, Work, dialect_named, dialect_of, prepare_engine
from checkpointer.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    DriverError,
)

T = TypeVar("T")

URL_VARIABLE: Final = "CHECKPOINTER_URL"
DEFAULT_URL: Final = "sqlite+aiosqlite:///checkpoints.db"
BUSY_TIMEOUT: Final = 30.0
"""Seconds that SQLite waits for another process's transaction."""

_SECRETS: Final = {"password", "sslpassword", "passfile"}
_PACKAGES: Final = {"aiosqlite": "aiosqlite", "asyncpg": "asyncpg", "psycopg": "psycopg[binary]"}


def resolve_url(url: str | sa.URL | None = None) -> sa.URL:
    """A URL with an async driver.

    Without one, the environment's `CHECKPOINTER_URL` is taken, and without that a file
    `checkpoints.db` in the working directory. `sqlite:///x.db`, `postgres://` and `postgresql://`
    are given their async drivers; libpq's `sslmode` becomes asyncpg's `ssl`,
    and its `channel_binding` is dropped.

    Raises:
        ConfigurationError: It is no URL, or of a kind of database that is not supported.
    """
    source = "the URL passed in"
    if url is None:
        source = f"the environment variable {URL_VARIABLE}"
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        parsed = sa.make_url(url)
    except (sa_exc.ArgumentError, ValueError) as exc:
        raise ConfigurationError(
            f"{source} is no database URL; expected one such as {DEFAULT_URL} or "
            f"postgresql+asyncpg://user:password@host/database"
        ) from exc
    backend, _, driver = parsed.drivername.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    driver = driver or dialect_named(backend).async_driver
    query = dict(parsed.query)
    if driver == "asyncpg":
        # As hosted databases hand URLs out, for libpq: asyncpg chooses the binding by itself.
        query.pop("channel_binding", None)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
    return parsed.set(drivername=f"{backend}+{driver}", query=query)


def shown(url: sa.URL) -> str:
    """A URL for people and logs: without passwords, also without those in its query."""
    hidden = dict.fromkeys(url.query.keys() & _SECRETS, "hidden")
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def create_engine(url: sa.URL, **engine_options: Any) -> AsyncEngine:
    """An async engine with the hooks that we need. Does no I/O.

    Raises:
        DriverError: The URL's driver is unknown, not async, or not installed.
        ConfigurationError: SQLAlchemy does not know an option, or cannot use the URL.
    """
    _check_driver(url)
    options: dict[str, Any] = {"hide_parameters": True}
    if engine_options.keys().isdisjoint({"pool", "poolclass"}):
        options |= dialect_named(url.get_backend_name()).pool_options
    try:
        engine = create_async_engine(url, **options | engine_options)
    except ModuleNotFoundError as exc:
        package = _PACKAGES.get(url.get_driver_name(), exc.name or url.get_driver_name())
        raise DriverError(
            f"found that the driver of {url.drivername}:// is not installed, expected the package "
            f"{package}; run: pip install '{package}'"
        ) from exc
    except sa_exc.ArgumentError as exc:
        raise ConfigurationError(
            f"found the URL {shown(url)}, expected one such as sqlite:///x.db (three slashes, or "
            f"four before an absolute path) or postgresql+asyncpg://user:password@host/database"
        ) from exc
    except TypeError as exc:
        raise ConfigurationError(
            f"found the engine options {sorted(engine_options)}, expected those of SQLAlchemy's "
            f"create_async_engine: {exc}"
        ) from exc
    prepare_engine(engine, busy_timeout=BUSY_TIMEOUT)
    return engine


def _check_driver(url: sa.URL) -> None:
    """Refuse a driver that is unknown or not async, before it is imported."""
    expected = f"{url.get_backend_name()}+{dialect_named(url.get_backend_name()).async_driver}"
    try:
        dialect = url.get_dialect()
    except sa_exc.NoSuchModuleError as exc:
        raise DriverError(
            f"found the unknown database driver in {url.drivername}://, expected {expected}://"
        ) from exc
    if not dialect.get_async_dialect_cls(url).is_async:
        raise DriverError(
            f"found the driver of {url.drivername}://, which is not async, expected one that is; "
            f"use {expected}://"
        )


class Database:
    """An engine, and the one way to run work on it.

    Args:
        engine: Any async engine of a supported database.
        owned: Whether `dispose` closes it: true for an engine that we made ourselves.
    """

    def __init__(self, engine: AsyncEngine, *, owned: bool) -> None:
        self.engine = engine
        self.owned = owned
        self.dialect = dialect_of(engine)

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.read(self.engine, work))

    async def read_snapshot(self, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.read_snapshot(self.engine, work))

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction and commit it. Nothing is stored if it raises.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.write(self.engine, work))

    async def put(self, work: Work[T]) -> T:
        """Run work that puts a batch. Of each thread, all is stored and committed, or nothing.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.put(self.engine, work))

    async def inspect(self, work: CoreWork[T]) -> T:
        """Run work that only looks, on SQLAlchemy's own connection.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.inspect(self.engine, work))

    async def migrate(self, work: CoreWork[T]) -> T:
        """Run work in one transaction on SQLAlchemy's own connection, and commit it.

        Raises:
            DatabaseError: The database refused or failed.
        """
        return await self._translating(self.dialect.migrate(self.engine, work))

    async def _translating(self, running: Awaitable[T]) -> T:
        try:
            return await running
        except (sa_exc.SQLAlchemyError, OSError) as exc:
            raise self._translated(exc) from exc

    async def dispose(self) -> None:
        """Close the engine's connections, if the engine is ours."""
        await self.dialect.drain()
        if self.owned:
            await self.engine.dispose()

    def _translated(self, exc: Exception) -> DatabaseError:
        where = shown(self.engine.url)
        if isinstance(exc, sa_exc.DBAPIError):
            lost = self.dialect.is_unavailable(exc)
            reason = f"{type(exc.orig).__name__}: {exc.orig}"
        else:
            lost = isinstance(exc, OSError | sa_exc.TimeoutError)
            reason = f"{type(exc).__name__}: {exc}"
        if lost:
            return DatabaseUnavailableError(f"the database {where} cannot be reached: {reason}")
        return DatabaseError(f"the database {where} refused: {reason}")
