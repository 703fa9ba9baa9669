"""A saver's work inside an application's own transaction, on the application's connection."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, cast
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from checkpointer import schema
from checkpointer.backend import Backend, EngineBackend
from checkpointer.basis import New
from checkpointer.database import Database
from checkpointer.dialect import CoreWork, Work
from checkpointer.dialects import dialect_of
from checkpointer.engine import shown
from checkpointer.errors import ConfigurationError, EventLoopError, SchemaError, UsageError
from checkpointer.faults import translated
from checkpointer.memory import Memory
from checkpointer.puts import put_held
from checkpointer.store import Store

T = TypeVar("T")
Source = AsyncConnection | AsyncSession

_locks: Final[WeakKeyDictionary[object, asyncio.Lock]] = WeakKeyDictionary()
"""Of sessions and connections: calls on one, of whichever savers, run one after the other."""


def borrow(lender: Backend, source: Source) -> "BorrowedBackend":
    """A backend on an application's connection, or on that of its session.

    Raises:
        ConfigurationError: It is sync, neither of these, or of another kind of database.
        UsageError: It is closed, or there is no running event loop.
    """
    if isinstance(lender, BorrowedBackend):
        lender = lender.lender
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise EventLoopError(
            "found a call of using() without a running event loop, expected the one that the "
            "connection belongs to; call it in async code"
        ) from None
    lender.check_open()
    lender.bridge.bind()
    return BorrowedBackend(cast("EngineBackend", lender), source)


class BorrowedDatabase(Database):
    """The way to run work inside an application's transaction: one after the other, and once.

    Args:
        source: The application's connection or session.
        lender: The saver's own database, of which the schema is taken.
    """

    def __init__(self, source: Source, lender: Database) -> None:
        engine = _engine_of(source)
        if type(dialect_of(engine)) is not type(lender.dialect):
            raise ConfigurationError(
                f"found a connection to {shown(engine.url)}, expected the saver's kind of "
                f"database, as of {shown(lender.engine.url)}; make a saver for that one"
            )
        timeout, telemetry = lender.dialect.timeout, lender.telemetry
        super().__init__(engine, owned=False, patience=0, timeout=timeout, telemetry=telemetry)
        self._source = source
        self._schema = lender.schema

    @property
    def schema(self) -> str | None:
        """The saver's, whatever the connection's own options say."""
        return self._schema

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads."""
        return await self._join(work, writes=False)

    async def read_snapshot(self, work: Work[T]) -> T:
        """The same: what is found of a checkpoint is of one moment."""
        return await self._join(work, writes=False)

    async def write(self, work: Work[T]) -> T:
        """Run work that writes. Nothing of it stays if it raises."""
        return await self._join(work, writes=True)

    async def put(self, work: Work[T]) -> T:
        """The same for work that puts."""
        return await self._join(work, writes=True)

    async def put_once(self, work: Work[T]) -> T:
        """The same: nothing is tried again."""
        return await self._join(work, writes=True)

    async def inspect(self, work: CoreWork[T]) -> T:
        """Run work that only looks."""

        def work_on_core(core: sa.Connection) -> T:
            with core.begin_nested():
                return work(core)

        return await self._translating(lambda connection: connection.run_sync(work_on_core))

    async def migrate(self, work: CoreWork[T]) -> T:
        """Refuse to: two such transactions would wait for each other for ever.

        Raises:
            UsageError: Always.
        """
        del work
        raise _not_set_up()

    async def _join(self, work: Work[T], *, writes: bool) -> T:
        counted = self._counted(work)
        return await self._translating(
            lambda connection: self.dialect.join(
                connection, counted, schema=self.schema, writes=writes
            )
        )

    async def _translating(self, run: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with _lock_of(self._source):  # a session, too, takes one call at a time
                connection = await self._connection()
                async with _lock_of(connection.sync_connection):
                    return await run(connection)
        except sa_exc.InvalidRequestError as exc:
            raise UsageError(
                f"found a connection that cannot be used: {exc}; expected one whose transaction is "
                f"open; end it, begin another, and call using() with that"
            ) from exc
        except (sa_exc.SQLAlchemyError, OSError) as exc:
            raise translated(exc, self._where) from exc

    async def _connection(self) -> AsyncConnection:
        """The application's connection; a session may have another one after each commit."""
        source = self._source
        connection = await source.connection() if isinstance(source, AsyncSession) else source
        if _is_in_autocommit(cast("sa.Connection", connection.sync_connection)):
            raise UsageError(
                "found a connection in AUTOCOMMIT, which commits each statement by itself, "
                "expected one with transactions; give it another isolation_level"
            )
        return connection


class BorrowedBackend(Backend):
    """A backend inside an application's transaction; it shares its saver's loop and bytes.

    Nothing is remembered of what stands in the database, because it may be rolled back, even to a
    savepoint. Bytes that are at hand only spare reading: they never tell that something is stored.

    Args:
        lender: The saver's own backend.
        source: The application's connection or session.
    """

    def __init__(self, lender: EngineBackend, source: Source) -> None:
        database = BorrowedDatabase(source, lender.database)
        nothing = Memory(max_values=0)
        store = Store(lender.store.queries, lender.store.contents, nothing)
        super().__init__(database, store, lender.bridge)
        self.lender = lender

    def check_open(self) -> None:
        """Refuse calls after the end of the saver itself."""
        self.lender.check_open()

    async def setup(self) -> None:
        """Refuse to.

        Raises:
            UsageError: Always.
        """
        raise _not_set_up()

    async def aclose(self) -> None:
        """Let what is under way finish. Nothing here is ours to close."""
        self.bridge.bind()
        await self._drain()

    def stop(self) -> None:
        """Do nothing: the background thread is the saver's."""

    async def _put(self, new: New) -> None:
        await self.database.put(partial(put_held, store=self.store, new=new))

    async def _ensure_schema(self) -> None:
        if self.lender.knows_schema_of(self.database.engine):
            return
        try:
            await schema.verify(self.database)
        except SchemaError as exc:
            where = await self._search_path()
            raise type(exc)(
                f"{exc}; or `await saver.setup()` on the saver itself, before the transaction: "
                f"inside of it, nothing is upgraded{where}",
                found=exc.found,
                expected=exc.expected,
            ) from None

    async def _search_path(self) -> str:
        """Where the connection looks for tables: perhaps elsewhere than the saver does."""
        if self.database.schema is not None or not self.database.dialect.has_schemas:
            return ""
        asked = sa.select(sa.func.current_schema())
        found = await self.database.inspect(lambda connection: connection.scalar(asked))
        return f"; on this connection, current_schema() is {found!r}"


def _is_in_autocommit(core: sa.Connection) -> bool:
    """Whether each statement is a transaction of its own, as far as SQLAlchemy tells."""
    known: Callable[[], bool] | None = getattr(core, "_is_autocommit_isolation", None)
    if known is not None:
        return known()
    # The public way. An engine that was made with that level shows it only by its driver.
    return (
        core.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        or getattr(core.connection.dbapi_connection, "autocommit", None) is True
    )


def _lock_of(owner: object) -> asyncio.Lock:
    return _locks.setdefault(owner, asyncio.Lock())


def _not_set_up() -> UsageError:
    return UsageError(
        "found setup() on a saver that works inside an application's transaction, expected it on "
        "the saver itself: `await saver.setup()` before the transaction"
    )


def _engine_of(source: object) -> AsyncEngine:
    """The engine of a connection or a session that can be used.

    Raises:
        ConfigurationError: It is sync, or neither of these, or knows no engine.
        UsageError: It is closed, or was not opened.
    """
    if isinstance(source, AsyncConnection):
        if source.sync_connection is None or source.closed:
            state = "closed" if source.sync_connection is not None else "not opened"
            raise UsageError(
                f"found a connection that is {state}, expected an open one; call using() inside "
                f"`async with engine.begin() as connection`"
            )
        return source.engine
    if isinstance(source, AsyncSession):
        return _engine_of_session(source)
    sync = "a sync " if isinstance(source, sa.Connection | sa.Engine | Session) else ""
    raise ConfigurationError(
        f"found {sync}{type(source).__qualname__}, expected an AsyncConnection or an AsyncSession; "
        f"call using() inside `async with engine.begin() as connection`"
    )


def _engine_of_session(session: AsyncSession) -> AsyncEngine:
    bind = getattr(session, "bind", None)  # SQLAlchemy 2.0 sets none where none was given
    if isinstance(bind, AsyncEngine):
        return bind
    try:
        bound = session.get_bind()
    except sa_exc.UnboundExecutionError as exc:
        raise ConfigurationError(
            "found a session that is bound to no engine of its own, expected one; pass "
            "`await session.connection(bind_arguments=...)` instead"
        ) from exc
    # The one that the application has. One made anew takes its place: `connection.engine` of the
    # application's next connections would be ours.
    known: Callable[[sa.Engine], AsyncEngine] = getattr(
        AsyncEngine, "_retrieve_proxy_for_target", AsyncEngine
    )
    return known(bound.engine)
