"""A database URL, to an async engine with the hooks that we need."""

import os
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpointer.dialect import Dialect
from checkpointer.dialects import dialect_named
from checkpointer.errors import ConfigurationError, DriverError
from checkpointer.execution import SCHEMA_MAP
from checkpointer.limits import TIMEOUT
from checkpointer.quoting import quoted

URL_VARIABLE: Final = "CHECKPOINTER_URL"
SCHEMA_VARIABLE: Final = "CHECKPOINTER_SCHEMA"
DEFAULT_URL: Final = "sqlite+aiosqlite:///checkpoints.db"

MAX_PORT: Final = 65535

MAX_SCHEMA_BYTES: Final = 63
"""What PostgreSQL keeps of a name."""

_SQLALCHEMY_OPTIONS: Final = frozenset(
    {"prepared_statement_cache_size", "prepared_statement_name_func", "async_creator_fn"}
)
"""What SQLAlchemy takes out of a URL before asyncpg sees it."""

_SHOWN: Final = frozenset(
    {
        *("host", "hostaddr", "port", "user", "dbname", "service", "application_name"),
        *("ssl", "sslmode", "target_session_attrs", "connect_timeout", "timeout"),
        *("command_timeout", "prepare_threshold", "statement_cache_size"),
        *("prepared_statement_cache_size", "mode", "cache", "immutable", "uri"),
    }
)
"""What is shown of a URL's query. What drivers take besides may hold a password or a key."""

_PACKAGES: Final = {"aiosqlite": "aiosqlite", "asyncpg": "asyncpg", "psycopg": "psycopg[binary]"}


def resolve_url(url: str | sa.URL | None = None) -> sa.URL:
    """A URL with an async driver.

    Without one, the environment's `CHECKPOINTER_URL` is taken, and without that a file
    `checkpoints.db` in the working directory. `sqlite:///x.db`, `postgres://` and `postgresql://`
    are given their async drivers; libpq's `sslmode` becomes asyncpg's `ssl`,
    and its `channel_binding` is dropped. A server's `user` and `password` leave the query.

    Raises:
        ConfigurationError: It is no URL, or of a kind of database that is not supported.
    """
    source = "the URL passed in"
    if url is None:
        source = f"the environment variable {URL_VARIABLE}"
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    parsed = _parsed(url)
    if parsed is None:
        raise ConfigurationError(
            f"{source} is no database URL; expected one such as {DEFAULT_URL} or "
            f"postgresql+asyncpg://user:password@host/database, with special characters of the "
            f"password percent-encoded (@ is %40)"
        )
    if parsed.port is not None and not 0 < parsed.port <= MAX_PORT:
        raise ConfigurationError(
            f"{source} has the port {parsed.port}, expected one from 1 to {MAX_PORT}"
        )
    backend, _, driver = parsed.drivername.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    dialect = dialect_named(backend)
    driver = driver or dialect.async_driver
    query = dict(parsed.query)
    if driver == "asyncpg":
        # As hosted databases hand URLs out, for libpq: asyncpg chooses the binding by itself.
        query.pop("channel_binding", None)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
    drivername = f"{backend}+{driver}"
    if not dialect.upgrades_on_first_use:
        # SQLAlchemy, too, hides a password that stands before the host. As with libpq, what is said
        # last holds.
        user, password = (_last(query.pop(name, None)) for name in ("user", "password"))
        parsed = parsed.set(username=user, password=password)
    return parsed.set(drivername=drivername, query=query)


def _check_asyncpg_options(query: Mapping[str, object]) -> None:
    """Refuse what asyncpg's `connect` would refuse at the first connection, with a TypeError."""
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - SQLite needs none of it

    known = signature(asyncpg.connect).parameters.keys() | _SQLALCHEMY_OPTIONS
    if unknown := sorted(query.keys() - known):
        raise ConfigurationError(
            f"found the URL's option {quoted(unknown[0])}, which asyncpg does not know, expected "
            f"its own or sslmode; for certificates set the environment's PGSSLROOTCERT, PGSSLCERT "
            f"and PGSSLKEY, or use postgresql+psycopg://, which takes libpq's options"
        )


def _parsed(url: str | sa.URL) -> sa.URL | None:
    """A URL in its parts, or `None` if it is none: errors of parsing would quote parts of it."""
    try:
        parsed = sa.make_url(url)
    except (sa_exc.ArgumentError, ValueError):
        return None
    if isinstance(url, str) and parsed.password is not None:
        # An @ after the first one: the password went on, and its rest would be shown as a host.
        rest = url.partition("://")[2].partition(":")[2].partition("@")[2]
        if "@" in rest.partition("=")[0]:
            return None
    return parsed


def _last(value: str | tuple[str, ...] | None) -> str | None:
    return value[-1] if isinstance(value, tuple) else value


def shown(url: sa.URL) -> str:
    """A URL for people and logs: without its password, and without what its query may hold."""
    file, mark, query = (url.database or "").partition("?")
    if query:  # of a SQLite URI
        url = url.set(database=f"{file}{mark}hidden")
    hidden = dict.fromkeys(url.query.keys() - _SHOWN, "hidden")
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def is_absent(url: sa.URL) -> bool:
    """Whether a URL names a file that is not there: to connect would make an empty one."""
    path = url.database or ""
    in_file = dialect_named(url.get_backend_name()).upgrades_on_first_use
    return (
        in_file and not path.startswith((":", "file:")) and bool(path) and not Path(path).exists()
    )


def create_engine(
    url: sa.URL,
    engine_options: Mapping[str, Any] | None = None,
    *,
    timeout: float = TIMEOUT,
    schema: str | None = None,
) -> AsyncEngine:
    """An async engine with the hooks that we need. Does no I/O.

    Args:
        url: The database.
        engine_options: Options of SQLAlchemy's `create_async_engine`, in place of ours.
        timeout: Seconds to wait for a connection, or for another process's transaction.
        schema: Where the tables stand, as `resolve_schema` returns it.

    Raises:
        DriverError: The URL's driver is unknown, not async, or not installed.
        ConfigurationError: SQLAlchemy or the driver does not know an option, or cannot use the
            URL.
    """
    _check_driver(url)
    given = engine_options or {}
    dialect = dialect_named(url.get_backend_name(), timeout=timeout)
    options: dict[str, Any] = {"hide_parameters": True}
    if given.keys().isdisjoint({"pool", "poolclass"}):
        options |= dialect.pool_options()
    options |= given
    connect_args = dialect.connect_args(url) | options.get("connect_args", {})
    try:
        engine = create_async_engine(url, **options | {"connect_args": connect_args})
    except ModuleNotFoundError as exc:
        package = _PACKAGES.get(url.get_driver_name(), exc.name or url.get_driver_name())
        raise DriverError(
            f"found that the driver of {url.drivername}:// is not installed, expected the package "
            f"{package}; run: pip install '{package}'"
        ) from exc
    except sa_exc.ArgumentError:
        engine = None  # and no cause below, because it quotes the URL with its query
    except TypeError as exc:
        raise ConfigurationError(
            f"found the engine options {sorted(given)}, expected those of SQLAlchemy's "
            f"create_async_engine: {exc}"
        ) from exc
    if engine is None:
        raise ConfigurationError(
            f"found the URL {shown(url)}, expected one such as sqlite:///x.db (three slashes, or "
            f"four before an absolute path) or postgresql+asyncpg://user:password@host/database"
        )
    if url.get_driver_name() == "asyncpg":
        _check_asyncpg_options(url.query)
    dialect.prepare(engine)
    return in_schema(engine, schema)


def create_plain_engine(url: sa.URL) -> AsyncEngine:
    """An async engine without our hooks, which switch a SQLite file to WAL: for what is only read.

    Raises:
        DriverError: As `create_engine` does.
        ConfigurationError: The same.
    """
    dialect = dialect_named(create_engine(url).url.get_backend_name())
    connect_args = dialect.connect_args(url)
    return create_async_engine(url, connect_args=connect_args, hide_parameters=True)


def resolve_schema(schema: str | None, dialect: Dialect, *, chosen: bool) -> str | None:
    """The schema that the tables stand in, `None` for the database's own default.

    Without one, the environment's `CHECKPOINTER_SCHEMA` is taken for PostgreSQL.

    Args:
        schema: The one asked for.
        dialect: The kind of database.
        chosen: Whether the program itself named the database, and not the environment. If so, the
            environment's schema means nothing on a database that has none: a process may use one
            of each kind.

    Raises:
        ConfigurationError: It is no name of a schema, or the database has no schemas.
    """
    source = "schema"
    if schema is None and (dialect.has_schemas or not chosen):
        source = f"the environment's {SCHEMA_VARIABLE}"
        schema = os.environ.get(SCHEMA_VARIABLE) or None
    if schema is None:
        return None
    if not dialect.has_schemas:
        raise ConfigurationError(
            f"found {source}={quoted(schema)} for SQLite, which has no schemas, expected "
            f"PostgreSQL; leave the schema out, and give each store a file of its own"
        )
    if not _is_schema_name(schema):
        raise ConfigurationError(
            f"found {source}={quoted(schema)}, expected the name of a PostgreSQL schema: text of "
            f"1 to {MAX_SCHEMA_BYTES} bytes in UTF-8, without NUL and square brackets"
        )
    return schema


def _is_schema_name(schema: object) -> bool:
    # SQLAlchemy cannot put a table into a schema whose name has brackets.
    if not isinstance(schema, str) or not {"\0", "[", "]"}.isdisjoint(schema):
        return False
    try:
        return 1 <= len(schema.encode()) <= MAX_SCHEMA_BYTES
    except UnicodeEncodeError:
        return False


def in_schema(engine: AsyncEngine, schema: str | None) -> AsyncEngine:
    """An engine whose statements find our tables in a schema: the same pool, with other options."""
    if schema is None:
        return engine
    schemas = engine.get_execution_options().get(SCHEMA_MAP) or {}
    return engine.execution_options(**{SCHEMA_MAP: {**schemas, None: schema}})


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
