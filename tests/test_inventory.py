"""Threads in pages, and what they take: counted without reading values."""

import base64
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain
from typing import Any

import pytest
import sqlalchemy as sa
from schemas import execute, query
from storing import LARGE, checkpoint, config, put, statements
from test_bad_input import assert_explains
from test_statements import KEYS, explain, without_autovacuum
from test_statements import fill as store_line

from checkpointer import (
    AsyncSQLAlchemySaver,
    DamagedDataError,
    InvalidFilterError,
    InvalidInputError,
    ThreadInfo,
    create_saver,
    tables,
)
from checkpointer.manifest import Value, decode_manifest, decode_value
from checkpointer.slices import Layout

Saver = AsyncSQLAlchemySaver

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)

HOSTILE = "'; DROP TABLE checkpointer_threads; --"


async def fill(saver: Saver, names: Sequence[str]) -> None:
    """Threads with known times: created in the order of their names, updated in the opposite one.

    The first two were updated at the same moment.
    """
    for number, name in enumerate(names):
        at = await put(saver, config(name), "1", {"user": f"user {number % 2}"}, a=number)
        for n in range(number):
            at = await put(saver, at, str(n + 2), {"n": n}, a=number)
    async with saver.engine.begin() as connection:
        for number, name in enumerate(names):
            times = {
                "created_at": NOON + timedelta(minutes=number),
                "updated_at": NOON + timedelta(hours=9 - max(number, 1)),
            }
            of_thread = tables.threads.c.thread_id == name
            await connection.execute(sa.update(tables.threads).where(of_thread).values(times))


async def pages(saver: Saver, **options: Any) -> list[list[str]]:
    """The ids of all pages."""
    found, after = [], None
    while True:
        page = await saver.alist_threads(after=after, **options)
        found.append([one.thread_id for one in page.threads])
        after = page.after
        if after is None:
            return found


NAMES = ("d", "b", "ü", "a", "\N{SNOWMAN}")
ORDERS = {
    "thread_id": ["a", "b", "d", "ü", "\N{SNOWMAN}"],
    "created_at": list(NAMES),
    # The id decides between equals.
    "updated_at": ["\N{SNOWMAN}", "a", "ü", "b", "d"],
}


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("order", ORDERS)
async def test_pages_hold_each_thread_once_in_order(saver: Saver, order: str, limit: int) -> None:
    await fill(saver, NAMES)
    for sign, expected in (("", ORDERS[order]), ("-", ORDERS[order][::-1])):
        found = await pages(saver, order=sign + order, limit=limit)
        assert [*chain(*found)] == expected
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert found[-1]


async def test_a_page_tells_times_and_sizes(saver: Saver, database_url: str) -> None:
    await fill(saver, ["a", "b"])
    at = await put(saver, config("b", checkpoint_ns="inner"), "7", {"ü": "ü"}, a=LARGE)
    await saver.aput_writes(at, [("a", LARGE), ("b", 1)], "a task")
    [b, a] = (await saver.alist_threads(order="-thread_id")).threads
    assert (a.thread_id, a.created_at, a.updated_at) == ("a", NOON, NOON + timedelta(hours=8))
    assert (a.checkpoints, b.checkpoints) == (1, 3)
    assert a.created_at.tzinfo is UTC
    for info in (a, b):
        data = await stored_bytes(saver, info.thread_id)
        assert info.stored_bytes == data


async def stored_bytes(saver: Saver, thread: str) -> int:
    """The bytes of a thread's rows, each value read."""
    json_size = {
        "sqlite": "length(CAST(metadata AS BLOB))",
        "postgresql": "pg_column_size(metadata)",
    }
    total = 0
    async with saver.engine.connect() as connection:
        for column, table in (
            ("manifest", "checkpoints"),
            ("data", "writes"),
            ("data", "segments"),
        ):
            sql = f"SELECT {column} FROM checkpointer_{table} WHERE thread_id = :thread"
            rows = await connection.execute(sa.text(sql), {"thread": thread})
            total += sum(len(bytes(data)) for (data,) in rows)
        size = json_size[connection.dialect.name]
        sql = f"SELECT {size} FROM checkpointer_checkpoints WHERE thread_id = :thread"
        rows = await connection.execute(sa.text(sql), {"thread": thread})
        return total + sum(int(size) for (size,) in rows)


async def test_threads_are_found_by_their_time(saver: Saver) -> None:
    await fill(saver, NAMES)
    at = NOON + timedelta(hours=7)  # of the third
    assert await pages(saver, updated_before=at, order="thread_id") == [["a", "\N{SNOWMAN}"]]
    assert await pages(saver, updated_after=at, order="thread_id") == [["b", "d"]]
    elsewhere = (at + timedelta(seconds=1)).astimezone()
    before = await pages(saver, updated_before=elsewhere, updated_after=at - timedelta(seconds=1))
    assert before == [["ü"]]
    assert await pages(saver, updated_after=NOON + timedelta(days=1)) == [[]]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_threads_are_found_by_what_a_checkpoints_metadata_contains(
    saver: Saver, limit: int
) -> None:
    await fill(saver, NAMES)
    await put(saver, config("a"), "9", {"nested": {"list": [1, {"x": None}], "more": True}})

    async def found(metadata: dict[str, Any]) -> list[str]:
        return [*chain(*await pages(saver, metadata=metadata, limit=limit, order="created_at"))]

    assert await found({"user": "user 0"}) == ["d", "ü", "\N{SNOWMAN}"]
    assert await found({"nested": {"list": [{"x": None}]}}) == ["a"]
    assert await found({"nested": {"list": [2]}}) == []
    assert await found({"user": "user 1", "nested": {}}) == []  # one checkpoint has to have both
    assert await found({}) == list(NAMES)


async def test_a_filter_finds_threads_far_behind_others(saver: Saver) -> None:
    await fill(saver, [f"{number:02}" for number in range(9)])
    await put(saver, config("08"), "x", {"rare": True})
    assert await pages(saver, metadata={"rare": True}, limit=1, order="thread_id") == [["08"]]


async def test_no_threads_are_an_empty_page(saver: Saver) -> None:
    page = await saver.alist_threads()
    assert (list(page.threads), page.after) == ([], None)


def forged(*content: str) -> str:
    """An `after` that no page gave."""
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


EAST, WEST = timezone(timedelta(hours=5)), timezone(timedelta(hours=-5))
"""Where the first time that there is, or the last, is none in UTC."""


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"limit": True},
        {"limit": "5"},
        {"limit": 10**30},
        {"order": "updated"},
        {"order": HOSTILE},
        {"order": ["thread_id"]},
        {"updated_before": NOON.replace(tzinfo=None)},
        {"updated_after": "2025-01-01"},
        {"after": ""},
        {"after": "x"},
        {"after": 7},
        {"after": "ü"},
        {"after": base64.urlsafe_b64encode(b'["-updated_at", "a"]').decode()},
        {"after": base64.urlsafe_b64encode(b'["-updated_at", "2025-01-01", "a"]').decode()},
        {"after": base64.urlsafe_b64encode(b'["-updated_at", 7, "a"]').decode()},
        {"after": base64.urlsafe_b64encode(b"7").decode()},
        {"after": base64.urlsafe_b64encode(b"[]").decode()},
        {"after": forged("-updated_at", "0001-01-01T00:00:00+05:00", "a")},
        {"after": forged("-updated_at", "9999-12-31T23:59:59-05:00", "a")},
        {"after": forged("thread_id", "\ud800"), "order": "thread_id"},
        {"updated_before": datetime.min.replace(tzinfo=EAST)},
        {"updated_after": datetime.max.replace(tzinfo=WEST)},
    ],
    ids=str,
)
async def test_what_cannot_be_asked_for_is_refused(saver: Saver, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await saver.alist_threads(**options)
    assert_explains(caught.value)
    with pytest.raises(InvalidFilterError):
        await saver.alist_threads(metadata=["x"])  # type: ignore[arg-type]
    for largest in (-1, True, None):
        with pytest.raises(InvalidInputError):
            await saver.astats(largest=largest)  # type: ignore[arg-type]


async def test_a_cursor_of_another_order_is_refused(saver: Saver) -> None:
    await fill(saver, NAMES)
    after = (await saver.alist_threads(limit=1, order="created_at")).after
    with pytest.raises(InvalidInputError, match="in the order 'updated_at'"):
        await saver.alist_threads(after=after, order="updated_at")
    assert after is not None
    assert json.loads(base64.urlsafe_b64decode(after))[-1] == "d"


async def test_times_that_are_none_are_damage(saver: Saver, database_url: str) -> None:
    if saver.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL stores nothing but times there")
    await fill(saver, ["a"])
    execute(database_url, "UPDATE checkpointer_threads SET created_at = 'never'")
    with pytest.raises(DamagedDataError, match="never"):
        await saver.alist_threads()


async def test_statistics_count_rows_bytes_and_what_is_saved(
    saver: Saver, database_url: str
) -> None:
    at = config("large")
    for number in range(5):
        at = await put(saver, at, str(number), {"n": number}, a=[*LARGE, number], b=number)
        await saver.aput_writes(at, [("a", LARGE), ("b", number)], "a task")
    await put(saver, config("small"), "1", a=1)
    whole, one = await saver.astats(), await saver.astats("large")
    assert {name: table.rows for name, table in whole.tables.items()} == {
        str(name).removeprefix("checkpointer_"): count
        for (name, count) in query(
            database_url,
            " UNION ALL ".join(
                f"SELECT '{name}', COUNT(*) FROM {name}" for name in tables.metadata.tables
            ),
        )
    }
    infos = {info.thread_id: info for info in (await saver.alist_threads()).threads}
    assert list(whole.largest) == [infos["large"], infos["small"]]
    assert list((await saver.astats(largest=1)).largest) == [infos["large"]]
    assert list((await saver.astats(largest=0)).largest) == []
    assert (whole.threads, one.threads) == (2, 1)
    assert whole.stored_bytes == sum(info.stored_bytes for info in infos.values())
    assert whole.stored_bytes == sum(table.bytes for table in whole.tables.values())
    assert one.stored_bytes == infos["large"].stored_bytes
    assert list(one.largest) == [infos["large"]]
    assert whole.logical_bytes == logical_bytes(database_url)
    assert 0.7 < one.saving < 1
    assert one.saving == 1 - one.stored_bytes / one.logical_bytes
    assert (await saver.astats("small")).saving == 0  # the projection is more than it saves


def logical_bytes(url: str) -> int:
    """The bytes of all values, told from the rows alone."""
    values: list[Value] = []
    for (manifest,) in query(url, "SELECT manifest FROM checkpointer_checkpoints"):
        assert isinstance(manifest, bytes)
        values += decode_manifest(manifest).values()
    for (data,) in query(url, "SELECT data FROM checkpointer_writes"):
        assert isinstance(data, bytes)
        values.append(decode_value(data))
    contents = [value.content for value in values]
    return sum(one.size if isinstance(one, Layout) else len(one) for one in contents)


async def test_statistics_of_nothing_are_zero(saver: Saver) -> None:
    for found in (await saver.astats(), await saver.astats("no thread")):
        assert (found.threads, found.stored_bytes, found.logical_bytes) == (0, 0, 0)
        assert (found.saving, list(found.largest)) == (0, [])


async def test_statistics_go_through_any_number_of_pages(
    saver: Saver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        at = await put(saver, config(str(number)), "1", a=LARGE)
        await saver.aput_writes(at, [("a", number), ("b", LARGE), ("c", 1)], "a task")
    expected = await saver.astats()
    for size in (1, 2, 5):
        monkeypatch.setattr("checkpointer.inventory.PAGE", size)
        assert await saver.astats() == expected
    assert expected.logical_bytes == logical_bytes(database_url)


async def test_what_is_damaged_counts_its_own_bytes_only(saver: Saver, database_url: str) -> None:
    at = await put(saver, config("a"), "1", a=LARGE)
    await saver.aput_writes(at, [("a", LARGE)], "a task")
    before = await saver.astats()
    broken = {"sqlite": "x'00'", "postgresql": r"'\x00'"}[saver.engine.dialect.name]
    execute(database_url, f"UPDATE checkpointer_checkpoints SET manifest = {broken}")
    execute(database_url, f"UPDATE checkpointer_writes SET data = {broken}")
    found = await saver.astats()
    assert found.logical_bytes == 0 < before.logical_bytes
    assert found.tables["segments"] == before.tables["segments"]
    assert found.tables["writes"].bytes == 1


LISTS: list[dict[str, Any]] = [
    {"order": f"{sign}{column}", **options}
    for column in ("thread_id", "updated_at", "created_at")
    for sign in ("", "-")
    for options in ({}, {"metadata": {"n": 1}})
]


@pytest.mark.parametrize("scans", [False, True], ids=["few rows", "many rows"])
async def test_lists_and_statistics_touch_the_rows_of_their_page_only(
    saver: Saver, database_url: str, *, scans: bool
) -> None:
    """Sorting threads looks at all threads, and at nothing else of theirs."""
    without_autovacuum(database_url)
    await store_line(saver, 30)
    for number in range(300 if scans else 3):
        await saver.acopy_thread("a thread", f"copy {number}")
    if scans:
        execute(database_url, "ANALYZE")
    async with create_saver(saver.engine) as cold:
        await cold.alist_threads(limit=1)
        with statements() as seen:
            for options in LISTS:
                page = await cold.alist_threads(limit=2, **options)
                await cold.alist_threads(limit=2, after=page.after, **options)
            await cold.astats("a thread")
    for statement in seen:
        for table, condition in explain(database_url, statement, scans=scans):
            if "checkpointer_threads" not in table:
                assert KEYS.search(condition), f"{table}: {condition!r}\n{statement.sql}"


async def test_a_list_by_id_and_statistics_of_all_walk_the_keys(
    saver: Saver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpointer.inventory.PAGE", 64)
    without_autovacuum(database_url)
    await put(saver, config("a"), "1", {"n": 1}, a=LARGE)
    await saver.aput_writes(config("a", "1"), [("a", LARGE)], "a task")
    for number in range(100):
        await saver.acopy_thread("a", f"copy {number}")
    with statements() as seen:
        page = await saver.alist_threads(limit=2, order="thread_id")
        await saver.alist_threads(limit=2, order="thread_id", after=page.after)
        await saver.astats()
    assert len(seen) <= 14
    for statement in seen:
        for table, _ in explain(database_url, statement, scans=False):
            assert not re.match(r"Seq Scan|SCAN (?!.* USING )", table), f"{table}\n{statement.sql}"


async def test_listing_takes_two_statements(saver: Saver) -> None:
    await fill(saver, NAMES)
    with statements() as seen:
        await saver.alist_threads()
    assert len(seen) == 2
    with statements() as seen:
        await saver.alist_threads(metadata={"user": "user 1"})
    assert len(seen) == 3


async def test_no_value_is_read(saver: Saver) -> None:
    await put(saver, config("a"), "1", a=LARGE)
    with statements() as seen:
        found = await saver.alist_threads()
    assert isinstance(found.threads[0], ThreadInfo)
    for statement in seen:
        for column in ("manifest", "data"):
            assert f"{column}," not in statement.sql
            assert f".{column} " not in statement.sql


def test_the_sync_twins_tell_the_same(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        saver.put(config("a"), checkpoint("1", {}), {"step": 1}, {})
        page = saver.list_threads(limit=1, order="thread_id", metadata={"step": 1})
        assert [one.thread_id for one in page.threads] == ["a"]
        assert saver.stats("a").tables["checkpoints"].rows == 1
        assert saver.stats(largest=0).threads == 1
