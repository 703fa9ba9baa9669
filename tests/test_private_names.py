"""Private names of other packages: where one is missing or does otherwise, a public way works."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from threading import get_ident
from typing import Any

import aiosqlite
import pytest
import sqlalchemy as sa
from pyfastcdc import FastCDC
from schemas import query
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool, StaticPool
from storing import LARGE, config, operate, put, statements, stored_contents

from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseError,
    UsageError,
    create_saver,
    renewal,
    sharing,
    underlying,
    wire,
    worker,
)

pytestmark = pytest.mark.everywhere

Saver = AsyncSQLAlchemySaver
Answer = Callable[[Callable[[], Any]], Any]

THREAD = config()

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


def missing(function: Callable[[], Any]) -> Any:
    raise AttributeError("_execute")


def elsewhere(function: Callable[[], Any]) -> Any:
    """In the event loop's thread."""
    return function()


def unanswered(function: Callable[[], Any]) -> Any:
    function()


def never(function: Callable[[], Any]) -> Any:
    return None


@pytest.fixture(params=[missing, elsewhere, unanswered, never])
def hand_over(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the package hands over to aiosqlite, which does something else with it."""
    execute: Any = aiosqlite.Connection._execute  # noqa: SLF001
    handed: list[object] = []

    async def broken(self: Any, function: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(function, worker.Hop) and function is not get_ident:
            return await execute(self, function, *args, **options)
        handed.append(function)
        return request.param(function)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", broken)
    return handed


@on_sqlite
async def test_without_a_thread_that_takes_functions_all_operations_work(
    new_migrated_url: Callable[[], str], hand_over: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = new_migrated_url(), new_migrated_url()
    async with create_saver(url) as saver:
        found = await operate(saver)
        async with saver.engine.begin() as connection:
            await put(saver.using(connection), THREAD, "x", a=LARGE)
            assert await saver.using(connection).aget_tuple(THREAD) is not None
            await connection.rollback()
        assert hand_over, "nothing was tried"
        assert not any(isinstance(one, worker.Hop) for one in hand_over)
    monkeypatch.undo()
    async with create_saver(other) as saver:
        assert found == await operate(saver)
    assert stored_contents(url) == stored_contents(other)


class TestOneConnectionForAll:
    """A database in memory, where aiosqlite's thread takes no functions."""

    @pytest.mark.parametrize("database_kind", ["stepwise"], indirect=True)
    async def test_transactions_are_whole(self, database_kind: str) -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with create_saver(engine) as one, create_saver(engine) as other:
            await one.setup()
            puts = [put(saver, config(n), "1", a=LARGE) for n in range(9) for saver in (one, other)]
            tasks = [asyncio.create_task(work) for work in puts]
            await asyncio.sleep(0.005)
            for task in tasks[::3]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await one.averify()).whole
            assert [
                found.checkpoint["channel_values"] == {"a": LARGE}
                async for found in other.alist(None)
            ] == [True] * 9
        await engine.dispose()

    @pytest.mark.parametrize("database_kind", ["stepwise"], indirect=True)
    async def test_a_transaction_of_the_application_is_refused(self, database_kind: str) -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://", poolclass=StaticPool, pool_reset_on_return=None
        )
        async with create_saver(engine) as saver, engine.connect() as connection:
            await saver.setup()
            await connection.exec_driver_sql("CREATE TABLE mine (a)")
            await connection.commit()
            await connection.exec_driver_sql("INSERT INTO mine VALUES (1)")
            with pytest.raises(DatabaseError, match=r"transaction of the application.*its own"):
                await put(saver, THREAD, "1")
            await connection.commit()
            await put(saver, THREAD, "2")
            assert await connection.scalar(sa.text("SELECT a FROM mine")) == 1
        await engine.dispose()


@on_sqlite
async def test_tasks_look_at_a_connection_that_they_share_together(database_kind: str) -> None:
    for _ in range(20):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
        savers = [create_saver(engine) for _ in range(4)]
        assert await asyncio.gather(*(saver.aget_tuple(THREAD) for saver in savers)) == [None] * 4
        await engine.dispose()


@on_sqlite
@pytest.mark.parametrize("waits", range(8))
async def test_a_call_that_is_cancelled_at_its_first_look_leaves_the_application_its_connection(
    database_kind: str, waits: int
) -> None:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    event.listen(engine.sync_engine, "begin", lambda core: core.exec_driver_sql("BEGIN"))
    async with create_saver(engine) as saver:
        await saver.setup()
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE mine (a)")
            call = asyncio.create_task(saver.using(connection).aget_tuple(THREAD))
            for _ in range(waits):
                await asyncio.sleep(0.0005)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await connection.exec_driver_sql("INSERT INTO mine VALUES (1)")
        async with engine.connect() as connection:
            assert await connection.scalar(sa.text("SELECT count(*) FROM mine")) == 1
    await engine.dispose()


async def test_a_sessions_engine_stays_the_applications_own(migrated_url: str) -> None:
    engine = create_async_engine(migrated_url)

    class Routed(Session):
        def get_bind(self, *args: Any, **options: Any) -> sa.Engine:
            return engine.sync_engine

    async with create_saver(engine) as saver:
        async with AsyncSession(sync_session_class=Routed) as session:
            assert await saver.using(session).aget_tuple(THREAD) is None
        async with AsyncSession(sync_session_class=Routed) as session:
            assert (await session.connection()).engine is engine
    await engine.dispose()


class TestRenewedPools:
    """All connections of a pool are replaced once the database was lost."""

    @pytest.fixture(params=["private", "public"])
    async def engine(
        self, request: pytest.FixtureRequest, migrated_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[AsyncEngine]:
        engine = create_async_engine(migrated_url, poolclass=AsyncAdaptedQueuePool)
        if request.param == "public":
            monkeypatch.setattr(Pool, "_invalidate", None)
        yield engine
        await engine.dispose()

    async def test_each_connection_is_replaced_once(self, engine: AsyncEngine) -> None:
        made: list[object] = []
        event.listen(engine.sync_engine, "connect", lambda connection, _: made.append(connection))
        for expected in (1, 2, 2, 3):
            if expected > len(made) > 0:
                renewal.renew(engine.pool)
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
            assert len(made) == expected

    async def test_listeners_do_not_pile_up(self, engine: AsyncEngine) -> None:
        for _ in range(5):
            renewal.renew(engine.pool)
            async with engine.connect():
                renewal.renew(engine.pool)
        dispatch: Any = engine.pool.dispatch
        assert len(dispatch.checkout) <= 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has no such modes")
@pytest.mark.parametrize("database_kind", ["stepwise"], indirect=True)
@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_mode_of_the_drivers(
    new_migrated_url: Callable[[], str], *, autocommit: bool
) -> None:
    url, other = new_migrated_url(), new_migrated_url()
    engine = create_async_engine(url, connect_args={"autocommit": autocommit})
    async with create_saver(engine) as saver, create_saver(other) as usual:
        assert await operate(saver) == await operate(usual)
    await engine.dispose()
    assert stored_contents(url) == stored_contents(other)


@on_sqlite
async def test_a_connection_that_cannot_be_closed_without_a_reset_is_reset(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underlying, "skips_reset", lambda kind: False)
    engine = create_async_engine(migrated_url)
    async with create_saver(engine) as saver:
        await operate(saver)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def test_a_close_without_its_argument_is_no_way_to_skip_the_reset() -> None:
    class Other:
        def _close_special(self) -> None: ...

    assert not underlying.skips_reset(Other)
    assert not underlying.skips_reset(object)


async def test_without_greenlets_of_sqlalchemys_all_operations_work(
    new_migrated_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = new_migrated_url(), new_migrated_url()
    async with create_saver(other) as saver:
        expected = await operate(saver)
    for module in (worker, wire):
        monkeypatch.setattr(module, "greenlet_spawn", None)
    async with create_saver(url) as saver:
        with statements() as past_sqlalchemy:
            assert await operate(saver) == expected
    assert not past_sqlalchemy
    assert stored_contents(url) == stored_contents(other)


@on_postgresql
async def test_an_engine_whose_listeners_are_unknown_is_watched(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_saver(migrated_url) as saver:
        assert wire.is_usable(saver.engine.sync_engine)
        monkeypatch.setattr(wire, "_EVENTS", ("an event that is none",))
        assert not wire.is_usable(saver.engine.sync_engine)
        await put(saver, THREAD, "1")
        assert await saver.aget_tuple(THREAD) is not None


@on_postgresql
async def test_a_pool_that_does_not_tell_its_bound_keeps_order_itself(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_async_engine(migrated_url, pool_size=1, max_overflow=0)
    pool: Any = engine.pool
    assert isinstance(pool, QueuePool)
    async with create_saver(engine) as saver:
        assert saver._backend.database._turns is not None  # noqa: SLF001
    del pool._max_overflow  # noqa: SLF001
    async with create_saver(engine) as saver:
        assert saver._backend.database._turns is None  # noqa: SLF001
        pool._max_overflow = 0  # noqa: SLF001 - SQLAlchemy needs it, by whatever name
        await asyncio.gather(*(put(saver, config(n), "1") for n in range(9)))
    await engine.dispose()


async def test_autocommit_is_refused_by_what_sqlalchemy_tells(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.Connection, "_is_autocommit_isolation", None)
    engine = create_async_engine(migrated_url)
    async with create_saver(engine) as saver:
        await put(saver, THREAD, "1")
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(UsageError, match="AUTOCOMMIT"):
                await saver.using(connection).aget_tuple(THREAD)
        async with AsyncSession(engine) as session:
            assert await saver.using(session).aget_tuple(THREAD) is not None
    await engine.dispose()


async def test_a_store_with_other_cut_points_reads_the_same(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So any version of the chunking library reads what another one has cut."""
    many = [f"message {number}: {number * 7919:050}" for number in range(2000)]
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "1", a=many)
    before = query(migrated_url, "SELECT count(*) FROM checkpointer_segments")
    monkeypatch.setattr(sharing, "FastCDC", lambda *_, **sizes: FastCDC(2048, seed=7, **sizes))
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "2", a=[*many, "one more"])
        for number, values in (("1", many), ("2", [*many, "one more"])):
            found = await saver.aget_tuple(config(checkpoint_id=number))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"a": values}
        assert (await saver.averify()).whole
    assert query(migrated_url, "SELECT count(*) FROM checkpointer_segments") != before
