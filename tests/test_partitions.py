"""Tables that are partitioned by the hash of their thread, as docs/scaling.md makes them."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from pages import blocks
from schemas import execute, query
from storing import LARGE, Statement, config, put, statements

from checkpointer import create_saver

[PARTITION] = [block.code for block in blocks("docs/scaling.md") if block.language == "sql"]

pytestmark = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


@pytest.fixture
def new_partitioned_url(new_migrated_url: Callable[[], str]) -> Callable[[], str]:
    """Call it for the URL of one more database whose tables are partitioned."""

    def create() -> str:
        url = new_migrated_url()
        execute(url, PARTITION)
        return url

    return create


async def test_every_capability_conforms(new_partitioned_url: Callable[[], str]) -> None:
    @checkpointer_test(name="checkpointer")
    async def factory() -> AsyncGenerator[BaseCheckpointSaver[Any], None]:
        async with create_saver(new_partitioned_url()) as saver:
            yield saver

    report = await validate(factory)

    assert report.conformance_level() == "FULL", report.results


async def test_rows_that_are_there_stay(new_migrated_url: Callable[[], str]) -> None:
    url = new_migrated_url()
    async with create_saver(url) as saver:
        await put(saver, config(), "1", {"step": 1}, a=LARGE)
        before = await saver.aget_tuple(config())

    execute(url, PARTITION)

    async with create_saver(url) as saver:
        assert await saver.aget_tuple(config()) == before
        assert (await saver.averify()).whole
    parts = "SELECT count(*) FROM pg_inherits WHERE inhparent::regclass::text LIKE 'checkpointer%s'"
    assert query(url, parts) == [(64,)]


async def test_a_thread_is_looked_for_in_one_partition(
    new_partitioned_url: Callable[[], str],
) -> None:
    url = new_partitioned_url()
    async with create_saver(url) as saver:
        await put(saver, config(), "1", {}, a=LARGE)
        with statements() as warm:
            at = await put(saver, config(checkpoint_id="1"), "2", {"run_id": "r"}, a=[*LARGE, 1])
            await saver.aput_writes(at, [("a", 1)], "task")
            await saver.aget_tuple(config())
    async with create_saver(url) as saver:
        await saver.aget_tuple(config("another"))
        with statements() as cold:
            await saver.aget_tuple(config())
            [one async for one in saver.alist(config())]
            await saver.aprune(["a thread"])
        with statements() as everywhere:
            [one async for one in saver.alist(None)]

    reads = [await most_partitions(url, one) for one in (*warm, *cold)]
    assert len(reads) > 10
    assert set(reads) == {0, 1}  # 0: an INSERT chooses its partition row by row
    assert await most_partitions(url, everywhere[0]) == 16


async def most_partitions(url: str, statement: Statement) -> int:
    """How many partitions of one table a statement reads, whichever way it is planned."""
    plain = sa.make_url(url).set(drivername="postgresql")
    connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
    most = 0
    try:
        for way in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {way}")
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.sql}"
            async with Undone(connection):
                plan = await connection.fetchval(explain, *statement.parameters[0])
            read = set(scanned(json.loads(plan)[0]["Plan"]))
            tables = [name.rpartition("_")[0] for name in read]
            most = max([most, *map(tables.count, tables)])
    finally:
        await connection.close()
    return most


class Undone:
    """A transaction of asyncpg that is rolled back."""

    def __init__(self, connection: Any) -> None:
        self._transaction = connection.transaction()

    async def __aenter__(self) -> None:
        await self._transaction.start()

    async def __aexit__(self, *exc: object) -> None:
        await self._transaction.rollback()


def scanned(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that the parts of a plan which ran have read."""
    if "Scan" in plan["Node Type"] and "Relation Name" in plan and plan["Actual Loops"]:
        yield plan["Relation Name"]
    for part in plan.get("Plans", []):
        yield from scanned(part)
