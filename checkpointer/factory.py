"""`create_saver`: a URL or an engine, to a saver."""

from collections.abc import Mapping
from math import inf
from typing import Any, Final

import sqlalchemy as sa
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer.allowlist import AllowedTypes
from checkpointer.backend import EngineBackend
from checkpointer.database import PATIENCE, Database
from checkpointer.dialects import dialect_named, dialect_of
from checkpointer.engine import create_engine, in_schema, resolve_schema, resolve_url
from checkpointer.errors import ConfigurationError
from checkpointer.execution import schema_of
from checkpointer.figures import Telemetry
from checkpointer.limits import TIMEOUT
from checkpointer.quoting import quoted
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.serde import StrictSerializer

CACHE_BYTES: Final = 64 << 20
"""Bytes of values that are remembered at most, unless told otherwise."""


def create_saver(  # noqa: PLR0913 - one argument an option
    url_or_engine: str | sa.URL | AsyncEngine | None = None,
    *,
    serde: SerializerProtocol | None = None,
    allowed_types: AllowedTypes | None = None,
    cache_bytes: int = CACHE_BYTES,
    patience: float = PATIENCE,
    timeout: float = TIMEOUT,
    schema: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    telemetry: bool = False,
) -> AsyncSQLAlchemySaver:
    """Make a saver. Does no I/O and needs no running event loop.

    The saver is an async and a sync context manager: `async with create_saver(url) as saver` works
    on the event loop that runs; `with create_saver(url) as saver` on one of its own, in a
    background thread, so that plain `graph.invoke(...)` works.

    Args:
        url_or_engine: A database URL such as `postgresql+asyncpg://app@db/app` or
            `sqlite:///checkpoints.db`, or an async engine, which is used as it is and never
            disposed. Without one, the environment's `CHECKPOINTER_URL` is taken, and without that
            the file `checkpoints.db`.
        serde: How values become bytes and back. Without one, LangGraph's own, made lossless.
        allowed_types: The types that are stored and loaded besides LangGraph's safe ones: classes,
            and pairs of a module's name and a class's name in it. Any other raises
            `SerializationError`, and nothing of it is called or imported. An empty list allows the
            safe ones alone. Without one, LangGraph's own rule holds: all types, with a warning,
            unless the environment has `LANGGRAPH_STRICT_MSGPACK`.
        cache_bytes: Bytes of long values that are remembered at most; 0 turns it off.
        patience: Seconds for which an operation is tried again when the connection was lost, the
            server is away, or others hold what it needs; 0 raises at once.
        timeout: Seconds that a server may take for one answer, or another process for its
            transaction on a SQLite file, until that counts as a failure.
        schema: The PostgreSQL schema that all tables stand in, the version table included; any
            name, and no search_path is used. Without one, it is the engine's own
            `schema_translate_map={None: ...}` or the environment's `CHECKPOINTER_SCHEMA`, and
            without these the search_path's first. Savers of several schemas may share an engine.
            `setup` and `checkpointer upgrade --schema` make it where it is missing. SQLite has no
            schemas; the environment's is passed over for a URL or an engine of SQLite.
        engine_options: Passed to SQLAlchemy's `create_async_engine` with the URL.
        telemetry: Tell OpenTelemetry of each operation: spans and metrics, never values or
            identifiers. Needs the extra `otel`.

    Raises:
        ConfigurationError: The URL, the engine or an option cannot work.
        DriverError: The URL's database driver is missing, unknown or not async.
    """
    if allowed_types is not None:
        _check_alone(serde)
        serde = StrictSerializer(allowed_types)
    if cache_bytes < 0:
        raise ConfigurationError(f"found cache_bytes={cache_bytes}, expected 0 or more bytes")
    if not isinstance(patience, int | float) or not 0 <= patience < inf:
        raise ConfigurationError(f"found patience={quoted(patience)}, expected 0 or more seconds")
    if not isinstance(timeout, int | float) or not 0 < timeout < inf:
        raise ConfigurationError(f"found timeout={quoted(timeout)}, expected more than 0 seconds")
    if isinstance(url_or_engine, AsyncEngine):
        engine = _given_engine(url_or_engine, engine_options, schema)
    elif isinstance(url_or_engine, sa.Engine):
        raise ConfigurationError(
            "found a sync SQLAlchemy engine, expected an async one; use "
            "sqlalchemy.ext.asyncio.create_async_engine, or pass the URL"
        )
    else:
        url = resolve_url(url_or_engine)
        chosen = url_or_engine is not None
        dialect = dialect_named(url.get_backend_name())
        schema = resolve_schema(schema, dialect, chosen=chosen)
        engine = create_engine(url, engine_options, timeout=timeout, schema=schema)
    owned = not isinstance(url_or_engine, AsyncEngine)
    saver, told = _traced(engine.url) if telemetry else (AsyncSQLAlchemySaver, None)
    database = Database(engine, owned=owned, patience=patience, timeout=timeout, telemetry=told)
    return saver(EngineBackend(database, cache_bytes=cache_bytes), serde=serde)


def _traced(url: sa.URL) -> tuple[type[AsyncSQLAlchemySaver], Telemetry]:
    """The class of a saver that is traced, and what it tells.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    try:
        from checkpointer.tracing import OpenTelemetry, traced  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"found telemetry=True without the package {exc.name}, expected opentelemetry-api; "
            f"run: pip install 'langgraph-checkpoint-sqlalchemy[otel]'"
        ) from exc
    telemetry = OpenTelemetry(url)
    return traced(AsyncSQLAlchemySaver, telemetry), telemetry


def _given_engine(
    engine: AsyncEngine, options: Mapping[str, Any] | None, schema: str | None
) -> AsyncEngine:
    """An engine that was passed in, in its schema."""
    if options:
        raise ConfigurationError(
            "found engine_options together with an engine, expected them with a URL; give them "
            "to create_async_engine"
        )
    if schema is None and schema_of(engine.sync_engine) is not None:
        return engine
    return in_schema(engine, resolve_schema(schema, dialect_of(engine), chosen=True))


def _check_alone(serde: SerializerProtocol | None) -> None:
    """Refuse a serde next to `allowed_types`."""
    if serde is not None:
        raise ConfigurationError(
            "found allowed_types together with a serde, expected one of them, because only a serde "
            "itself can keep to a list of types; give it the list, as in "
            "serde=EncryptedSerializer(cipher, StrictSerializer(allowed_types))"
        )
