"""`create_saver`: a URL or an engine, to a saver."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer.backend import Backend
from checkpointer.engine import Database, create_engine, resolve_url
from checkpointer.errors import ConfigurationError
from checkpointer.saver import AsyncSQLAlchemySaver

CACHE_BYTES: Final = 64 << 20
"""Bytes that the chunk cache holds at most, unless told otherwise."""


def create_saver(
    url_or_engine: str | sa.URL | AsyncEngine | None = None,
    *,
    serde: SerializerProtocol | None = None,
    cache_bytes: int = CACHE_BYTES,
    engine_options: Mapping[str, Any] | None = None,
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
        cache_bytes: Bound of the cache of stored chunks, in bytes; 0 turns it off.
        engine_options: Passed to SQLAlchemy's `create_async_engine` with the URL.

    Raises:
        ConfigurationError: The URL, the engine or an option cannot work.
        DriverError: The URL's database driver is missing, unknown or not async.
    """
    if cache_bytes < 0:
        raise ConfigurationError(f"found cache_bytes={cache_bytes}, expected 0 or more bytes")
    if isinstance(url_or_engine, AsyncEngine):
        if engine_options:
            raise ConfigurationError(
                "found engine_options together with an engine, expected them with a URL; give them "
                "to create_async_engine"
            )
        database = Database(url_or_engine, owned=False)
    elif isinstance(url_or_engine, sa.Engine):
        raise ConfigurationError(
            "found a sync SQLAlchemy engine, expected an async one; use "
            "sqlalchemy.ext.asyncio.create_async_engine, or pass the URL"
        )
    else:
        engine = create_engine(resolve_url(url_or_engine), **(engine_options or {}))
        database = Database(engine, owned=True)
    return AsyncSQLAlchemySaver(Backend(database, cache_bytes=cache_bytes), serde=serde)
