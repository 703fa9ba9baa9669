"""Reads are verified, lists go page by page, and neither meets half of a deletion."""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from damages import DAMAGES, OF_SECOND, Damage, Stored, flip, halve, noise, store
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from storing import Statement, config, put, statements

from checkpointer import AsyncSQLAlchemySaver, DamagedDataError, create_saver

Saver = AsyncSQLAlchemySaver

THREAD = config()


async def ids(found: AsyncIterator[CheckpointTuple]) -> list[str]:
    return [one.checkpoint["id"] async for one in found]


@pytest.fixture
async def stored(migrated_url: str) -> Stored:
    return await store(migrated_url)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_named_and_leaves_the_rest_readable(stored: Stored, damage: Damage) -> None:
    damage.make(stored)
    async with create_saver(stored.rows.url) as saver:
        with pytest.raises(DamagedDataError) as caught:
            await saver.aget_tuple(config(checkpoint_id="2"))
        for part in ("thread 'a thread'", "checkpoint '2'", damage.place, "restore", "delete"):
            assert part in str(caught.value)

        listed = saver.alist(THREAD)
        assert (await anext(listed)).checkpoint["id"] == "3"
        with pytest.raises(DamagedDataError, match="checkpoint '2'"):
            await anext(listed)
        assert await ids(saver.alist(THREAD, before=config(checkpoint_id="2"))) == ["1"]

        for seed in (1, 3):
            one = await saver.aget_tuple(config(checkpoint_id=str(seed)))
            assert one is not None
            assert one.checkpoint["channel_values"]["messages"] == noise(seed)
        other = await saver.aget_tuple(config("another"))
        assert other is not None
        assert other.checkpoint["channel_values"]["messages"] == noise(0)

        await put(saver, config(checkpoint_id="3"), "4", messages=noise(4))
        await saver.adelete_for_runs(["run 2"])
        assert await ids(saver.alist(THREAD)) == ["4", "3", "1"]


@pytest.mark.parametrize(
    "change", [flip(-1), halve], ids=["its last byte is altered", "half of it is missing"]
)
async def test_a_damaged_manifest_is_never_swept_round(stored: Stored, change: Any) -> None:
    stored.rows.alter("checkpointer_checkpoints", "manifest", OF_SECOND, change)
    before = stored.rows.segments()
    async with create_saver(stored.rows.url) as saver:
        with pytest.raises(DamagedDataError, match=r"'a thread'.*checkpoint '2'.*nothing was"):
            await saver.aprune(["a thread"])
        with pytest.raises(DamagedDataError, match=r"'a thread'.*checkpoint '2'.*nothing was"):
            await saver.adelete_for_runs(["run 1"])
        assert stored.rows.segments() == before
        assert await saver.aget_tuple(config(checkpoint_id="1")) is not None
        await saver.adelete_thread("a thread")
        assert await ids(saver.alist(None)) == ["2"]


async def test_a_missing_segment_is_no_matter_while_the_process_remembers_it(
    stored: Stored,
) -> None:
    async with create_saver(stored.rows.url) as saver:
        before = await saver.aget_tuple(config(checkpoint_id="2"))
        stored.rows.execute("DELETE FROM checkpointer_segments")
        assert await saver.aget_tuple(config(checkpoint_id="2")) == before


async def test_a_thread_says_nothing_of_what_another_one_holds(stored: Stored) -> None:
    stored.rows.execute("DELETE FROM checkpointer_segments WHERE thread_id = 'another'")
    async with create_saver(stored.rows.url) as saver:
        await put(saver, config("copycat"), "1", messages=noise(0))
        with pytest.raises(DamagedDataError, match="thread 'another'"):
            async with create_saver(saver.engine) as cold:
                await cold.aget_tuple(config("another"))


SIZES = [10, 1_000, 30_000, 300_000]


@pytest.mark.parametrize("cache_bytes", [0, 50_000, 64 << 20])
async def test_a_cold_cache_reads_what_a_warm_one_reads(
    migrated_url: str, cache_bytes: int
) -> None:
    async with create_saver(migrated_url, cache_bytes=cache_bytes) as saver:
        parent = THREAD
        for number, size in enumerate(SIZES):
            values = {str(n): noise(n, size) for n in range(number + 1)}
            parent = await put(saver, parent, str(number), {"step": number}, **values)
            await saver.aput_writes(parent, [("a", noise("write", size)), ("b", number)], "task")
        async with create_saver(saver.engine, cache_bytes=cache_bytes) as cold:
            listed = [found async for found in cold.alist(THREAD)]
        assert listed == [found async for found in saver.alist(THREAD)]
        for found in reversed(listed):
            async with create_saver(saver.engine, cache_bytes=cache_bytes) as cold:
                assert await cold.aget_tuple(found.config) == found
                assert await cold.aget_tuple(found.config) == found
            assert await saver.aget_tuple(found.config) == found


@contextmanager
def before_segments_are_read(action: Callable[[], None]) -> Iterator[list[str]]:
    """Run an action once, between the read of a checkpoint's row and that of its segments."""
    ran: list[str] = []

    def act(statement: Statement) -> None:
        writing = "INSERT INTO" in statement.sql or "DELETE FROM" in statement.sql
        if not ran and not writing and "checkpointer_segments" in statement.sql:
            ran.append(statement.sql)
            action()

    with statements(before=act):
        yield ran


def newer(saver: Saver) -> None:
    """Put a second checkpoint, and prune the first away."""
    saver.put(config(checkpoint_id="1"), _checkpoint("2", messages=noise(2)), {}, {})
    saver.prune(["a thread"])


def deleted(saver: Saver) -> None:
    saver.delete_thread("a thread")


def replaced(saver: Saver) -> None:
    """Delete the thread, and begin another one of that name."""
    saver.delete_thread("a thread")
    saver.put(THREAD, _checkpoint("1", messages=noise(2)), {}, {})


def _checkpoint(checkpoint_id: str, **values: Any) -> Any:
    return {"v": 4, "id": checkpoint_id, "ts": "", "channel_values": values, "channel_versions": {}}


@pytest.mark.parametrize("asked", [THREAD, config(checkpoint_id="1")], ids=["latest", "by id"])
@pytest.mark.parametrize("action", [newer, deleted, replaced])
async def test_a_reader_meets_the_old_state_or_the_new_one(
    migrated_url: str, asked: RunnableConfig, action: Callable[[Saver], None]
) -> None:
    with create_saver(migrated_url) as other:
        other.put(THREAD, _checkpoint("1", messages=noise(1)), {}, {})
        states = [other.get_tuple(asked)]
        async with create_saver(migrated_url) as cold:
            with before_segments_are_read(lambda: action(other)) as ran:
                found = await cold.aget_tuple(asked)
            assert ran
        states.append(other.get_tuple(asked))
        assert states[0] != states[1]
        assert found in states


@pytest.mark.parametrize("action", [newer, deleted, replaced])
async def test_a_list_meets_the_old_state_or_the_new_one(
    migrated_url: str, action: Callable[[Saver], None]
) -> None:
    with create_saver(migrated_url) as other:
        other.put(THREAD, _checkpoint("1", messages=noise(1)), {}, {})
        states = [list(other.list(THREAD))]
        async with create_saver(migrated_url) as cold:
            with before_segments_are_read(lambda: action(other)) as ran:
                found = [one async for one in cold.alist(THREAD)]
            assert ran
        states.append(list(other.list(THREAD)))
        assert states[0] != states[1]
        assert found in states


async def put_many(saver: Saver, count: int, where: RunnableConfig = THREAD) -> list[str]:
    """Store many checkpoints; their ids, newest first."""
    names = [f"{number:05}" for number in range(count)]
    for some in range(0, count, 100):
        for name in names[some : some + 100]:
            await put(saver, where, name, {"step": int(name), "even": int(name) % 2 == 0}, n=name)
    return names[::-1]


async def test_a_list_goes_on_over_many_pages(saver: Saver) -> None:
    names = await put_many(saver, 400)
    found = [one async for one in saver.alist(THREAD)]
    assert [one.checkpoint["id"] for one in found] == names
    assert [one.checkpoint["channel_values"]["n"] for one in found] == names
    for limit in (0, 1, 15, 16, 17, 48, 112, 113, 240, 399, 400, 401):
        assert await ids(saver.alist(THREAD, limit=limit)) == names[:limit]
        before = config(checkpoint_id=names[50])
        assert await ids(saver.alist(THREAD, before=before, limit=limit)) == names[51:][:limit]
        even = await ids(saver.alist(THREAD, filter={"even": True}, limit=limit))
        assert even == names[1::2][:limit]
    assert await ids(saver.alist(THREAD, filter={"step": 7})) == ["00007"]
    assert await ids(saver.alist(THREAD, filter={"step": 7, "even": True})) == []


async def test_a_list_over_everything_is_in_order(saver: Saver) -> None:
    keys = [
        (f"{number:03}", thread, namespace)
        for number in range(12)
        for thread in ("a", "b", "ü", "Z")
        for namespace in ("", "inner", "call:1")
    ]
    for number, thread, namespace in random.Random(1).sample(keys, len(keys)):  # noqa: S311
        await put(saver, config(thread, checkpoint_ns=namespace), number)

    async def listed(where: RunnableConfig | None, **options: Any) -> Sequence[object]:
        return [
            (one.checkpoint["id"], *_thread(one.config))
            async for one in saver.alist(where, **options)
        ]

    newest_first = sorted(keys, reverse=True)
    assert await listed(None) == newest_first
    assert await listed(None, limit=70) == newest_first[:70]
    before = config("a", "006")
    assert await listed(None, before=before) == [key for key in newest_first if key[0] < "006"]
    of_a = [key for key in newest_first if key[1] == "a"]
    assert await listed({"configurable": {"thread_id": "a"}}) == of_a
    assert await listed(config("a", checkpoint_ns="inner")) == [k for k in of_a if k[2] == "inner"]
    assert await listed(config("a", "004")) == [("004", "a", "")]
    some = {"configurable": {"thread_id": "a", "checkpoint_id": "004"}}
    assert await listed(some) == [k for k in of_a if k[0] == "004"]  # type: ignore[arg-type]


def _thread(where: RunnableConfig) -> tuple[str, str]:
    configurable = where.get("configurable", {})
    return configurable["thread_id"], configurable["checkpoint_ns"]


async def test_ids_are_in_the_order_of_their_bytes(saver: Saver) -> None:
    names = ["A", "B", "a", "b", "Ä", "ä", "10", "9", "-", "_", "z", "\U0001f600", "\uffff"]
    for name in names:
        await put(saver, THREAD, name)
    in_order = sorted(names, key=str.encode, reverse=True)
    assert await ids(saver.alist(THREAD)) == in_order
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["id"] == in_order[0]


async def test_the_saver_may_be_used_inside_the_loop(saver: Saver) -> None:
    names = await put_many(saver, 40)
    seen = []
    async for found in saver.alist(THREAD):
        seen.append(found.checkpoint["id"])
        assert await saver.aget_tuple(found.config) == found
        assert await ids(saver.alist(THREAD, limit=1)) == [names[0]]
        await put(saver, config("copy"), found.checkpoint["id"])
        await saver.aput_writes(found.config, [("a", 1)], "a task")
    assert seen == names
    assert await ids(saver.alist(config("copy"))) == names


async def test_a_thread_may_be_deleted_inside_the_loop(saver: Saver) -> None:
    await put_many(saver, 40)
    async for found in saver.alist(THREAD):
        assert found.checkpoint["id"] >= "00024"  # what the first page held
        await saver.adelete_thread("a thread")
    assert await ids(saver.alist(THREAD)) == []


async def test_no_connection_is_held_while_a_list_yields(migrated_url: str) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    async with create_saver(migrated_url, engine_options=options) as saver:
        await put_many(saver, 40)
        lists = [saver.alist(THREAD) for _ in range(5)]
        for found in lists:
            await anext(found)
        assert await saver.aget_tuple(THREAD) is not None
        for found in lists:
            await found.aclose()


async def test_breaking_out_of_a_list_leaks_nothing(saver: Saver) -> None:
    await put_many(saver, 40)
    async for _ in saver.alist(THREAD):
        break

    async def fail() -> None:
        async for _ in saver.alist(THREAD):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await saver.aget_tuple(THREAD) is not None


async def test_a_page_ends_where_values_are_large(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpointer.store.PAGE_BYTES", 50_000)
    for number in range(30):
        size = 60_000 if number % 5 == 0 else 9_000
        await put(saver, THREAD, f"{number:03}", data=noise(number, size), n=number)
    found = [one async for one in saver.alist(THREAD)]
    assert [one.checkpoint["channel_values"]["n"] for one in found] == list(range(29, -1, -1))
    assert await ids(saver.alist(THREAD, limit=7)) == [f"{n:03}" for n in range(29, 22, -1)]
