"""The statements of each operation: how many, and over which keys."""

import asyncio
import json
import random
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from schemas import execute
from storing import TABLES, Statement, config, put, statements

from checkpointer import AsyncSQLAlchemySaver, RetentionPolicy, create_saver, tables

Saver = AsyncSQLAlchemySaver

THREAD = config()
FIRST = config(checkpoint_id="1")
LARGE = [f"message {number}: {number * 7919:050}" for number in range(300)]

AT_ONCE = ["WITH threads"]
STATES = "SELECT threads"
TOUCH = "INSERT threads"
CHECKPOINTS = "INSERT checkpoints"
WRITES = "INSERT writes"
SEGMENTS = "INSERT segments"


def summary(statement: Statement) -> str:
    """What a statement does, and to which table first."""
    sql = " ".join(statement.sql.split())
    table = re.search(r"(?:INTO|FROM|UPDATE) checkpointer_(\w+)", sql)
    assert table, sql
    return f"{sql.split()[0]} {table[1]}"


async def run(work: Awaitable[object]) -> list[str]:
    """The statements that some work takes."""
    with statements() as seen:
        await work
    return [summary(one) for one in seen]


async def listed(saver: Saver, **options: Any) -> list[object]:
    return [found async for found in saver.alist(THREAD, **options)]


@pytest.fixture(autouse=True)
async def used(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is checked once, before the first operation; no thread's row gets stale."""
    monkeypatch.setattr("checkpointer.puts.TOUCH_INTERVAL", timedelta(hours=1))
    await saver.aget_tuple(THREAD)


@pytest.fixture
def puts(saver: Saver) -> Callable[..., list[str]]:
    """What a batch of puts takes: one statement where rows can be passed as arrays."""

    def taken(*statements: str) -> list[str]:
        return AT_ONCE if saver.engine.dialect.name == "postgresql" else list(statements)

    return taken


Puts = Callable[..., list[str]]


def new_segments(seen: list[Statement]) -> int:
    """How many segments were sent with one batch."""
    for one in seen:
        if summary(one) == SEGMENTS:
            return len(one.parameters)
        if "INTO checkpointer_segments" in one.sql:
            return len(one.parameters[0][0])  # in the order of the statement, their threads first
    return 0


class TestPuts:
    async def test_a_checkpoint_takes_two(self, saver: Saver, puts: Puts) -> None:
        assert await run(put(saver, THREAD, "1", text="x")) == puts(STATES, TOUCH, CHECKPOINTS)
        for name in ("2", "3"):
            assert await run(put(saver, FIRST, name, text="x")) == puts(STATES, CHECKPOINTS)

    async def test_a_thread_is_touched_again_after_a_while(
        self, saver: Saver, puts: Puts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("checkpointer.puts.TOUCH_INTERVAL", timedelta(hours=-1))
        for name in ("1", "2"):
            assert await run(put(saver, THREAD, name)) == puts(STATES, TOUCH, CHECKPOINTS)

    async def test_a_thread_is_touched_again_once_a_clock_was_set_back(
        self, saver: Saver, puts: Puts
    ) -> None:
        await put(saver, THREAD, "1")
        later = datetime.now(UTC) + timedelta(days=1)
        async with saver.engine.begin() as connection:
            await connection.execute(sa.update(tables.threads).values(updated_at=later))
        assert await run(put(saver, THREAD, "2")) == puts(STATES, TOUCH, CHECKPOINTS)
        async with saver.engine.connect() as connection:
            updated_at = await connection.scalar(sa.select(tables.threads.c.updated_at))
        assert updated_at is not None
        assert updated_at <= datetime.now(UTC)

    async def test_a_checkpoint_with_long_values_takes_four(self, saver: Saver, puts: Puts) -> None:
        await put(saver, THREAD, "0")
        taken = await run(put(saver, THREAD, "1", a=LARGE, b=LARGE))
        assert taken == puts(STATES, TOUCH, SEGMENTS, CHECKPOINTS)

    async def test_only_new_bytes_are_sent_in_one_row(self, saver: Saver, puts: Puts) -> None:
        at = await put(saver, THREAD, "1", a=LARGE)
        with statements() as seen:
            at = await put(saver, at, "2", a=[*LARGE, "x" * 1000], b="x" * 1000)
        assert [summary(one) for one in seen] == puts(STATES, TOUCH, SEGMENTS, CHECKPOINTS)
        assert new_segments(seen) == 1
        taken = await run(put(saver, at, "3", a=[*LARGE, "x" * 1000]))
        assert taken == puts(STATES, CHECKPOINTS)

    async def test_what_was_read_is_not_sent_again(self, saver: Saver, puts: Puts) -> None:
        at = await put(saver, THREAD, "1", a=LARGE)
        async with create_saver(saver.engine) as cold:
            await cold.aget_tuple(THREAD)
            with statements() as seen:
                await put(cold, at, "2", a=LARGE)
        assert [summary(one) for one in seen] == puts(STATES, CHECKPOINTS)
        assert not new_segments(seen)

    async def test_what_a_put_builds_on_is_read_where_it_is_not_remembered(
        self, saver: Saver, puts: Puts
    ) -> None:
        at = await put(saver, THREAD, "1", a=LARGE)
        async with create_saver(saver.engine) as cold:
            await cold.aget_tuple(config("another"))
            with statements() as seen:
                await put(cold, at, "2", a=LARGE)
        basis = ["SELECT threads", "SELECT writes", "SELECT segments"]
        assert [summary(one) for one in seen] == [*basis, *puts(STATES, CHECKPOINTS)]
        assert not new_segments(seen)

    async def test_writes_take_two(self, saver: Saver, puts: Puts) -> None:
        await put(saver, THREAD, "1")
        for task in ("one", "other"):
            work = saver.aput_writes(FIRST, [("a", 1), ("b", 2), ("c", "x" * 100)], task)
            assert await run(work) == puts(STATES, WRITES)
        taken = await run(saver.aput_writes(FIRST, [("a", LARGE)], "large"))
        assert taken == puts(STATES, TOUCH, SEGMENTS, WRITES)
        taken = await run(saver.aput_writes(FIRST, [("__error__", "x"), ("a", 1)], "failed"))
        assert taken == puts(STATES, WRITES, WRITES)

    async def test_no_writes_take_none(self, saver: Saver) -> None:
        assert await run(saver.aput_writes(FIRST, [], "a task")) == []

    async def test_any_number_of_puts_take_no_more(self, saver: Saver, puts: Puts) -> None:
        async def some(count: int) -> None:
            checkpoints = (put(saver, config(n), "1", a=LARGE, n=n) for n in range(count))
            writes = (saver.aput_writes(config(n, "1"), [("a", n)], "task") for n in range(count))
            await asyncio.gather(*checkpoints, *writes)

        for count in (2, 50):
            taken = await run(some(count))
            assert taken == puts(STATES, TOUCH, SEGMENTS, CHECKPOINTS, WRITES)
            taken = await run(some(count))
            assert taken == puts(STATES, TOUCH, SEGMENTS, CHECKPOINTS, WRITES)


CHECKPOINT = "WITH checkpoints"  # and its writes
PAGE = ["SELECT checkpoints", "SELECT writes"]


class TestGets:
    async def test_a_warm_get_takes_one(self, saver: Saver) -> None:
        await put(saver, THREAD, "1", a=LARGE)
        await saver.aput_writes(FIRST, [("a", LARGE)], "a task")
        for asked in (THREAD, FIRST, config("no thread")):
            assert await run(saver.aget_tuple(asked)) == [CHECKPOINT]

    async def test_a_cold_get_takes_one_more(self, saver: Saver) -> None:
        at = THREAD
        for name, count in (("1", 30), ("2", 150), ("3", 9000)):
            at = await put(saver, at, name, a=random.Random(7).randbytes(500 * count))  # noqa: S311
            async with create_saver(saver.engine) as cold:
                await cold.aget_tuple(config("no thread"))
                assert await run(cold.aget_tuple(THREAD)) == [CHECKPOINT, "SELECT segments"]

    async def test_a_page_of_a_list_takes_two_and_one_for_long_values(self, saver: Saver) -> None:
        at = THREAD
        for number in range(100):
            at = await put(saver, at, f"{number:03}", a=LARGE[:20], n=number)
        assert await run(listed(saver)) == PAGE * 3
        assert await run(listed(saver, limit=16)) == PAGE
        assert await run(listed(saver, filter={"no": "such"})) == PAGE[:1]
        async with create_saver(saver.engine) as cold:
            await cold.aget_tuple(config("no thread"))
            assert await run(listed(cold)) == [*PAGE, "SELECT segments"] * 3

    async def test_history_takes_no_more_for_a_longer_one(self, saver: Saver) -> None:
        parent = await put(saver, THREAD, "000", a=1)
        taken = []
        for number in range(1, 41):
            await saver.aput_writes(parent, [("a", number)], "a task")
            parent = await put(saver, parent, f"{number:03}", b=1)
            work = saver.aget_delta_channel_history(config=parent, channels=["a"])
            taken.append(await run(work))
        assert taken[0] == taken[-1] == ["WITH checkpoints", "SELECT writes"]


class TestDeletes:
    """The number of statements rests on the number of namespaces alone."""

    @pytest.fixture(params=[3, 60])
    async def count(self, saver: Saver, request: pytest.FixtureRequest) -> int:
        parent = THREAD
        for number in range(request.param):
            metadata = {"run_id": f"run {number % 2}"}
            parent = await put(saver, parent, f"{number:03}", metadata, a=[number, *LARGE])
            await saver.aput_writes(parent, [("a", [number, *LARGE])], "a task")
        count: int = request.param
        return count

    async def test_deleting_a_thread(self, saver: Saver, count: int) -> None:
        at_once = saver.engine.dialect.name == "postgresql"
        tables = ("writes", "checkpoints", "segments", "threads")
        deletes = ["WITH writes"] if at_once else [f"DELETE {table}" for table in tables]
        assert await run(saver.adelete_thread("a thread")) == ["SELECT threads", *deletes]

    async def test_pruning_a_thread(self, saver: Saver, count: int) -> None:
        taken = await run(saver.aprune(["a thread"]))
        assert len(taken) <= 15

    async def test_pruning_a_thread_to_the_last_few(self, saver: Saver, count: int) -> None:
        planned = await run(saver.aprune(["a thread"], keep_last=2, dry_run=True))
        assert all(one.startswith("SELECT") for one in planned)
        taken = await run(saver.aprune(["a thread"], keep_last=2))
        assert len(taken) <= 15

    async def test_retaining(self, saver: Saver, count: int) -> None:
        await put(saver, config("short"), "1", a=LARGE)
        policy = RetentionPolicy(keep_last=2, idle_for=timedelta(days=1))
        # Three for the page of threads, one for the end, one that asks again whether it is idle.
        assert len(await run(saver.aretain(policy))) <= 14 + 5

    async def test_deleting_runs(self, saver: Saver, count: int) -> None:
        taken = await run(saver.adelete_for_runs(["run 0"]))
        assert len(taken) <= 15

    async def test_copying_a_thread(self, saver: Saver, count: int) -> None:
        assert len(await run(saver.acopy_thread("a thread", "another"))) <= 7
        up_to = saver.acopy_thread("a thread", "another", checkpoint_id=f"{count - 1:03}")
        assert len(await run(up_to)) <= 15


HOT: dict[str, Callable[[Saver], Awaitable[object]]] = {
    "aput": lambda saver: put(saver, FIRST, "2", a=LARGE[:10]),
    "aput, many": lambda saver: asyncio.gather(*(put(saver, config(n), "1") for n in range(3))),
    "aput, with a long value": lambda saver: put(saver, FIRST, "2", a=[*LARGE, "one more"]),
    "aput_writes": lambda saver: saver.aput_writes(FIRST, [("a", 1), ("__error__", 1)], "a task"),
    "aget_tuple": lambda saver: saver.aget_tuple(THREAD),
    "aget_tuple, by id": lambda saver: saver.aget_tuple(FIRST),
    "alist": listed,
    "alist, whole thread": lambda saver: _all(
        saver.alist({"configurable": {"thread_id": "a thread"}})
    ),
    "alist, before": lambda saver: listed(saver, before=config(checkpoint_id="5"), limit=5),
    "alist, filtered": lambda saver: listed(saver, filter={"step": 1}),
    "history": lambda saver: saver.aget_delta_channel_history(config=THREAD, channels=["x"]),
    "history, by id": lambda saver: saver.aget_delta_channel_history(
        config=config(checkpoint_id="02"), channels=["a", "x"]
    ),
    "adelete_thread": lambda saver: saver.adelete_thread("a thread"),
    "aprune": lambda saver: saver.aprune(["a thread"]),
    "aprune, delete": lambda saver: saver.aprune(["a thread"], strategy="delete"),
    "aprune, keep_last": lambda saver: saver.aprune(["a thread"], keep_last=3),
    "astats": lambda saver: saver.astats("a thread"),
    "acopy_thread": lambda saver: saver.acopy_thread("a thread", "another"),
    "acopy_thread, up to": lambda saver: saver.acopy_thread(
        "a thread", "another", checkpoint_id="02"
    ),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run 1", "run 2"]),
}


async def _all(found: Any) -> list[object]:
    return [one async for one in found]


async def fill(saver: Saver, checkpoints: int) -> None:
    """A thread whose first checkpoint names slices, as do writes to it and to the last one."""
    parent = await put(saver, THREAD, "1", a=LARGE)
    await saver.aput_writes(parent, [("a", [*LARGE, "a write"])], "another task")
    for number in range(2, checkpoints):
        metadata = {"run_id": f"run {number}", "step": number}
        parent = await put(saver, parent, f"{number:02}", metadata, b=number)
    await saver.aput_writes(parent, [("a", LARGE[::-1]), ("__interrupt__", 1)], "last task")


async def sent(saver: Saver, work: Callable[[Saver], Awaitable[object]]) -> list[Statement]:
    """The statements that some work takes in a process that has read nothing yet."""
    async with create_saver(saver.engine) as cold:
        await cold.aget_tuple(config("no thread"))
        with statements() as seen:
            await work(cold)
    assert seen
    return seen


@pytest.mark.parametrize("work", HOT.values(), ids=HOT)
async def test_hot_statements_find_their_rows_by_thread(
    saver: Saver, database_url: str, work: Callable[[Saver], Awaitable[object]]
) -> None:
    without_autovacuum(database_url)
    await fill(saver, 30)
    for statement in await sent(saver, work):
        for table, condition in explain(database_url, statement, scans=False):
            assert KEYS.search(condition), f"{table}: {condition!r}\n{statement.sql}"


async def test_hot_statements_scan_no_table_however_many_rows_it_has(
    saver: Saver, database_url: str
) -> None:
    without_autovacuum(database_url)
    await fill(saver, 30)
    for number in range(300):
        await saver.acopy_thread("a thread", f"copy {number}")
    execute(database_url, "ANALYZE")
    for name, work in HOT.items():
        for statement in await sent(saver, work):
            for table, condition in explain(database_url, statement, scans=True):
                assert KEYS.search(condition), f"{name}: {table}: {condition!r}\n{statement.sql}"
        await saver.acopy_thread("copy 1", "a thread")


async def test_retention_scans_no_more_than_threads(saver: Saver, database_url: str) -> None:
    without_autovacuum(database_url)
    await fill(saver, 30)
    for number in range(300):
        await saver.acopy_thread("a thread", f"copy {number}")
    execute(database_url, "ANALYZE")
    policy = RetentionPolicy(keep_last=1000, max_age=timedelta(days=1), idle_for=timedelta(days=1))
    for statement in await sent(saver, lambda cold: cold.aretain(policy)):
        for table, condition in explain(database_url, statement, scans=True):
            if "checkpointer_threads" not in table:
                assert KEYS.search(condition), f"{table}: {condition!r}\n{statement.sql}"


async def test_a_list_over_all_threads_walks_an_index(saver: Saver, database_url: str) -> None:
    without_autovacuum(database_url)
    await fill(saver, 30)
    page, *others = await sent(saver, lambda cold: _all(cold.alist(None, limit=5)))
    accesses = list(explain(database_url, page, scans=False))
    assert any("checkpointer_checkpoints_checkpoint_id_idx" in table for table, _ in accesses)
    for statement in others:
        for table, condition in explain(database_url, statement, scans=False):
            assert KEYS.search(condition), f"{table}: {condition!r}\n{statement.sql}"


def without_autovacuum(url: str) -> None:
    """Keep PostgreSQL from gathering statistics for its planner by itself, at whatever moment."""
    if sa.make_url(url).get_backend_name() == "postgresql":
        execute(url, *(f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in TABLES))


KEYS = re.compile(r"\b(thread_id|run_id)\b")
"""All that rows may be found by: the first column of every key, or an index of its own."""


def explain(url: str, statement: Statement, *, scans: bool) -> Iterator[tuple[str, str]]:
    """Each access to one of our tables, with the condition that an index answers.

    Args:
        url: The database.
        statement: The statement, planned for any parameters where the database can do so.
        scans: Whether the planner may prefer a scan: it does on tables of a few rows.
    """
    if sa.make_url(url).get_backend_name() == "sqlite":
        yield from explain_sqlite(url, statement)
    else:
        yield from explain_postgresql(url, statement, scans=scans)


def explain_sqlite(url: str, statement: Statement) -> Iterator[tuple[str, str]]:
    """SQLite's accesses."""
    with closing(sqlite3.connect(sa.make_url(url).database or "")) as connection:
        connection.create_function("checkpointer_contains", 2, lambda *_: 1)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters[0])
        for *_, detail in plan.fetchall():
            if re.match(rf"(SEARCH|SCAN) ({'|'.join(TABLES)})", detail):
                condition = re.search(r"USING (?:COVERING )?INDEX \S+ (\(.*\))", detail)
                yield detail, condition[1] if condition else ""


def explain_postgresql(url: str, statement: Statement, *, scans: bool) -> Iterator[tuple[str, str]]:
    """PostgreSQL's accesses, for any parameters."""
    libpq = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(libpq, autocommit=True) as connection:
        if not scans:
            connection.execute("SET enable_seqscan = off")
        explained = f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement.sql}"
        ((plan,),) = connection.execute(explained.encode()).fetchall()
    yield from _accesses((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])


def _accesses(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    table = str(node.get("Relation Name", ""))
    if table in TABLES and node["Node Type"] != "ModifyTable":
        named = f"{node['Node Type']} {table} {node.get('Index Name', '')}"
        yield named, " ".join(_conditions(node))
    for inner in node.get("Plans", []):
        yield from _accesses(inner)


def _conditions(node: dict[str, Any]) -> Iterator[str]:
    if "Index Cond" in node:
        yield str(node["Index Cond"])
    for inner in node.get("Plans", []):
        yield from _conditions(inner)
