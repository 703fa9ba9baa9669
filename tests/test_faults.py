"""What fails, fails whole: no transaction stays open, no caller waits on, no value is mixed."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from databases import PostgreSQLDatabases
from langgraph.checkpoint.base import Checkpoint
from schemas import execute
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from storing import batches, checkpoint, config, put, statements

from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseError,
    DatabaseUnavailableError,
    EventLoopError,
    create_saver,
    puts,
)

THREAD = config()


def rollback_journal(url: str) -> None:
    """As where a network's file system has no WAL."""
    connection = sqlite3.connect(str(sa.make_url(url).database))
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_commit_that_fails_leaves_nothing_behind(migrated_url: str) -> None:
    rollback_journal(migrated_url)
    engine = create_async_engine(migrated_url, connect_args={"timeout": 0.1})
    saver = create_saver(engine, patience=0)
    await put(saver, THREAD, "1")
    reader = sqlite3.connect(str(sa.make_url(migrated_url).database))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM checkpointer_checkpoints").fetchall()

    with pytest.raises(DatabaseUnavailableError, match="locked"):
        await put(saver, THREAD, "2")
    reader.close()
    await put(saver, THREAD, "3")

    assert [one.checkpoint["id"] async for one in saver.alist(THREAD)] == ["3", "1"]
    await saver.aclose()
    await engine.dispose()


async def test_a_transaction_of_the_application_is_refused_and_not_committed() -> None:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    saver = create_saver(engine)
    await saver.setup()
    async with engine.connect() as connection:
        await connection.execute(sa.text("CREATE TABLE mine (a)"))
        await connection.commit()
        await connection.execute(sa.text("INSERT INTO mine VALUES (1)"))

        with pytest.raises(DatabaseError, match=r"transaction of the application.*of its own"):
            await saver.aget_tuple(THREAD)

        await connection.rollback()
        assert (await connection.execute(sa.text("SELECT count(*) FROM mine"))).scalar() == 0
    assert await saver.aget_tuple(THREAD) is None
    await saver.aclose()
    await engine.dispose()


@pytest.mark.parametrize("used", [False, True])
async def test_a_migration_ends_no_transaction_of_the_application(*, used: bool) -> None:
    engine = create_async_engine("sqlite+aiosqlite://", pool_reset_on_return=None)
    saver = create_saver(engine)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE mine (a)"))
    if used:
        await put(saver, THREAD, "1")
    async with engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO mine VALUES (1)"))
        with pytest.raises(DatabaseError, match=r"transaction of the application.*of its own"):
            await saver.setup()
    async with engine.begin() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM mine"))).scalar() == 1
    await saver.setup()
    await put(saver, THREAD, "2")
    await saver.aclose()
    await engine.dispose()


@pytest.fixture
def cyrillic_url(postgres_url: str) -> Iterator[str]:
    """A database whose encoding orders letters otherwise than their code points."""
    name = f"checkpointer_test_{uuid4().hex}"
    options = "TEMPLATE template0 ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'"
    execute(postgres_url, f"CREATE DATABASE {name} {options}")
    parsed = sa.make_url(postgres_url).set(drivername="postgresql+asyncpg", database=name)
    url = parsed.render_as_string(hide_password=False)
    yield url
    PostgreSQLDatabases(postgres_url).drop(url)


async def test_threads_are_told_apart_whatever_the_databases_order(cyrillic_url: str) -> None:
    threads = [config("\N{CYRILLIC SMALL LETTER IO}"), config("\N{CYRILLIC SMALL LETTER YA}")]
    async with create_saver(cyrillic_url) as saver:
        await saver.setup()
        at = [await put(saver, one, "1", a="x" * 1000) for one in threads]
        with statements() as seen:
            await asyncio.gather(*(put(saver, one, "2", a="y" * 1000) for one in at))
        found = [await saver.aget_tuple(one) for one in threads]
    assert [one and one.checkpoint["id"] for one in found] == ["2", "2"]
    assert batches(seen) == 1


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_a_batch_that_the_database_leaves_out_is_an_error(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(saver, THREAD, "1")
    tries: list[int] = []

    def refused(*_: Any) -> puts.Stored:
        tries.append(1)
        return puts.Stored({}, set())

    with monkeypatch.context() as patch:
        patch.setattr(puts, "_put_at_once", refused)
        with pytest.raises(DatabaseError, match="refused a put under the state"):
            await put(saver, THREAD, "2")
    assert len(tries) == 3


@pytest.mark.parametrize("name", ["missing/x.db", "junk.db"])
async def test_a_file_that_is_no_database_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database" * 1000)
    async with create_saver(f"sqlite:///{tmp_path / name}") as saver:
        with pytest.raises(DatabaseError, match=r"refused.*(unable to open|not a database)"):
            await saver.aget_tuple(THREAD)
    # aiosqlite's thread still answers to the loop after a connection has failed.
    while any("_connection_worker_thread" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110 - a thread tells no event
        await asyncio.sleep(0.01)


def test_a_sync_call_while_the_loop_stands_still_is_refused(migrated_url: str) -> None:
    saver = create_saver(migrated_url)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(saver.aget_tuple(THREAD))
        with pytest.raises(EventLoopError, match=r"does not run.*with create_saver"):
            saver.get_tuple(THREAD)
        runner.run(saver.aclose())


async def test_a_database_that_is_away_fails_a_batch_at_once(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(saver, THREAD, "1")
    backend = saver._backend  # noqa: SLF001
    tries: list[int] = []

    async def away(engine: object, work: object) -> None:
        del engine, work
        tries.append(1)
        await asyncio.sleep(0)
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(backend.database.dialect, "put", away)
        patch.setattr(backend.database._retrying, "_patience", 0)  # noqa: SLF001
        puts = [put(saver, config(f"thread {n}"), "1") for n in range(20)]
        failed = await asyncio.gather(*puts, return_exceptions=True)

    assert {type(one) for one in failed} == {DatabaseUnavailableError}
    # Where single threads may be held, each is tried once more by itself.
    apart = len(puts) if backend.database.dialect.locks_rows else 0
    assert len(tries) <= 2 + apart


async def test_the_writer_works_in_no_callers_context(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen: list[str] = []
    database = saver._backend.database  # noqa: SLF001
    original = database.put

    async def look(work: Any) -> Any:
        seen.append(caller.get())
        return await original(work)

    monkeypatch.setattr(database, "put", look)
    caller.set("the first")

    await put(saver, THREAD, "1")

    assert seen == ["nobody"]


async def test_versions_that_a_caller_changes_in_place_hide_no_update(
    saver: AsyncSQLAlchemySaver,
) -> None:
    at = await put(saver, THREAD, "1", a="old")
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    found.checkpoint["id"] = "2"
    found.checkpoint["channel_values"]["a"] = "new"
    found.checkpoint["channel_versions"]["a"] = "2"

    await saver.aput(at, found.checkpoint, {}, {})

    stored = await saver.aget_tuple(THREAD)
    assert stored is not None
    assert stored.checkpoint["channel_values"] == {"a": "new"}


def with_live(number: int, live: list[str], **values: Any) -> Checkpoint:
    """A checkpoint whose channel `live` has the same version always."""
    one = checkpoint(str(number), {"live": live, **values})
    one["channel_versions"]["live"] = "1"
    return one


async def test_a_prune_does_not_make_a_put_take_an_object_changed_meanwhile(
    saver: AsyncSQLAlchemySaver,
) -> None:
    live = ["x" * 5000]
    at = THREAD
    for number in (1, 2):
        at = await saver.aput(at, with_live(number, live, big="y" * 9000 * number), {}, {})
    await saver.aprune(["a thread"])

    live.append("changed by the next superstep")
    at = await saver.aput(at, with_live(3, live), {}, {})

    cold = create_saver(saver.engine)
    stored = await cold.aget_tuple(at)
    assert stored is not None
    assert stored.checkpoint["channel_values"] == {"live": ["x" * 5000]}


async def test_a_checkpoint_that_is_its_own_ancestor_ends_the_walk(
    saver: AsyncSQLAlchemySaver,
) -> None:
    await put(saver, config(checkpoint_id="1"), "1")
    await put(saver, config(checkpoint_id="1"), "2")

    found = await saver.aget_delta_channel_history(config=THREAD, channels=["never written"])

    assert found == {"never written": {"writes": []}}
    await saver.aprune(["a thread"])


async def test_a_str_enum_names_a_thread_by_its_value(saver: AsyncSQLAlchemySaver) -> None:
    class Thread(StrEnum):
        ONE = "one"

    await put(saver, config(Thread.ONE), "1")

    assert await saver.aget_tuple(config("one")) is not None
