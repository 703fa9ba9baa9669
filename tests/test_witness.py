"""The database is the witness: what a process remembers of it may be wrong, what it stores is not.

Whatever happened to the database meanwhile, each put that is acknowledged reads back equal in a
process that remembers nothing, and everything is whole.
"""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from copy import deepcopy
from typing import Any, Final, cast

import pytest
import sqlalchemy as sa
from langchain_core.runnables import RunnableConfig
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from storing import checkpoint, config, stored_bytes

from checkpointer import AsyncSQLAlchemySaver, create_saver, tables

Saver = AsyncSQLAlchemySaver
Where = RunnableConfig

NOISE: Final = random.Random(11)  # noqa: S311 - a test's data, not a secret


def text(size: int = 1000) -> str:
    """What no other value holds."""
    return NOISE.randbytes(size // 2).hex()


class Line:
    """A run of one namespace, whose list grows, and what was acknowledged of it."""

    def __init__(self, saver: Saver, where: Where | None = None) -> None:
        self.saver, self.where = saver, where or config()
        self.messages: list[str] = []
        self.acknowledged: dict[str, list[str]] = {}

    async def put(self, *more: str, name: str | None = None, **metadata: Any) -> None:
        """Put a child of the last checkpoint."""
        self.messages += more or [text()]
        checkpoint_id = name or f"{len(self.acknowledged) + 1:03}"
        new = checkpoint(checkpoint_id, {"messages": list(self.messages), "always": "x" * 2000})
        new["channel_versions"] = {"messages": checkpoint_id, "always": "1"}
        self.where = await self.saver.aput(
            self.where, new, cast("Any", metadata), {"messages": checkpoint_id}
        )
        self.acknowledged[checkpoint_id] = list(self.messages)

    async def assert_stored(self, url: str, *, since: str = "") -> None:
        """All that was acknowledged, from one checkpoint on, is what a new process reads."""
        where = config(checkpoint_ns=self.where.get("configurable", {})["checkpoint_ns"])
        async with create_saver(url) as fresh:
            found = {one.checkpoint["id"]: one async for one in fresh.alist(where)}
            for name, messages in self.acknowledged.items():
                if name >= since:
                    values = {"messages": messages, "always": "x" * 2000}
                    assert found[name].checkpoint["channel_values"] == values
            assert (await fresh.averify()).whole


class Rows:
    """The rows of all tables, copied and put back by statements, as a dump and a restore do."""

    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(url)

    async def take(self) -> None:
        """Copy all rows."""
        async with self.engine.connect() as connection:
            self.rows = {
                table: [row._asdict() for row in (await connection.execute(sa.select(table))).all()]
                for table in tables.metadata.sorted_tables
            }

    async def restore(self) -> None:
        """Put the rows back, in place of all others."""
        async with self.engine.begin() as connection:
            for table, rows in self.rows.items():
                await connection.execute(sa.delete(table))
                if rows:
                    await connection.execute(sa.insert(table), rows)
        await self.engine.dispose()


class File:
    """A copy of SQLite's file, made and put back in place by SQLite itself."""

    def __init__(self, url: str) -> None:
        self.path = sa.make_url(url).database or ""

    async def take(self) -> None:
        """Copy the file."""
        _copy(self.path, f"{self.path}.backup")

    async def restore(self) -> None:
        """Put the copy back."""
        _copy(f"{self.path}.backup", self.path)


def _copy(source: str, target: str) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


Backup = Rows | File


@pytest.fixture(params=["rows", "file"])
def backup(request: pytest.FixtureRequest, migrated_url: str) -> Backup:
    """What takes the database back in time while its connections stay."""
    if request.param == "rows":
        return Rows(migrated_url)
    if not migrated_url.startswith("sqlite"):
        pytest.skip("a server's database is one of rows")
    return File(migrated_url)


@pytest.fixture(params=["a pool", "no pool"])
async def saver(request: pytest.FixtureRequest, migrated_url: str) -> AsyncIterator[Saver]:
    """A saver that keeps its connections, and one that makes one for each call."""
    options = {"poolclass": NullPool} if request.param == "no pool" else {}
    async with create_saver(migrated_url, engine_options=options) as saver:
        yield saver


async def test_a_database_that_went_back_in_time(
    saver: Saver, backup: Backup, migrated_url: str
) -> None:
    run = Line(saver)
    await run.put()
    await backup.take()
    await run.put()
    await run.put()
    await backup.restore()
    for _ in range(3):
        await run.put()
    await run.assert_stored(migrated_url, since="004")


async def test_a_database_that_goes_back_and_forth(
    saver: Saver, backup: Backup, migrated_url: str
) -> None:
    """Each time, the very state that the process has seen before stands there again."""
    run = Line(saver)
    await run.put()
    await backup.take()
    for number in range(4):
        await run.put()
        await backup.restore()
        await run.put()
        await run.assert_stored(migrated_url, since=f"{2 * number + 3:03}")


async def test_pending_writes_that_were_stored_after_the_backup(
    saver: Saver, backup: Backup, migrated_url: str
) -> None:
    run = Line(saver)
    await run.put()
    await backup.take()
    result = text(100_000)
    await saver.aput_writes(run.where, [("messages", [result])], "a task")
    await backup.restore()
    await run.put(result)
    await run.assert_stored(migrated_url)


async def test_a_database_that_was_emptied_and_filled_with_others(
    saver: Saver, migrated_url: str
) -> None:
    run = Line(saver)
    await run.put()
    await run.put()
    rows = Rows(migrated_url)
    await rows.take()
    rows.rows = {table: [] for table in rows.rows}
    await rows.restore()
    async with create_saver(migrated_url) as other:
        await Line(other).put(name="001")
    await run.put()
    await run.assert_stored(migrated_url, since="003")


async def test_two_clones_of_a_process_that_has_learned(saver: Saver, migrated_url: str) -> None:
    """They have the same memory, and write to the same thread, in turn and at once."""
    run = Line(saver)
    await run.put()
    async with create_saver(migrated_url) as other:
        await other.aget_tuple(config("another"))
        store, copied = other._backend.store, saver._backend.store  # noqa: SLF001
        store.memory._known = deepcopy(copied.memory._known)  # noqa: SLF001
        store.memory._weights = dict(copied.memory._weights)  # noqa: SLF001
        store.contents._wholes = copied.contents._wholes.copy()  # noqa: SLF001
        clone = Line(other, run.where)
        clone.messages = list(run.messages)
        for number in range(6):
            await run.put(name=f"1{number}")
            await clone.put(name=f"2{number}")
        for number in range(6):
            await asyncio.gather(run.put(name=f"3{number}"), clone.put(name=f"4{number}"))
    await run.assert_stored(migrated_url)
    await clone.assert_stored(migrated_url)


@contextmanager
def acknowledged_at_the_second_attempt(
    saver: Saver, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> Iterator[list[str]]:
    """Let the first answer to a put be lost, once it has committed, and others go on then."""
    dialect, lost = saver._backend.database.dialect, list[str]()  # noqa: SLF001
    put = dialect.put

    async def losing(*args: Any) -> Any:
        done = await put(*args)
        if not lost:
            lost.append("an answer")
            if meanwhile is not None:
                await meanwhile()
            raise sa_exc.DBAPIError("", None, OSError("gone"), connection_invalidated=True)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "put", losing)
        yield lost


async def test_a_put_that_is_acknowledged_only_at_its_second_attempt(
    saver: Saver, migrated_url: str
) -> None:
    run = Line(saver)
    await run.put()
    with acknowledged_at_the_second_attempt(saver) as lost:
        await run.put()
    assert lost
    before = stored_bytes(migrated_url)
    await run.put()
    assert len(stored_bytes(migrated_url)) == len(before) + 1
    await run.assert_stored(migrated_url)


async def test_a_put_whose_answer_is_lost_while_others_go_on(
    saver: Saver, migrated_url: str
) -> None:
    run = Line(saver)
    await run.put()
    async with create_saver(migrated_url) as other:
        second = Line(other, config(checkpoint_ns="inner"))
        await second.put()
        with acknowledged_at_the_second_attempt(saver, meanwhile=second.put) as lost:
            await run.put()
        assert lost
        await run.put()
        await second.put()
    await run.assert_stored(migrated_url)
    await second.assert_stored(migrated_url)


async def test_a_lost_answer_of_a_put_that_builds_on_nothing(
    saver: Saver, migrated_url: str
) -> None:
    """Its second attempt shows no state under which others have learned what was pruned since."""
    async with savers(migrated_url, 2) as (reader, pruning):
        await Line(saver).put(name="001")
        from_the_first = Line(reader)
        text_of_first = (await _messages(reader))[:]

        async def others_go_on() -> None:
            first = config(checkpoint_id="001")
            assert await reader.aget_tuple(first) is not None
            await pruning.aprune(["a thread"])

        with acknowledged_at_the_second_attempt(saver, meanwhile=others_go_on):
            await Line(saver).put(name="002")
        from_the_first.where = config(checkpoint_id="001")
        from_the_first.messages = text_of_first
        await from_the_first.put(name="003")
    await from_the_first.assert_stored(migrated_url)


async def _messages(saver: Saver) -> list[str]:
    found = await saver.aget_tuple(config())
    assert found is not None
    messages: list[str] = found.checkpoint["channel_values"]["messages"]
    return messages


async def test_a_lost_answer_stores_nothing_twice(saver: Saver, migrated_url: str) -> None:
    run = Line(saver)
    await run.put()
    async with create_saver(migrated_url) as other:
        second = Line(other, config(checkpoint_ns="inner"))
        await second.put()
        with acknowledged_at_the_second_attempt(saver, meanwhile=second.put):
            await run.put(text(1_000_000))
        streams = len({stream for _, stream in stored_bytes(migrated_url)})
    assert streams == 4, "one for each put"


@pytest.mark.parametrize("parent", ["a\0b", "\ud800", "x" * 3000])
async def test_a_parent_that_no_database_can_look_for(
    saver: Saver, migrated_url: str, parent: str
) -> None:
    """What a graph writes into the metadata's `parents` is no identifier of ours."""
    run = Line(saver)
    await run.put(parents={"": parent, parent: "001"})
    await run.put(parents={"": parent})
    await run.assert_stored(migrated_url)


async def test_a_graph_and_its_subgraph_that_put_at_once(saver: Saver, migrated_url: str) -> None:
    root, inner = Line(saver), Line(saver, config(checkpoint_ns="inner"))
    shared = [text() for _ in range(100)]
    await root.put(*shared)
    await inner.put(*shared, parents={"": "001"})
    for _ in range(20):
        await asyncio.gather(root.put(), inner.put())
    for line in (root, inner):
        await line.assert_stored(migrated_url)


async def test_a_batch_of_which_one_caller_is_cancelled(saver: Saver, migrated_url: str) -> None:
    """What it would have stored, no other put names."""
    root, inner = Line(saver), Line(saver, config(checkpoint_ns="inner"))
    await root.put()
    await inner.put()
    for number in range(10):
        long = text(100_000)
        cancelled = asyncio.create_task(
            saver.aput_writes(root.where, [("messages", [long])], f"task {number}")
        )
        others = asyncio.gather(root.put(), inner.put())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, others, return_exceptions=True)
        await root.put(long)
    await root.assert_stored(migrated_url)
    await inner.assert_stored(migrated_url)


@asynccontextmanager
async def savers(url: str, count: int) -> AsyncIterator[list[Saver]]:
    """Savers that know nothing of each other, as those of several processes."""
    found = [await create_saver(url).__aenter__() for _ in range(count)]
    yield found
    for one in found:
        await one.aclose()


@pytest.mark.parametrize("count", [2, 4])
async def test_processes_that_put_to_one_thread_without_a_pause(
    migrated_url: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three tries a put; what was acknowledged is stored."""
    tries = dict[str, int]()
    _count_tries(monkeypatch, tries)
    async with savers(migrated_url, count) as all_of_them:
        lines = [Line(one, config(checkpoint_ns=f"{n}")) for n, one in enumerate(all_of_them)]

        async def go_on(line: Line) -> None:
            for _ in range(25):
                await line.put()

        await asyncio.gather(*map(go_on, lines))
        assert max(tries.values()) <= 3
    for line in lines:
        await line.assert_stored(migrated_url)


def _count_tries(monkeypatch: pytest.MonkeyPatch, tries: dict[str, int]) -> None:
    """Count how often each checkpoint is encoded: once for each try."""
    from checkpointer.drafts import NewCheckpoint  # noqa: PLC0415 - only here

    encode: Callable[..., Any] = NewCheckpoint.encode

    def counted(self: NewCheckpoint, *args: Any) -> Any:
        key = f"{self.namespace} {self.checkpoint_id}"
        tries[key] = tries.get(key, 0) + 1
        return encode(self, *args)

    monkeypatch.setattr(NewCheckpoint, "encode", counted)


async def test_a_thread_that_is_deleted_under_a_run_is_made_anew(migrated_url: str) -> None:
    async with savers(migrated_url, 2) as (saver, other):
        run = Line(saver)
        for _ in range(5):
            await run.put()
            await other.adelete_thread("a thread")
        await run.put()
        await run.put()
        await run.assert_stored(migrated_url, since="006")


async def test_a_thread_that_is_pruned_under_a_run(migrated_url: str) -> None:
    async with savers(migrated_url, 2) as (saver, other):
        run = Line(saver)
        for _ in range(5):
            await run.put()
            await run.put()
            await other.aprune(["a thread"])
        await run.put()
        await run.assert_stored(migrated_url, since="011")


async def test_what_is_stored_does_not_depend_on_what_is_remembered(migrated_url: str) -> None:
    """Remembering nothing, and a new process for every put, cost round trips and no bytes."""

    async def bytes_of(thread: str, saver_for: Callable[[], Saver]) -> int:
        where, messages = config(thread), list[str]()
        for number in range(40):
            messages.append(f"{number} " * 300)
            new = checkpoint(f"{number:03}", {"messages": list(messages), "document": "d" * 9000})
            saver = saver_for()
            where = await saver.aput(where, new, {}, {})
            await saver.aput_writes(where, [("messages", [messages[-1] * 20])], "a task")
            if saver is not long_lived:
                await saver.aclose()
        async with create_saver(migrated_url) as fresh:
            return (await fresh.astats(thread)).stored_bytes

    async with create_saver(migrated_url) as long_lived:
        expected = await bytes_of("long-lived", lambda: long_lived)
    forgetful = await bytes_of("forgetful", lambda: create_saver(migrated_url, cache_bytes=0))
    renewed = await bytes_of("renewed", lambda: create_saver(migrated_url))
    assert max(forgetful, renewed) <= 1.3 * expected
