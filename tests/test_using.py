"""A saver inside an application's own transaction: what both store goes or stays together."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import closing, nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from scenarios import SCENARIOS, expected_of, left_behind, play
from schemas import execute, query
from scripted import Durability
from sqlalchemy import event
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import await_only
from storing import LARGE, NOTHING, config, put, row_counts
from test_conformance import CAPABILITIES

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DamagedDataError,
    DatabaseBusyError,
    DatabaseError,
    SaverClosedError,
    SchemaMissingError,
    SyncCallError,
    UsageError,
    create_saver,
)
from checkpointer.execution import Connection

Saver = AsyncSQLAlchemySaver
Source = AsyncConnection | AsyncSession

THREAD = config()


class Base(DeclarativeBase):
    pass


class Conversation(Base):
    """An application's own row beside a thread."""

    __tablename__ = "conversations"

    thread_id: Mapped[str] = mapped_column(primary_key=True)


DRIVERS = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "stepwise": ("stepwise", "sqlite+aiosqlite"),
    "asyncpg": ("postgresql", "postgresql+asyncpg"),
    "psycopg": ("postgresql", "postgresql+psycopg"),
}

with_each_driver = pytest.mark.parametrize(
    ("database_kind", "driver"), DRIVERS.values(), ids=DRIVERS, indirect=["database_kind"]
)
on_sqlite = pytest.mark.parametrize(
    ("database_kind", "driver"),
    [DRIVERS["sqlite"], DRIVERS["stepwise"]],
    ids=["sqlite", "stepwise"],
    indirect=["database_kind"],
)
on_postgresql = pytest.mark.parametrize(
    ("database_kind", "driver"),
    [DRIVERS["asyncpg"], DRIVERS["psycopg"]],
    ids=["asyncpg", "psycopg"],
    indirect=["database_kind"],
)


@pytest.fixture
async def engine(migrated_url: str, driver: str) -> AsyncIterator[AsyncEngine]:
    """The application's engine: on SQLite in the legacy mode of Python's driver."""
    engine = create_async_engine(sa.make_url(migrated_url).set(drivername=driver))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture(params=[AsyncConnection, AsyncSession], ids=["connection", "session"])
def transaction(request: pytest.FixtureRequest, engine: AsyncEngine) -> Callable[[], Any]:
    """Call it for an open connection or session, to be used in `async with`."""
    return engine.connect if request.param is AsyncConnection else lambda: AsyncSession(engine)


@pytest.fixture
async def saver(
    request: pytest.FixtureRequest, engine: AsyncEngine
) -> AsyncIterator[AsyncSQLAlchemySaver]:
    """A saver with a thread that it remembers: on an engine of its own, or on the application's."""
    shared = "session" in request.node.name
    async with create_saver(engine if shared else engine.url) as saver:
        await put(saver, THREAD, "1", a=LARGE)
        yield saver


async def ids(saver: Saver) -> list[str]:
    return [found.checkpoint["id"] async for found in saver.alist(THREAD)]


async def rows(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.scalars(sa.select(Conversation.thread_id))).all())


async def insert(source: Source, name: str = "a thread") -> None:
    """An application's own row; by the ORM where there is one."""
    if isinstance(source, AsyncSession):
        source.add(Conversation(thread_id=name))
    else:
        await source.execute(sa.insert(Conversation).values(thread_id=name))


def begins(engine: AsyncEngine) -> None:
    """Have the engine begin transactions itself, as SQLAlchemy's recipe for savepoints does."""
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "begin", lambda core: core.exec_driver_sql("BEGIN"))


async def delete(source: Source) -> None:
    """Delete the application's own row."""
    await source.execute(sa.delete(Conversation))


@with_each_driver
class TestTogether:
    """An application's row and a thread, deleted and stored as one."""

    @pytest.fixture(autouse=True)
    async def stored(self, saver: Saver, engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await insert(session)

    async def test_both_go(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            await delete(source)
            await saver.using(source).adelete_thread("a thread")
            assert await ids(saver.using(source)) == []
            if engine.dialect.name == "postgresql":  # elsewhere, too, but there is one writer
                assert await ids(saver) == ["1"]
            await source.commit()
        assert (await ids(saver), await rows(engine)) == ([], [])
        assert row_counts(str(engine.url.render_as_string(hide_password=False))) == NOTHING

    async def test_both_stay(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            await delete(source)
            await saver.using(source).adelete_thread("a thread")
            await source.rollback()
        assert (await ids(saver), await rows(engine)) == (["1"], ["a thread"])
        assert (await saver.averify()).whole

    async def test_both_stay_where_the_application_fails(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block's end is the test
                async with source.begin():
                    await saver.using(source).adelete_thread("a thread")
                    await delete(source)
                    _ = 1 / 0
        assert (await ids(saver), await rows(engine)) == (["1"], ["a thread"])

    async def test_both_come(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        new = config("new")
        async with transaction() as source, source.begin():
            await insert(source, "new")
            at = await put(saver.using(source), new, "1", a=LARGE)
            await saver.using(source).aput_writes(at, [("a", LARGE)], "a task")
        found = await saver.aget_tuple(new)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": LARGE}
        assert found.pending_writes == [("a task", "a", LARGE)]
        assert sorted(await rows(engine)) == ["a thread", "new"]

    @pytest.mark.parametrize("undone", ["nothing", "the savepoint", "all"])
    async def test_a_savepoint(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any], undone: str
    ) -> None:
        begins(engine)
        async with transaction() as source:
            savepoint = await source.begin_nested()
            await saver.using(source).adelete_thread("a thread")
            await delete(source)
            await (savepoint.rollback() if undone == "the savepoint" else savepoint.commit())
            await insert(source, "after")
            await (source.rollback() if undone == "all" else source.commit())
        kept = ([], []) if undone == "nothing" else (["1"], ["a thread"])
        after = [] if undone == "all" else ["after"]
        assert (await ids(saver), sorted(await rows(engine))) == (kept[0], [*kept[1], *after])


@with_each_driver
class TestMemory:
    """Nothing that was rolled back is taken for stored, by whichever saver."""

    @pytest.mark.parametrize("ending", ["commit", "rollback"])
    async def test_of_what_was_rolled_back(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any], ending: str
    ) -> None:
        begins(engine)
        values = {"b": LARGE[::-1]}
        async with transaction() as source:
            mine = saver.using(source)
            savepoint = await source.begin_nested()
            at = await put(mine, THREAD, "2", None, **values)
            assert (await mine.aget_tuple(THREAD)) is not None
            await savepoint.rollback()
            at = await put(mine, THREAD, "2", None, **values)
            if ending == "rollback":
                await source.rollback()
                at = await put(mine, at, "2", None, **values)
            await source.commit()
        assert (await saver.averify()).whole
        await put(saver, at, "3", None, **values)
        async with create_saver(saver.engine, cache_bytes=0) as cold:
            assert (await cold.averify()).whole
            found = await cold.aget_tuple(config(checkpoint_id="2"))
        assert found is not None
        assert found.checkpoint["channel_values"] == values

    @pytest.mark.parametrize("commit", [True, False])
    async def test_of_the_saver_itself(
        self, saver: Saver, transaction: Callable[[], Any], *, commit: bool
    ) -> None:
        async with transaction() as source:
            await saver.using(source).adelete_thread("a thread")
            waiting = asyncio.create_task(put(saver, config(checkpoint_id="1"), "2", a=LARGE))
            await asyncio.sleep(0.05)
            await (source.commit() if commit else source.rollback())
            await waiting
        async with create_saver(saver.engine) as cold:
            assert (await cold.averify()).whole
            found = await cold.aget_tuple(THREAD)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": LARGE}


@with_each_driver
class TestCalls:
    async def test_a_call_that_fails_is_undone_and_the_transaction_goes_on(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        await put(saver, config(checkpoint_id="1"), "2", {"run_id": "a run"}, b=1)
        url = engine.url.render_as_string(hide_password=False)
        execute(url, "UPDATE checkpointer_checkpoints SET manifest = '' WHERE checkpoint_id = '1'")
        async with transaction() as source:
            await insert(source)
            with pytest.raises(DamagedDataError, match="nothing was deleted"):
                await saver.using(source).adelete_for_runs(["a run"])
            await source.commit()
        assert await rows(engine) == ["a thread"]
        assert query(url, "SELECT count(*) FROM checkpointer_checkpoints") == [(2,)]

    @pytest.mark.parametrize("kind", ["write", "read", "read_snapshot", "inspect"])
    async def test_a_statement_that_fails_is_undone(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any], kind: str
    ) -> None:
        def work(connection: Connection | sa.Connection) -> None:
            run = connection.fetch if isinstance(connection, Connection) else connection.execute
            run(sa.select(sa.table("none", sa.column("x"))))

        async with transaction() as source:
            await insert(source)
            mine = saver.using(source)
            with pytest.raises(DatabaseError, match="none"):
                await getattr(mine._backend.database, kind)(work)  # noqa: SLF001
            assert await ids(mine) == ["1"]
            await source.commit()
        assert await rows(engine) == ["a thread"]

    async def test_calls_of_several_clones_wait_for_each_other(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        await engine.dispose()  # so that a session has to wait for its connection
        async with transaction() as source:
            puts = [put(saver.using(source), config(n), "1", a=LARGE) for n in "abcd"]
            await asyncio.gather(*puts[:2])
            connection = await source.connection() if isinstance(source, AsyncSession) else source
            puts[:2] = [put(saver.using(connection), config(n), "1", a=LARGE) for n in "ef"]
            await asyncio.gather(*puts)
            await source.commit()
        assert len([one async for one in saver.alist(None)]) == 7

    async def test_calls_at_once_wait_for_each_other(
        self, saver: Saver, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            mine = saver.using(source)
            puts = (put(mine, config(n), "1", a=LARGE, n=n) for n in range(8))
            reads = (mine.aget_tuple(THREAD) for _ in range(8))
            await asyncio.gather(*puts, *reads)
            await source.commit()
        assert len([one async for one in saver.alist(None)]) == 9

    async def test_metadata_is_filtered(self, saver: Saver, transaction: Callable[[], Any]) -> None:
        async with transaction() as source:
            mine = saver.using(source)
            await put(mine, THREAD, "2", {"tags": ["x", {"y": None}]})
            found = [one async for one in mine.alist(None, filter={"tags": [{"y": None}]})]
            assert [one.checkpoint["id"] for one in found] == ["2"]

    async def test_the_connections_options_stay(self, saver: Saver, engine: AsyncEngine) -> None:
        mapped = engine.execution_options(schema_translate_map={None: "elsewhere"})
        async with mapped.connect() as connection:
            before = connection.sync_connection.get_execution_options()  # type: ignore[union-attr]
            mine = saver.using(connection)
            await put(mine, THREAD, "2")
            assert await ids(mine) == ["2", "1"]
            assert connection.sync_connection.get_execution_options() == before  # type: ignore[union-attr]

    async def test_the_clone_has_all_of_the_saver(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        strict = create_saver(engine, allowed_types=[])
        allowed = strict.with_allowlist([("some.module", "Name")])
        assert isinstance(allowed, AsyncSQLAlchemySaver)
        async with transaction() as source:
            async with allowed.using(source) as mine:
                assert mine.serde is allowed.serde is not strict.serde
                assert mine.config_specs == saver.config_specs
                assert await ids(mine) == ["1"]
            inner = mine.using(source).with_allowlist([("some.module", "Name")])
            await put(inner, THREAD, "2")  # type: ignore[arg-type]
            await source.rollback()
            await mine.aclose()
            assert await ids(mine) == ["1"]
        assert await ids(saver) == ["1"]
        await strict.aclose()

    async def test_sync_methods_keep_the_rules_of_the_loop(
        self, saver: Saver, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            mine = saver.using(source)
            with pytest.raises(SyncCallError):
                mine.get_tuple(THREAD)
            await asyncio.to_thread(mine.delete_thread, "a thread")
            assert await asyncio.to_thread(mine.get_tuple, THREAD) is None
            await asyncio.to_thread(mine.close)
            await source.rollback()
        assert await asyncio.to_thread(saver.get_tuple, THREAD) is not None

    async def test_cancelling_one_stores_nothing_of_it(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        async with transaction() as source:
            await insert(source)
            for delay in (0, 0.001, 0.003):
                task = asyncio.create_task(put(saver.using(source), config("new"), "1", a=LARGE))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.wait([task])
            await source.rollback()
        assert (await ids(saver), await rows(engine)) == (["1"], [])
        assert (await saver.averify()).whole

    @pytest.mark.parametrize(
        ("name", "durability"), [("conversation", "async"), ("subgraph", "sync")]
    )
    async def test_a_whole_graph(
        self, saver: Saver, transaction: Callable[[], Any], name: str, durability: Durability
    ) -> None:
        scenario = SCENARIOS[name]
        await saver.adelete_thread("a thread")
        expected = await expected_of(scenario, durability)
        for ending in ("rollback", "commit"):
            async with transaction() as source:
                graph = scenario.builder(saver.using(source))
                outputs = await play(graph, scenario.steps, durability)
                assert await left_behind(graph, outputs) == expected
                await getattr(source, ending)()
            found = await saver.aget_tuple(THREAD)
            assert (found is None) == (ending == "rollback")
        assert await left_behind(scenario.builder(saver), outputs) == expected


@with_each_driver
async def test_every_capability_conforms(new_migrated_url: Callable[[], str], driver: str) -> None:
    @checkpointer_test(name="checkpointer")
    async def factory() -> AsyncGenerator[BaseCheckpointSaver[Any], None]:
        url = sa.make_url(new_migrated_url()).set(drivername=driver)
        async with create_saver(url) as saver, saver.engine.connect() as connection:
            yield saver.using(connection)

    report = await validate(factory)

    failures = [f"{name}: {f}" for name, result in report.results.items() for f in result.failures]
    assert not failures
    passed = {name for name, result in report.results.items() if result.passed}
    assert passed == CAPABILITIES


class TestRefusals:
    @with_each_driver
    async def test_what_is_no_open_connection_is_refused(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        async with engine.connect() as closed:
            sync = closed.sync_connection
        for wrong in (engine, engine.sync_engine, sync, None, "sqlite://"):
            with pytest.raises(ConfigurationError, match="expected an AsyncConnection or an Async"):
                saver.using(wrong)  # type: ignore[arg-type]
        for unusable, state in ((closed, "closed"), (engine.connect(), "not opened")):
            with pytest.raises(UsageError, match=state):
                saver.using(unusable)
        with pytest.raises(ConfigurationError, match="bound to no engine"):
            saver.using(AsyncSession())

    @with_each_driver
    async def test_one_that_has_ended_is_refused(
        self, saver: Saver, engine: AsyncEngine, transaction: Callable[[], Any]
    ) -> None:
        async with engine.connect() as connection:
            mine = saver.using(connection)
        with pytest.raises(UsageError, match="cannot be used"):
            await mine.aget_tuple(THREAD)
        async with transaction() as source, source.begin():
            mine = saver.using(source)
            await source.commit()
            for call in (mine.aget_tuple(THREAD), mine.adelete_thread("a thread")):
                with pytest.raises(UsageError, match="closed transaction"):
                    await call
        assert await ids(saver) == ["1"]

    @with_each_driver
    async def test_autocommit_is_refused(self, saver: Saver, engine: AsyncEngine) -> None:
        options = {"isolation_level": "AUTOCOMMIT"}
        async with engine.execution_options(**options).connect() as connection:
            with pytest.raises(UsageError, match="AUTOCOMMIT"):
                await saver.using(connection).adelete_thread("a thread")
        autocommit = create_async_engine(engine.url, **options)
        async with autocommit.connect() as connection:
            with pytest.raises(UsageError, match="AUTOCOMMIT"):
                await saver.using(connection).aget_tuple(THREAD)
        await autocommit.dispose()

    @with_each_driver
    async def test_another_kind_of_database_is_refused(
        self, saver: Saver, database_kind: str
    ) -> None:
        sqlite = database_kind == "sqlite"
        other = create_saver("postgresql://localhost/app" if sqlite else "sqlite://")
        async with saver.engine.connect() as connection:
            with pytest.raises(ConfigurationError, match="expected the saver's kind of database"):
                other.using(connection)
        await other.aclose()

    @with_each_driver
    async def test_a_database_without_tables_is_named_and_left_alone(
        self, new_database_url: Callable[[], str], driver: str
    ) -> None:
        url = sa.make_url(new_database_url()).set(drivername=driver)
        async with create_saver(url) as saver, saver.engine.connect() as connection:
            mine = saver.using(connection)
            with pytest.raises(SchemaMissingError, match=r"await saver\.setup\(\)"):
                await mine.aget_tuple(THREAD)
            with pytest.raises(UsageError, match="before the transaction"):
                await mine.setup()
            await connection.rollback()
            await saver.setup()
            assert await mine.aget_tuple(THREAD) is None

    @with_each_driver
    async def test_the_end_of_the_saver_ends_it(self, engine: AsyncEngine) -> None:
        saver = create_saver(engine)
        async with engine.connect() as connection:
            mine = saver.using(connection)
            await saver.aclose()
            with pytest.raises(SaverClosedError):
                await mine.aget_tuple(THREAD)
            with pytest.raises(SaverClosedError):
                saver.using(connection)

    def test_without_an_event_loop_it_is_refused(self) -> None:
        with pytest.raises(UsageError, match="without a running event loop"):
            create_saver("sqlite://").using(AsyncSession())


@on_sqlite
class TestSQLite:
    async def test_reads_leave_no_transaction_open(self, saver: Saver, engine: AsyncEngine) -> None:
        """One that had read could not write any more, once others have written."""
        async with engine.connect() as connection:
            mine = saver.using(connection)
            assert await ids(mine) == ["1"]
            await put(saver, THREAD, "2")
            await insert(connection)
            await mine.adelete_thread("a thread")
            await connection.commit()
        assert (await ids(saver), await rows(engine)) == ([], ["a thread"])

    async def test_writing_holds_the_file_before_it_reads(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        """So nothing that others store is taken for garbage."""
        for other in (engine, create_saver(engine.url).engine):
            async with other.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))

                def work(_: Connection) -> None:
                    path = engine.url.database or ""
                    with closing(sqlite3.connect(path, timeout=0)) as another:
                        another.execute("DELETE FROM checkpointer_segments")

                with pytest.raises((DatabaseBusyError, sqlite3.OperationalError), match="locked"):
                    await saver.using(connection)._backend.write(work)  # noqa: SLF001
            await other.dispose()

    async def test_a_transaction_that_has_read_what_is_old_is_busy(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        async with engine.connect() as connection:
            await connection.execute(sa.text("BEGIN"))
            assert await ids(saver.using(connection)) == ["1"]
            await put(saver, THREAD, "2")
            with pytest.raises(DatabaseBusyError):
                await saver.using(connection).adelete_thread("a thread")
            await connection.rollback()
            await saver.using(connection).adelete_thread("a thread")
            await connection.commit()
        assert await ids(saver) == []

    async def test_a_savepoint_whose_release_may_commit_is_refused(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        """In the driver's legacy mode it is what began the transaction."""
        async with engine.connect() as connection:
            async with connection.begin_nested():
                mine = saver.using(connection)
                assert await ids(mine) == ["1"]
                with pytest.raises(UsageError, match=r'listens_for.*"BEGIN"'):
                    await mine.adelete_thread("a thread")
            await mine.adelete_thread("a thread")
            await connection.rollback()
        assert await ids(saver) == ["1"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has no such mode")
    async def test_a_savepoint_in_the_drivers_mode_with_transactions(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        modern = create_async_engine(engine.url, connect_args={"autocommit": False})
        async with modern.connect() as connection:
            async with connection.begin_nested():
                await saver.using(connection).adelete_thread("a thread")
            await connection.rollback()
        await modern.dispose()
        assert await ids(saver) == ["1"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has no such mode")
    async def test_the_drivers_autocommit_is_refused(
        self, saver: Saver, engine: AsyncEngine
    ) -> None:
        autocommit = create_async_engine(engine.url, connect_args={"autocommit": True})
        async with autocommit.connect() as connection:
            with pytest.raises(UsageError, match="autocommit=True"):
                await saver.using(connection).adelete_thread("a thread")
        await autocommit.dispose()


@on_postgresql
async def test_a_schema_is_the_savers_and_not_the_connections(
    engine: AsyncEngine, driver: str
) -> None:
    async with create_saver(engine, schema="agents") as saver:
        await saver.setup()
        mapped = engine.execution_options(schema_translate_map={None: "elsewhere"})
        async with mapped.begin() as connection:
            await put(saver.using(connection), THREAD, "1")
        assert await ids(saver) == ["1"]


@on_postgresql
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_level_that_hides_what_others_have_stored_deletes_none_of_it(
    saver: Saver, engine: AsyncEngine, level: str
) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        await connection.execute(sa.text("SELECT 1 FROM conversations"))
        await put(saver, config(checkpoint_id="1"), "2", a=LARGE)
        for call in (
            lambda mine: mine.aprune(["a thread"]),
            lambda mine: put(mine, THREAD, "3", a=LARGE),
        ):
            with pytest.raises(DatabaseBusyError):
                await call(saver.using(connection))
    assert await ids(saver) == ["2", "1"]


@on_postgresql
class TestReadCommitted:
    """What several statements read is of one moment, whatever commits in between."""

    @pytest.fixture
    async def meanwhile(self, saver: Saver, engine: AsyncEngine) -> AsyncIterator[Saver]:
        """Deletes the thread once, after the first statement that reads a manifest."""
        async with create_saver(engine.url) as other:
            left = [True]

            def delete_once(_: Any, __: Any, sql: str, *___: Any) -> None:
                if ".manifest" in sql and left:
                    left.clear()
                    await_only(other.adelete_thread("a thread"))

            event.listen(engine.sync_engine, "after_cursor_execute", delete_once)
            yield saver
            assert await ids(other) == []

    @pytest.fixture(autouse=True)
    async def stored(self, saver: Saver) -> None:
        first = await put(saver, THREAD, "2", None, log=["the seed"])
        await saver.aput_writes(first, [("log", "a write"), ("__interrupt__", "why?")], "a task")
        await put(saver, first, "3", None)

    async def test_a_list(self, meanwhile: Saver, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            assert await ids(meanwhile.using(connection)) == []

    async def test_a_history(self, meanwhile: Saver, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            found = await meanwhile.using(connection).aget_delta_channel_history(
                config=config(checkpoint_id="3"), channels=["log"]
            )
        assert found == {"log": {"writes": []}}

    @pytest.mark.parametrize("always", [False, True])
    async def test_damage(self, meanwhile: Saver, engine: AsyncEngine, *, always: bool) -> None:
        """What only looks like it is read again, and what is damaged is told."""
        latest = meanwhile._backend.store.queries.latest_checkpoint  # noqa: SLF001
        key = {"thread_id": "a thread", "checkpoint_ns": ""}

        def work(connection: Connection) -> None:
            if len(connection.fetch(latest, key)) != len(connection.fetch(latest, key)) or always:
                raise DamagedDataError("found one half, expected both")

        async with engine.connect() as connection:
            read = meanwhile.using(connection)._backend.read_snapshot(work)  # noqa: SLF001
            with pytest.raises(DamagedDataError) if always else nullcontext():
                await read


@on_postgresql
async def test_a_search_path_that_leads_elsewhere_is_named(
    saver: Saver, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        await connection.execute(sa.text("SET LOCAL search_path TO pg_catalog"))
        with pytest.raises(SchemaMissingError, match=r"current_schema\(\) is 'pg_catalog'"):
            await ids(saver.using(connection))
