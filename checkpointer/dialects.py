"""Which kind of database an engine is for; no other module asks for a dialect's name."""

from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer.dialect import Dialect
from checkpointer.errors import ConfigurationError
from checkpointer.limits import TIMEOUT
from checkpointer.postgresql import PostgreSQL
from checkpointer.sqlite import SQLite


def dialect_of(engine: AsyncEngine, *, timeout: float = TIMEOUT) -> Dialect:
    """The kind of database behind an engine, told by `engine.dialect` alone.

    Raises:
        ConfigurationError: It is none of those that this package supports.
    """
    return dialect_named(engine.dialect.name, timeout=timeout)


def dialect_named(name: str, *, timeout: float = TIMEOUT) -> Dialect:
    """The dialect that SQLAlchemy calls `name`.

    Raises:
        ConfigurationError: It is none of those that this package supports.
    """
    for dialect in (PostgreSQL, SQLite):
        if dialect.name == name:
            return dialect(timeout)
    raise ConfigurationError(
        f"found a database of the kind {name!r}, expected postgresql or sqlite; use a URL that "
        f"starts with postgresql+asyncpg:// or sqlite+aiosqlite:///"
    )
