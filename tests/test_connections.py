"""Connections: who watches them, what is raised when they fail, and that none is left behind."""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from asyncpg.transaction import Transaction  # type: ignore[import-untyped]
from cancelling import eventually
from schemas import execute, query
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool
from storing import LARGE, config, operate, put, statements, stored_contents

from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseError,
    DatabaseUnavailableError,
    SchemaMissingError,
    create_saver,
    tables,
)
from checkpointer.execution import Connection
from checkpointer.queries import queries_for

Saver = AsyncSQLAlchemySaver
Work = Callable[[Connection], Any]
NewEngine = Callable[..., AsyncEngine]

THREAD = config()

on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


@pytest.fixture
async def new_engine() -> AsyncIterator[NewEngine]:
    """Call it for an engine as an application makes it; all are disposed of after the test."""
    engines: list[AsyncEngine] = []

    def create(url: str | sa.URL, **options: Any) -> AsyncEngine:
        engines.append(create_async_engine(url, **options))
        return engines[-1]

    yield create
    for engine in engines:
        await engine.dispose()


def thread_row(thread_id: str, state: int | None = 1) -> dict[str, Any]:
    """The row of a thread."""
    now = datetime.now(UTC)
    return {"thread_id": thread_id, "state": state, "created_at": now, "updated_at": now}


async def expected_of(url: str) -> tuple[list[object], list[object]]:
    """What the operations find and leave behind on the driver's own connection."""
    async with create_saver(url) as saver:
        with statements() as seen:
            found = await operate(saver)
    assert len(seen) > 50
    return found, stored_contents(url)


@pytest.fixture
def sqlalchemys_log() -> Iterator[logging.Logger]:
    """SQLAlchemy's logger of statements, left as it was found."""
    top, logger = logging.getLogger("sqlalchemy"), logging.getLogger("sqlalchemy.engine")
    level, handlers = logger.level, list(top.handlers)
    yield logger
    logger.setLevel(level)
    top.handlers = handlers


class TestWatchedEngines:
    """What wants to see each statement sees it, and nothing else changes."""

    async def works_the_same(self, engine: AsyncEngine, new_url: Callable[[], str]) -> None:
        async with create_saver(engine) as saver:
            with statements() as past_sqlalchemy:
                found = await operate(saver)
        assert past_sqlalchemy == []
        expected, stored = await expected_of(new_url())
        assert found == expected
        url = engine.url.render_as_string(hide_password=False)
        assert stored_contents(url) == stored

    @on_postgresql
    @pytest.mark.parametrize(
        "name",
        ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"],
    )
    async def test_a_listener(
        self, new_engine: NewEngine, new_migrated_url: Callable[[], str], name: str
    ) -> None:
        engine = new_engine(new_migrated_url())
        seen: list[object] = []
        event.listen(engine.sync_engine, name, lambda *_: seen.append(1))
        await self.works_the_same(engine, new_migrated_url)
        assert len(seen) > 50

    @on_postgresql
    async def test_a_listener_to_all_engines(
        self, new_engine: NewEngine, new_migrated_url: Callable[[], str]
    ) -> None:
        engine = new_engine(new_migrated_url())
        seen: list[object] = []

        def see(connection: sa.Connection, *_: object) -> None:
            if connection.engine is engine.sync_engine:
                seen.append(1)

        event.listen(sa.Engine, "before_cursor_execute", see)
        try:
            async with create_saver(engine) as saver:
                await put(saver, THREAD, "1")
        finally:
            event.remove(sa.Engine, "before_cursor_execute", see)
        assert seen

    @on_postgresql
    @pytest.mark.parametrize("name", ["begin", "engine_connect"])
    async def test_a_listener_that_sets_up_transactions(
        self, new_engine: NewEngine, migrated_url: str, name: str
    ) -> None:
        engine = new_engine(migrated_url)
        async with create_saver(engine) as saver:
            await put(saver, THREAD, "1")
            seen: list[object] = []
            event.listen(engine.sync_engine, name, seen.append)
            await put(saver, THREAD, "2")
            await saver.adelete_thread("a thread")
        assert len(seen) >= 2

    @on_postgresql
    async def test_a_map_of_schemas(self, new_engine: NewEngine, migrated_url: str) -> None:
        options = {"schema_translate_map": {None: "elsewhere"}}
        engine = new_engine(migrated_url).execution_options(**options)
        async with create_saver(engine) as saver:
            with pytest.raises(SchemaMissingError, match="schema 'elsewhere'"):
                await saver.aget_tuple(THREAD)
            await saver.setup()
            await put(saver, THREAD, "1")
            assert await saver.aget_tuple(THREAD) is not None
        async with create_saver(migrated_url) as saver:
            assert await saver.aget_tuple(THREAD) is None

    @on_postgresql
    async def test_echo(
        self,
        new_engine: NewEngine,
        new_migrated_url: Callable[[], str],
        sqlalchemys_log: logging.Logger,
    ) -> None:
        engine = new_engine(new_migrated_url(), echo=True)
        await self.works_the_same(engine, new_migrated_url)

    @on_postgresql
    async def test_the_level_of_sqlalchemys_log(
        self,
        new_engine: NewEngine,
        migrated_url: str,
        sqlalchemys_log: logging.Logger,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine = new_engine(migrated_url)
        async with create_saver(engine) as saver:
            await put(saver, THREAD, "1")
            sqlalchemys_log.setLevel(logging.INFO)
            caplog.clear()
            await saver.aget_tuple(THREAD)
        assert "checkpointer_checkpoints" in caplog.text

    @on_postgresql
    async def test_psycopg(
        self, new_engine: NewEngine, new_migrated_url: Callable[[], str]
    ) -> None:
        url = sa.make_url(new_migrated_url()).set(drivername="postgresql+psycopg")
        await self.works_the_same(new_engine(url), new_migrated_url)


def sending(statement: str) -> Callable[..., None]:
    """A listener to a pool's events that sends SQL, as to tell a server's tenants apart."""

    def send(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    return send


async def latest(url: str) -> str | None:
    """The id of the thread's latest checkpoint, as another process finds it."""
    async with create_saver(url) as other:
        found = await other.aget_tuple(THREAD)
    return found and found.checkpoint["id"]


@on_postgresql
class TestSharedPools:
    """What an application does with its pool meanwhile loses none of our puts, nor its own work."""

    @pytest.mark.parametrize("name", ["connect", "checkout"])
    async def test_a_listener_that_sends_sql(
        self, new_engine: NewEngine, migrated_url: str, name: str
    ) -> None:
        engine = new_engine(migrated_url)
        event.listen(engine.sync_engine, name, sending("SET application_name TO 'a tenant'"))
        shown = sa.select(sa.func.current_setting("application_name").label("name"))
        async with create_saver(engine) as saver:
            await put(saver, THREAD, "1")
            assert await latest(migrated_url) == "1"
            async with engine.connect() as held:  # so that the pool opens one more
                await held.execute(sa.text("SELECT 1"))
                await put(saver, THREAD, "2")
                assert await latest(migrated_url) == "2"
                found = await saver._backend.read(lambda connection: connection.fetch(shown))  # noqa: SLF001
        assert [row.name for row in found] == ["a tenant"]

    @pytest.mark.parametrize("name", ["connect", "checkout"])
    async def test_a_listener_that_fails(
        self, new_engine: NewEngine, migrated_url: str, name: str
    ) -> None:
        engine = new_engine(migrated_url)
        send = sending("SET ROLE nobody")

        def fail(connection: Any, *_: object) -> None:
            try:
                send(connection)
            except Exception:
                if name == "connect":  # older versions of SQLAlchemy leave it open
                    connection.driver_connection.terminate()
                raise

        async with create_saver(engine) as saver:
            await put(saver, THREAD, "1")
            async with engine.connect() as held:
                await held.execute(sa.text("SELECT 1"))
                event.listen(engine.sync_engine, name, fail)
                for _ in range(20):  # more often than there are connections
                    with pytest.raises(DatabaseError, match=r'"nobody" does not exist'):
                        await saver.aget_tuple(THREAD)
                event.remove(engine.sync_engine, name, fail)
            assert await saver.aget_tuple(THREAD) is not None

    async def test_a_transaction_on_the_only_connection_is_refused(
        self, new_engine: NewEngine, migrated_url: str
    ) -> None:
        engine = new_engine(migrated_url, poolclass=StaticPool)
        async with create_saver(engine) as saver:
            await put(saver, THREAD, "1")
            async with engine.connect() as connection:
                await connection.execute(sa.text("CREATE TABLE mine (a INTEGER)"))
                with pytest.raises(DatabaseError, match=r"transaction of the application.*its own"):
                    await put(saver, THREAD, "2")
            assert await latest(migrated_url) == "1"
            assert query(migrated_url, "SELECT to_regclass('mine')::text") == [(None,)]
            await put(saver, THREAD, "3")
            assert await latest(migrated_url) == "3"


def missing(connection: Connection) -> object:
    """Ask for a table that is not there."""
    return connection.fetch(sa.select(sa.column("x")).select_from(sa.table("missing")))


class TestErrors:
    @pytest.mark.parametrize("way", ["read", "read_snapshot", "write"])
    async def test_they_keep_the_drivers_words(self, saver: Saver, way: str) -> None:
        await put(saver, THREAD, "1")
        with pytest.raises(DatabaseError, match=r"refused: .*missing") as caught:
            await getattr(saver._backend, way)(missing)  # noqa: SLF001
        assert not isinstance(caught.value, DatabaseUnavailableError)
        cause = caught.value.__cause__
        assert isinstance(cause, sa_exc.DBAPIError)
        name = type(cause.orig).__name__
        assert name in {"OperationalError", "UndefinedTableError"}
        assert f"{name}: " in str(caught.value)
        assert cause.__cause__ is cause.orig

    @pytest.mark.parametrize("way", ["read", "read_snapshot", "write"])
    async def test_they_leave_the_connection_usable(self, saver: Saver, way: str) -> None:
        await put(saver, THREAD, "1")
        for _ in range(25):  # more often than there are connections
            with pytest.raises(DatabaseError):
                await getattr(saver._backend, way)(missing)  # noqa: SLF001
        assert await saver.aget_tuple(THREAD) is not None

    @pytest.mark.parametrize("error", [missing, lambda _: 1 // 0], ids=["database", "work"])
    async def test_a_transaction_that_fails_stores_nothing(self, saver: Saver, error: Work) -> None:
        queries = queries_for(saver.engine.dialect.name)

        def work(connection: Connection) -> None:
            connection.execute(queries.touch_thread, *map(thread_row, "xyz"))
            error(connection)

        await put(saver, THREAD, "1")
        for _ in range(3):
            with pytest.raises((DatabaseError, ZeroDivisionError)):
                await saver._backend.write(work)  # noqa: SLF001
        found = await saver._backend.read(  # noqa: SLF001
            lambda connection: connection.fetch(sa.select(tables.threads))
        )
        assert [row.thread_id for row in found] == ["a thread"]

    async def test_many_rows_fail_whole(self, saver: Saver) -> None:
        queries = queries_for(saver.engine.dialect.name)
        rows = [thread_row("x"), thread_row("y", None)]
        await put(saver, THREAD, "1")
        with pytest.raises(DatabaseError, match=r"(?i)not.null"):
            await saver._backend.write(  # noqa: SLF001
                lambda connection: connection.execute(queries.touch_thread, *rows)
            )
        assert await saver.aget_tuple(THREAD) is not None

    @on_postgresql
    @pytest.mark.parametrize("level", [None, "SERIALIZABLE", "AUTOCOMMIT"])
    async def test_transactions_have_the_level_that_was_asked_for(
        self, migrated_url: str, level: Any
    ) -> None:
        shown = sa.select(sa.func.current_setting("transaction_isolation").label("level"))
        options = {} if level is None else {"isolation_level": level}
        async with create_saver(migrated_url, engine_options=options) as saver:
            for way, expected in (
                ("read_snapshot", "repeatable read"),
                ("write", "read committed"),
            ):
                ((found,),) = await getattr(saver._backend, way)(  # noqa: SLF001
                    lambda connection: connection.fetch(shown)
                )
                assert found == expected


def terminate(url: str) -> int:
    """End all other sessions of a database; how many."""
    libpq = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(libpq, autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        ended = connection.execute(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}".encode()
        )
        return len(ended.fetchall())


SLEEP = sa.select(sa.func.pg_sleep(sa.bindparam("seconds", type_=sa.Float)).label("slept"))

SLEEPING = """
SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND query ~ '^SELECT pg_sleep'
"""


async def sleeping(saver: Saver, way: str) -> "asyncio.Task[Any]":
    """A task that waits for the database by now."""
    work = getattr(saver._backend, way)(  # noqa: SLF001
        lambda connection: connection.fetch(SLEEP, {"seconds": 60})
    )
    task = asyncio.create_task(work)
    url = saver.engine.url.render_as_string(hide_password=False)
    await eventually(lambda: task.done() or query(url, SLEEPING), "a statement under way")
    assert not task.done()
    return task


@on_postgresql
class TestLostConnections:
    @pytest.mark.parametrize("way", ["read", "read_snapshot", "write"])
    async def test_a_session_that_ends_within_a_statement(
        self, migrated_url: str, way: str
    ) -> None:
        async with create_saver(migrated_url, patience=0) as saver:
            await put(saver, THREAD, "1")
            task = await sleeping(saver, way)
            assert terminate(migrated_url) >= 1
            with pytest.raises(DatabaseUnavailableError, match=r"cannot be reached: \w+Error: "):
                await task
            assert await saver.aget_tuple(THREAD) is not None

    @pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
    async def test_a_restart_fails_no_call(
        self, saver: Saver, migrated_url: str, *, noticed: bool
    ) -> None:
        await put(saver, THREAD, "1")
        await asyncio.gather(*(saver.aget_tuple(config(n)) for n in range(100)))
        assert terminate(migrated_url) > 5
        if noticed:
            await asyncio.sleep(0.2)
        for _ in range(30):
            assert await saver.aget_tuple(THREAD) is not None

    async def test_pre_ping_finds_it_before(self, migrated_url: str) -> None:
        options = {"pool_pre_ping": True}
        async with create_saver(migrated_url, engine_options=options) as saver:
            await put(saver, THREAD, "1")
            assert terminate(migrated_url) >= 1
            assert await saver.aget_tuple(THREAD) is not None

    @pytest.mark.parametrize("way", ["read", "read_snapshot", "write"])
    async def test_a_call_that_is_cancelled_leaves_no_connection_behind(
        self, migrated_url: str, way: str
    ) -> None:
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        async with create_saver(migrated_url, engine_options=options) as saver:
            await put(saver, THREAD, "1")
            for _ in range(3):
                task = await sleeping(saver, way)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await saver.aget_tuple(THREAD) is not None
            assert saver.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    @pytest.mark.parametrize("pre_ping", [False, True])
    async def test_what_comes_back_may_lack_the_last_commits(
        self, migrated_url: str, *, pre_ping: bool
    ) -> None:
        options = {"pool_pre_ping": pre_ping}
        async with create_saver(migrated_url, engine_options=options) as saver:
            parent = await put(saver, THREAD, "1", a=LARGE)
            tables = ("checkpoints", "segments", "threads")
            execute(migrated_url, *(f"DELETE FROM checkpointer_{name}" for name in tables))
            assert terminate(migrated_url) >= 1
            await asyncio.sleep(0.2)  # the driver has noticed by now
            await put(saver, parent, "2", a=LARGE, b="new")
        async with create_saver(migrated_url) as other:
            found = await other.aget_tuple(THREAD)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": LARGE, "b": "new"}

    async def test_a_transaction_whose_start_times_out_takes_no_later_put_along(
        self, migrated_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = Transaction.start

        async def start_late(self: Any) -> None:
            await start(self)
            raise TimeoutError

        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        async with create_saver(migrated_url, patience=0, engine_options=options) as saver:
            await put(saver, THREAD, "1")
            with monkeypatch.context() as patch:
                patch.setattr(Transaction, "start", start_late)
                with pytest.raises(DatabaseUnavailableError):
                    await saver.adelete_thread("nobody")
            await put(saver, THREAD, "2")
            assert await latest(migrated_url) == "2"

    async def test_a_call_that_is_cancelled_ends_in_the_database_too(
        self, saver: Saver, migrated_url: str
    ) -> None:
        task = await sleeping(saver, "read")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: not query(migrated_url, SLEEPING), "a statement goes on")


@on_sqlite
class TestSQLite:
    async def test_a_row_factory_of_the_application(
        self, new_engine: NewEngine, new_migrated_url: Callable[[], str]
    ) -> None:
        url = new_migrated_url()
        engine = new_engine(url)

        def connect(connection: Any, record: object) -> None:
            connection.driver_connection.row_factory = sqlite3.Row

        event.listen(engine.sync_engine, "connect", connect)
        async with create_saver(engine) as saver:
            found = await operate(saver)
        async with engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            assert isinstance(next(iter(await raw.execute_fetchall("SELECT 1"))), sqlite3.Row)
        expected, stored = await expected_of(new_migrated_url())
        assert found == expected
        assert stored_contents(url) == stored

    @pytest.mark.parametrize("way", ["read", "read_snapshot", "write"])
    async def test_a_call_that_is_cancelled_stops_nobody(self, saver: Saver, way: str) -> None:
        await put(saver, THREAD, "1")
        queries = queries_for("sqlite")
        begun, cancelled = threading.Event(), threading.Event()

        def slow(connection: Connection) -> object:
            begun.set()
            assert cancelled.wait(60)
            return connection.fetch(queries.segment_keys, {"thread_id": "a thread"})

        tasks = [asyncio.create_task(getattr(saver._backend, way)(slow)) for _ in range(5)]  # noqa: SLF001
        await eventually(begun.is_set, "a statement")
        for task in tasks[:4]:
            task.cancel()
        await asyncio.sleep(0)
        cancelled.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in ended] == [True] * 4 + [False]
        assert ended[4] == []
        await put(saver, THREAD, "2")
        assert len([one async for one in saver.alist(THREAD)]) == 2
        assert saver.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    async def test_reads_that_share_a_hop_fail_alone(self, saver: Saver) -> None:
        await put(saver, THREAD, "1")

        async def read(number: int) -> Any:
            if number % 3 == 0:
                return await saver._backend.read(missing)  # noqa: SLF001
            return await saver.aget_tuple(THREAD)

        found = await asyncio.gather(*map(read, range(90)), return_exceptions=True)
        for number, one in enumerate(found):
            assert isinstance(one, DatabaseError) == (number % 3 == 0), one
        assert None not in found

    async def test_shared_reads_whose_callers_are_gone_start_nothing(self, saver: Saver) -> None:
        """A loop that closes cancels all tasks once, and waits for these alone."""
        await put(saver, THREAD, "1")
        before = asyncio.all_tasks()
        reads = [asyncio.create_task(saver.aget_tuple(THREAD)) for _ in range(300)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in reads)

        cancelled = asyncio.all_tasks() - before
        for one in cancelled:
            one.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)

        assert asyncio.all_tasks() == before
        assert await saver.aget_tuple(THREAD) is not None

    async def test_a_migration_is_inside_its_transaction(self, migrated_url: str) -> None:
        async with create_saver(migrated_url) as saver:
            database = saver._backend.database  # noqa: SLF001

            def fail(core: sa.Connection) -> None:
                core.execute(sa.text("CREATE TABLE mine (a INTEGER)"))
                with (
                    closing(
                        sqlite3.connect(database.engine.url.database or "", timeout=0)
                    ) as other,
                    pytest.raises(sqlite3.OperationalError, match="locked"),
                ):
                    other.execute("BEGIN IMMEDIATE")
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await database.migrate(fail)
        assert query(migrated_url, "SELECT * FROM sqlite_master WHERE name = 'mine'") == []
