"""The database that a command works on: named, looked at without a trace, opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import sqlalchemy as sa
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpointer import schema
from checkpointer.database import Database
from checkpointer.dialects import dialect_named, dialect_of
from checkpointer.engine import create_engine, in_schema, resolve_schema, resolve_url, shown
from checkpointer.errors import SchemaMissingError
from checkpointer.factory import CACHE_BYTES, create_saver
from checkpointer.quoting import quoted
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.serde import LosslessSerializer

URI: Final = "file:"


@dataclass(frozen=True, slots=True)
class Target:
    """The database that a command works on.

    Attributes:
        url: Its URL.
        schema: The PostgreSQL schema of the tables, `None` for the database's own default.
    """

    url: sa.URL
    schema: str | None

    @classmethod
    def named(cls, url: str | None, schema: str | None = None) -> "Target":
        """The one that the command line's options name, else the environment.

        Raises:
            ConfigurationError: They name none that can work.
        """
        resolved = resolve_url(url)
        dialect = dialect_named(resolved.get_backend_name())
        return cls(resolved, resolve_schema(schema, dialect, chosen=url is not None))

    @property
    def shown(self) -> str:
        """What it is called, without a password."""
        where = "" if self.schema is None else f", schema {quoted(self.schema)}"
        return shown(self.url) + where

    @property
    def names(self) -> dict[str, str | None]:
        """The same for a JSON document."""
        return {"database": shown(self.url), "schema": self.schema}

    @property
    def is_absent(self) -> bool:
        """Whether its file is not there: to connect would make an empty one."""
        if not dialect_named(self.url.get_backend_name()).upgrades_on_first_use:
            return False
        path = _file(self.url)
        return path is not None and not path.exists()

    async def revision(self) -> str | None:
        """The revision found, without a trace of having looked.

        Raises:
            DatabaseError: The database refused or failed.
        """
        engine = self._plain_engine()
        if self.is_absent:
            return None
        database = Database(engine, owned=True, patience=0)
        try:
            return await schema.current(database)
        finally:
            await database.dispose()

    async def check(self) -> None:
        """Hold the revision against the one that this version needs. Changes nothing.

        Raises:
            SchemaError: It is another one.
            DatabaseError: The database refused or failed.
        """
        database = Database(self._plain_engine(), owned=True, patience=0)
        self.check_there()
        try:
            schema.require(database, await schema.current(database))
        finally:
            await database.dispose()

    async def upgrade(self) -> None:
        """Bring the schema to the newest revision, in one transaction."""
        database = Database(self._engine(), owned=True, patience=0)
        try:
            await schema.upgrade(database)
        finally:
            await database.dispose()

    def check_there(self, mend: str = ", or have one made: checkpointer upgrade") -> None:
        """Refuse a file that is not there.

        Args:
            mend: What else than checking its name may help.

        Raises:
            SchemaMissingError: It is not.
            ConfigurationError: Its URL cannot work.
        """
        self._plain_engine()
        if self.is_absent:
            raise SchemaMissingError(
                f"found no such file as {self.shown}, expected a SQLite database; check the URL"
                f"{mend}",
                found=None,
                expected=schema.EXPECTED_REVISION,
            )

    @asynccontextmanager
    async def opened(
        self,
        serde: SerializerProtocol | None = None,
        *,
        writing: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> AsyncIterator[AsyncSQLAlchemySaver]:
        """A saver for a database that has its schema already.

        Args:
            serde: How values are read; without one, LangGraph's safe types alone.
            writing: Whether it may change the database; one that only looks leaves a file as it is,
                its journal too.
            cache_bytes: Bound of its cache.

        Raises:
            SchemaError: The database does not have the schema that this version needs.
        """
        await self.check()
        engine = self._engine() if writing else self._plain_engine()
        async with self._saver(engine, serde, cache_bytes) as saver:
            yield saver

    @asynccontextmanager
    async def made(self) -> AsyncIterator[AsyncSQLAlchemySaver]:
        """A saver that writes any type, into a file that is made if it is not there.

        Raises:
            SchemaError: A server's database does not have the schema that this version needs.
        """
        if not dialect_named(self.url.get_backend_name()).upgrades_on_first_use:
            await self.check()
        async with self._saver(self._engine(), LosslessSerializer(), CACHE_BYTES) as saver:
            yield saver

    @asynccontextmanager
    async def _saver(
        self, engine: AsyncEngine, serde: SerializerProtocol | None, cache_bytes: int
    ) -> AsyncIterator[AsyncSQLAlchemySaver]:
        # What is stored has no say in what is imported.
        allowed: list[type] | None = [] if serde is None else None
        try:
            async with create_saver(
                engine, serde=serde, allowed_types=allowed, cache_bytes=cache_bytes
            ) as saver:
                yield saver
        finally:
            await engine.dispose()

    def _engine(self) -> AsyncEngine:
        return create_engine(self.url, schema=self.schema)

    def _plain_engine(self) -> AsyncEngine:
        """An engine that leaves a database as it is."""
        # Raises our errors for a driver that cannot work. The engine is not used: its hooks switch
        # a SQLite file to WAL.
        connect_args = dialect_of(create_engine(self.url)).connect_args(self.url)
        return in_schema(create_async_engine(self.url, connect_args=connect_args), self.schema)


def _file(url: sa.URL) -> Path | None:
    """The file behind an embedded database's URL, `None` for one in memory."""
    path, _, query = (url.database or "").partition("?")
    if path.startswith(URI) and "uri" in url.query:
        if "mode=memory" in query or url.query.get("mode") == "memory":
            return None
        path = unquote(path.removeprefix(URI))
        path = path.removeprefix("//localhost") if path.startswith("//localhost/") else path
        path = path.removeprefix("//") if path.startswith("///") else path
    else:
        path = url.database or ""
    return None if not path or path.startswith(":") else Path(path)
