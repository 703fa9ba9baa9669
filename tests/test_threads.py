"""Deleting, pruning and copying threads: what stays, what goes, and what must never go."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from schemas import query
from storing import (
    NOTHING,
    assert_all_stored,
    assert_no_garbage,
    checkpoint,
    config,
    put,
    row_counts,
    stored_bytes,
)

from checkpointer import AsyncSQLAlchemySaver, create_saver

Saver = AsyncSQLAlchemySaver
Act = Callable[[Saver], Awaitable[object]]

THREAD = config()


def noise(seed: object, size: int = 20_000) -> bytes:
    """Bytes that share nothing with those of another seed."""
    return random.Random(str(seed)).randbytes(size)  # noqa: S311 - a test's data, not a secret


def state(url: str, thread: str = "a thread") -> int | None:
    rows = query(url, f"SELECT state FROM checkpointer_threads WHERE thread_id = '{thread}'")
    return int(str(rows[0][0])) if rows else None


async def listed(saver: Saver, where: RunnableConfig | None = None) -> list[CheckpointTuple]:
    """All checkpoints, read by a process that remembers none."""
    async with create_saver(saver.engine) as cold:
        return [found async for found in cold.alist(where)]


async def ids(saver: Saver, where: RunnableConfig | None = None) -> list[str]:
    return [found.checkpoint["id"] for found in await listed(saver, where)]


async def line(saver: Saver, where: RunnableConfig, *names: str) -> RunnableConfig:
    """Store checkpoints, each with a large value and a large write of its own and a shared one."""
    for name in names:
        metadata = {"run_id": f"run {name}"}
        where = await put(saver, where, name, metadata, own=noise(name), shared=noise("shared"))
        await saver.aput_writes(where, [("own", noise(f"write {name}")), ("b", 1)], "a task")
    return where


async def test_deleting_a_thread_leaves_nothing_of_it(saver: Saver, database_url: str) -> None:
    await line(saver, THREAD, "1", "2")
    await line(saver, config(checkpoint_ns="inner"), "3")
    await line(saver, config("another"), "1", "2")
    others = await listed(saver, config("another"))
    await saver.adelete_thread("a thread")
    assert await listed(saver, {"configurable": {"thread_id": "a thread"}}) == []
    assert await listed(saver) == others
    assert state(database_url) is None
    assert_no_garbage(database_url)
    await saver.adelete_thread("another")
    assert row_counts(database_url) == NOTHING
    await saver.adelete_thread("another")


async def test_deleting_a_thread_takes_writes_without_a_checkpoint(
    saver: Saver, database_url: str
) -> None:
    await saver.aput_writes(config(checkpoint_id="1"), [("a", noise(1))], "a task")
    await saver.adelete_thread("a thread")
    assert row_counts(database_url) == NOTHING


async def test_a_thread_begins_at_another_state_after_its_deletion(
    saver: Saver, database_url: str
) -> None:
    states = set()
    for _ in range(5):
        await put(saver, THREAD, "1")
        states.add(state(database_url))
        await saver.adelete_thread("a thread")
    assert len(states) == 5


async def test_deleting_runs_leaves_the_others(saver: Saver, database_url: str) -> None:
    await line(saver, await line(saver, THREAD, "1", "2"), "3")
    await line(saver, config("another"), "2")
    await line(saver, config("a third"), "4")
    before = {found.checkpoint["id"]: found for found in await listed(saver, THREAD)}
    state_before = state(database_url)
    await saver.adelete_for_runs(["run 2", "run 7"])
    found = await listed(saver, THREAD)
    assert [one.checkpoint["id"] for one in found] == ["3", "1"]
    assert found[1] == before["1"]
    assert found[0] == before["3"]._replace(parent_config=None)
    assert state(database_url, "another") is None
    assert state(database_url) != state_before
    assert await ids(saver, config("a third")) == ["4"]
    assert_no_garbage(database_url)


async def test_run_ids_may_be_no_strings(saver: Saver, database_url: str) -> None:
    await put(saver, THREAD, "1", {"run_id": UUID(int=7)}, own=noise(1))
    await put(saver, THREAD, "2", {"run_id": 8}, own=noise(2))
    await put(saver, THREAD, "3", {"run_id": "x"}, own=noise(3))
    many: list[Any] = [UUID(int=7), *range(2_000)]
    await saver.adelete_for_runs(many)
    assert await ids(saver) == ["3"]
    assert_no_garbage(database_url)
    await saver.adelete_for_runs([])
    assert await ids(saver) == ["3"]


async def test_deleting_runs_keeps_writes_without_a_checkpoint(
    saver: Saver, database_url: str
) -> None:
    await line(saver, THREAD, "1")
    await saver.aput_writes(config(checkpoint_id="2"), [("own", noise("early"))], "a task")
    await saver.adelete_for_runs(["run 1"])
    await put(saver, THREAD, "2")
    (found,) = await listed(saver)
    assert found.pending_writes == [("a task", "own", noise("early"))]
    assert_no_garbage(database_url)


async def test_a_copy_is_whole_and_stands_alone(saver: Saver, database_url: str) -> None:
    await line(saver, THREAD, "1", "2")
    await line(saver, config(checkpoint_ns="inner"), "3")
    await saver.aput_writes(config(checkpoint_id="4"), [("early", noise(4))], "a task")
    source = await listed(saver, {"configurable": {"thread_id": "a thread"}})
    await saver.acopy_thread("a thread", "a copy")
    await saver.adelete_thread("a thread")
    copied = await listed(saver)
    assert [one._replace(**_of_thread(one, "a thread")) for one in copied] == source
    await put(saver, config("a copy", "2"), "4")
    found = await saver.aget_tuple(config("a copy"))
    assert found is not None
    assert found.pending_writes == [("a task", "early", noise(4))]
    assert_no_garbage(database_url)


def _of_thread(one: CheckpointTuple, thread_id: str) -> dict[str, Any]:
    """The configs of a checkpoint, as if it were another thread's."""

    def moved(where: RunnableConfig | None) -> RunnableConfig | None:
        if where is None:
            return None
        return {"configurable": {**where.get("configurable", {}), "thread_id": thread_id}}

    return {"config": moved(one.config), "parent_config": moved(one.parent_config)}


async def test_a_copy_into_a_thread_replaces_what_has_the_same_key(
    saver: Saver, database_url: str
) -> None:
    await put(saver, THREAD, "1", own=noise("source"))
    await saver.aput_writes(config(checkpoint_id="1"), [("a", noise("source write"))], "a task")
    await line(saver, config("another"), "1", "2")
    await saver.acopy_thread("a thread", "another")
    newest, oldest = await listed(saver, config("another"))
    assert newest.checkpoint["channel_values"]["own"] == noise("2")
    assert oldest.checkpoint["channel_values"] == {"own": noise("source")}
    assert oldest.pending_writes == [("a task", "a", noise("source write")), ("a task", "b", 1)]
    assert_all_stored(database_url)


async def test_a_copy_onto_itself_or_of_nothing_changes_nothing(
    saver: Saver, database_url: str
) -> None:
    await line(saver, THREAD, "1", "2")
    before = await listed(saver), stored_bytes(database_url), row_counts(database_url)
    await saver.acopy_thread("a thread", "a thread")
    await saver.acopy_thread("no thread", "a thread")
    await saver.acopy_thread("no thread", "another")
    assert (await listed(saver), stored_bytes(database_url), row_counts(database_url)) == before


async def test_pruning_keeps_the_latest_of_each_namespace(saver: Saver, database_url: str) -> None:
    root = await line(saver, THREAD, "1", "2", "3")
    await line(saver, config(checkpoint_ns="inner"), "1", "4")
    await line(saver, config("another"), "1", "2")
    latest = await saver.aget_tuple(root)
    assert latest is not None
    state_before = state(database_url)
    await saver.aprune(["a thread", "no thread"])
    assert await ids(saver, {"configurable": {"thread_id": "a thread"}}) == ["4", "3"]
    assert await saver.aget_tuple(root) == latest._replace(parent_config=None)
    assert await ids(saver, config("another")) == ["2", "1"]
    assert state(database_url) != state_before
    assert_no_garbage(database_url)


async def test_pruning_drops_the_namespaces_of_finished_calls(
    saver: Saver, database_url: str
) -> None:
    first = await line(saver, THREAD, "1")
    call = {"parents": {"": "1"}}
    await put(saver, config(checkpoint_ns="call:1"), "2", call, own=noise("finished"))
    await put(saver, config(checkpoint_ns="kept"), "2", call, own=noise("no call"))
    await line(saver, first, "3")
    await put(
        saver, config(checkpoint_ns="call:2"), "4", {"parents": {"": "3"}}, own=noise("running")
    )
    await saver.aprune(["a thread"])
    found = await listed(saver, {"configurable": {"thread_id": "a thread"}})
    namespaces = [one.config.get("configurable", {})["checkpoint_ns"] for one in found]
    assert namespaces == ["call:2", "", "kept"]
    assert_no_garbage(database_url)


async def test_pruning_where_there_is_nothing_to_prune_changes_nothing(
    saver: Saver, database_url: str
) -> None:
    await line(saver, THREAD, "1", "2")
    await saver.aprune(["a thread"])
    before = await listed(saver), stored_bytes(database_url), state(database_url)
    await saver.aprune(["a thread"])
    await saver.aprune([])
    assert (await listed(saver), stored_bytes(database_url), state(database_url)) == before


async def test_pruning_keeps_writes_whose_checkpoint_is_not_there_yet(
    saver: Saver, database_url: str
) -> None:
    latest = await line(saver, THREAD, "1", "2")
    await saver.aput_writes(config(checkpoint_id="3"), [("own", noise("early"))], "a task")
    await saver.aprune(["a thread"])
    assert_no_garbage(database_url)
    await put(saver, latest, "3")
    found = (await listed(saver))[0]
    assert found.pending_writes == [("a task", "own", noise("early"))]


@pytest.mark.parametrize("strategy", ["delete", "delete_all"])
async def test_pruning_by_deletion_deletes(saver: Saver, database_url: str, strategy: str) -> None:
    for thread in ("a", "b", "c"):
        await line(saver, config(thread), "1", "2")
    await saver.aprune(["a", "b", "no thread"], strategy=strategy)
    assert await ids(saver) == ["2", "1"]
    assert_no_garbage(database_url)
    assert row_counts(database_url)["checkpointer_threads"] == 1


async def test_what_was_replaced_is_swept_with_the_next_prune(
    saver: Saver, database_url: str
) -> None:
    stored = await line(saver, THREAD, "1")
    await put(saver, THREAD, "1", own=noise("instead"))
    for version in range(3):
        error = [("__error__", noise(f"error {version}"))]
        await saver.aput_writes(stored, error, "a task")
    await put(saver, stored, "2", own=noise(2))
    await saver.aput_writes(config(checkpoint_id="2"), [("__error__", noise("error a"))], "a task")
    await saver.aput_writes(config(checkpoint_id="2"), [("__error__", noise("error b"))], "a task")
    await saver.aprune(["a thread"])
    assert await ids(saver) == ["2"]
    assert_no_garbage(database_url)


# What one saver knows of a thread, while another one deletes.


async def prune(other: Saver) -> None:
    await put(other, config(checkpoint_id="1"), "2", own=noise("newer"))
    await other.aprune(["a thread"])


async def delete(other: Saver) -> None:
    await other.adelete_thread("a thread")


async def delete_run(other: Saver) -> None:
    await put(other, THREAD, "0", kept="x")
    await other.adelete_for_runs(["run 1"])


async def recreate(other: Saver) -> None:
    await other.adelete_thread("a thread")
    await put(other, THREAD, "0", own=noise("another life"))


async def copy_over(other: Saver) -> None:
    await other.adelete_thread("a thread")
    await put(other, config("another"), "0", own=noise("another life"))
    await other.acopy_thread("another", "a thread")


ACTS = (prune, delete, delete_run, recreate, copy_over)


async def by_putting(saver: Saver) -> None:
    await put(saver, THREAD, "1", {"run_id": "run 1"}, own=noise("own"), small="x")


async def by_reading(saver: Saver) -> None:
    async with create_saver(saver.engine) as writer:
        await by_putting(writer)
    assert await saver.aget_tuple(THREAD) is not None


async def put_child(
    saver: Saver, versions: dict[str, str | int | float], **values: Any
) -> CheckpointTuple:
    """Put a child of checkpoint 1; as a process reads it that remembers nothing."""
    stored = checkpoint("9", values)
    stored["channel_versions"] = versions
    where = await saver.aput(config(checkpoint_id="1"), stored, {}, {})
    async with create_saver(saver.engine) as cold:
        found = await cold.aget_tuple(where)
    assert found is not None
    return found


UNCHANGED: dict[str, str | int | float] = {"own": "1.own", "small": "1.small"}
CHANGED: dict[str, str | int | float] = {"own": "9.own", "small": "9.small"}


@pytest.mark.parametrize("versions", [UNCHANGED, CHANGED], ids=["same version", "new version"])
@pytest.mark.parametrize("cache_bytes", [0, 64 << 20], ids=["no cache", "cache"])
@pytest.mark.parametrize("learn", [by_putting, by_reading])
@pytest.mark.parametrize("act", ACTS)
async def test_a_put_stores_again_what_another_saver_deleted(
    migrated_url: str,
    act: Act,
    learn: Act,
    cache_bytes: int,
    versions: dict[str, str | int | float],
) -> None:
    async with (
        create_saver(migrated_url, cache_bytes=cache_bytes) as saver,
        create_saver(migrated_url) as other,
    ):
        await learn(saver)
        await act(other)
        found = await put_child(saver, versions, own=noise("own"), small="x")
        assert found.checkpoint["channel_values"] == {"own": noise("own"), "small": "x"}
        await saver.aput_writes(found.config, [("own", noise("own"))], "a task")
        assert len(await listed(saver, THREAD)) in {1, 2}
        assert_all_stored(migrated_url)


@pytest.mark.parametrize("cache_bytes", [0, 64 << 20], ids=["no cache", "cache"])
@pytest.mark.parametrize("act", ACTS)
async def test_a_put_stores_again_what_the_same_saver_deleted(
    migrated_url: str, act: Act, cache_bytes: int
) -> None:
    async with create_saver(migrated_url, cache_bytes=cache_bytes) as saver:
        await by_putting(saver)
        await act(saver)
        found = await put_child(saver, UNCHANGED, own=noise("own"), small="x")
        assert found.checkpoint["channel_values"] == {"own": noise("own"), "small": "x"}
        assert_all_stored(migrated_url)


@pytest.mark.parametrize("cache_bytes", [0, 64 << 20], ids=["no cache", "cache"])
@pytest.mark.parametrize("size", [10, 20_000])
@pytest.mark.parametrize("same", [True, False], ids=["same saver", "other saver"])
async def test_the_second_life_of_a_thread_has_no_values_of_its_first(
    migrated_url: str, cache_bytes: int, size: int, *, same: bool
) -> None:
    async with (
        create_saver(migrated_url, cache_bytes=cache_bytes) as saver,
        create_saver(migrated_url) as other,
    ):
        await put(saver, THREAD, "1", own=noise("first", size))
        await (saver if same else other).adelete_thread("a thread")
        await put(other, THREAD, "1", own=noise("second", size))
        found = await put_child(saver, UNCHANGED, own=noise("second", size))
        assert (found.checkpoint["channel_values"] == {"own": noise("second", size)}) is True


async def test_two_savers_see_what_the_other_one_does(migrated_url: str) -> None:
    async with create_saver(migrated_url) as one, create_saver(migrated_url) as other:
        where = THREAD
        for number in range(10):
            writer, reader = (one, other) if number % 2 else (other, one)
            where = await put(writer, where, str(number), own=noise(number // 3), n=number)
            await reader.aput_writes(where, [("a", noise(number))], "a task")
            assert await reader.aget_tuple(where) == await writer.aget_tuple(where)
        assert await ids(one) == [str(number) for number in range(9, -1, -1)]
        await one.aprune(["a thread"])
        assert await ids(other) == ["9"]
    assert_no_garbage(migrated_url)


async def test_puts_and_prunes_at_the_same_time_leave_every_manifest_whole(
    migrated_url: str,
) -> None:
    async with create_saver(migrated_url) as one, create_saver(migrated_url) as other:

        async def run(saver: Saver, name: str) -> None:
            where = THREAD
            for number in range(15):
                own, shared = noise(number % 3), noise("shared")
                where = await put(saver, where, f"{number:03} {name}", own=own, shared=shared)
                await saver.aput_writes(where, [("a", noise(number % 4))], "a task")

        async def sweep(saver: Saver) -> None:
            for number in range(15):
                await saver.aprune(["a thread"], strategy="keep_latest")
                await saver.acopy_thread("a thread", f"copy {number % 3}")
                await saver.aprune([f"copy {(number + 1) % 3}"], strategy="delete")

        await asyncio.gather(run(one, "one"), run(other, "other"), sweep(one), sweep(other))
        for found in await listed(one):
            assert found.checkpoint["channel_values"]["shared"] == noise("shared")
        assert {"014 one", "014 other"} & set(await ids(one, THREAD))
        assert_all_stored(migrated_url)
        for thread in ("a thread", "copy 0", "copy 1", "copy 2"):
            await put(one, config(thread), "999")
            await one.aprune([thread])
    assert_no_garbage(migrated_url)
