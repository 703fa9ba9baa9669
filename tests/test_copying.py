"""Copies of threads, also as they stood at one of their checkpoints."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import StateSnapshot
from model import id_of, listed
from scenarios import SCENARIOS, play
from scripted import Normaliser
from storing import LARGE, SENDS, config, put, row_counts, statements

from checkpointer import AsyncSQLAlchemySaver, InvalidInputError, create_saver, tables
from checkpointer.tables import threads as thread_rows

Saver = AsyncSQLAlchemySaver


def whole(thread: str) -> RunnableConfig:
    """The config that names all namespaces of a thread."""
    return {"configurable": {"thread_id": thread}}


async def line(saver: Saver, where: RunnableConfig, *names: str, **root: str) -> RunnableConfig:
    """Checkpoints one after the other, each with a value and a write of its own."""
    metadata = {"parents": {"": root["root"]}} if root else {}
    for name in names:
        where = await put(saver, where, name, metadata, a=[*LARGE, name])
        await saver.aput_writes(where, [("a", [name, *LARGE]), ("b", name)], "a task")
    return where


def as_of(found: CheckpointTuple, thread: str) -> CheckpointTuple:
    """A checkpoint, as if it were another thread's."""

    def moved(where: RunnableConfig | None) -> RunnableConfig | None:
        if where is None:
            return None
        return {"configurable": {**where.get("configurable", {}), "thread_id": thread}}

    config_ = moved(found.config)
    assert config_ is not None
    return found._replace(config=config_, parent_config=moved(found.parent_config))


async def keys(saver: Saver, thread: str) -> list[tuple[str, str]]:
    """Namespace and id of each checkpoint."""
    found = await listed(saver, whole(thread))
    return sorted(
        (one.config.get("configurable", {})["checkpoint_ns"], id_of(one)) for one in found
    )


async def test_a_copy_up_to_a_checkpoint_holds_what_belongs_to_it(
    saver: Saver, database_url: str
) -> None:
    two = await line(saver, config(), "1", "2")
    await line(saver, config(checkpoint_ns="memory"), "1.5", root="1")
    await line(saver, config(checkpoint_ns="call:1"), "1.6", "1.7", root="1")
    fork = await line(saver, two, "3")
    await line(saver, config(checkpoint_ns="call:3"), "3.5", root="3")
    await line(saver, config(checkpoint_id="1.5", checkpoint_ns="memory"), "3.6", root="3")
    await line(saver, config(checkpoint_ns="more memory"), "3.7", root="3")
    await line(saver, two, "4", "5")
    await line(saver, config(checkpoint_id="3.6", checkpoint_ns="memory"), "4.5", "4.6", root="4")
    await line(saver, config(checkpoint_ns="call:4"), "4.7", root="4")
    await line(saver, config(checkpoint_ns="call:4|memory"), "4.8", root="4")
    await line(saver, config(checkpoint_ns="call:5"), "5.1", root="5")
    await line(saver, config(checkpoint_ns="memory"), "5.2", root="5")
    await line(saver, config(checkpoint_ns="more memory"), "5.3", root="5")
    await saver.aput_writes(config(checkpoint_id="6"), [("a", LARGE)], "a task")
    source = {
        (o.config.get("configurable", {})["checkpoint_ns"], id_of(o)): o
        for o in await listed(saver, whole("a thread"))
    }
    await saver.acopy_thread("a thread", "a copy", checkpoint_id="4")
    expected = [
        *(("", name) for name in ("1", "2", "4")),
        *(("call:1", name) for name in ("1.6", "1.7")),
        ("call:4", "4.7"),
        ("call:4|memory", "4.8"),
        # What another fork made before it is what its own calls went on from.
        *(("memory", name) for name in ("1.5", "3.6", "4.5", "4.6")),
        ("more memory", "3.7"),
    ]
    assert await keys(saver, "a copy") == expected
    for one in await listed(saver, whole("a copy")):
        key = (one.config.get("configurable", {})["checkpoint_ns"], id_of(one))
        assert one == as_of(source[key], "a copy")
    assert await keys(saver, "a thread") == sorted(source)
    assert (await saver.averify("a copy")).problems == ()
    copied = (await saver.astats("a copy")).tables
    assert copied["writes"].rows == 2 * len(expected)
    assert fork


async def test_a_copy_up_to_the_first_checkpoint_is_that_one(saver: Saver) -> None:
    await line(saver, config(), "1", "2", "3")
    await saver.acopy_thread("a thread", "a copy", checkpoint_id="1")
    assert await keys(saver, "a copy") == [("", "1")]
    await saver.adelete_thread("a thread")
    [found] = await listed(saver, whole("a copy"))
    assert found.checkpoint["channel_values"] == {"a": [*LARGE, "1"]}
    assert (await saver.averify()).problems == ()


async def test_a_copy_takes_the_parent_that_holds_pending_sends(saver: Saver) -> None:
    parent = await put(saver, config(), "1")
    await saver.aput_writes(parent, [(SENDS, "sent")], "a task")
    old: Any = {"v": 3, "id": "2", "ts": "", "channel_values": {}, "channel_versions": {}}
    await saver.aput(parent, old, {}, {})
    await saver.acopy_thread("a thread", "a copy", checkpoint_id="2")
    found = await saver.aget_tuple(config("a copy"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {SENDS: ["sent"]}


@pytest.mark.parametrize("target", ["a copy", "a thread", "a"])
async def test_an_unknown_checkpoint_is_refused(
    saver: Saver, database_url: str, target: str
) -> None:
    await line(saver, config(), "1")
    await line(saver, config(checkpoint_ns="inner"), "2")
    before = row_counts(database_url)
    for source, name in (("a thread", "2"), ("a thread", "3"), ("no thread", "1")):
        with pytest.raises(InvalidInputError, match=f"found no checkpoint '{name}'.*'{source}'"):
            await saver.acopy_thread(source, target, checkpoint_id=name)
    await saver.acopy_thread("a thread", "a thread", checkpoint_id="1")
    assert row_counts(database_url) == before


async def test_a_copy_into_a_thread_replaces_what_has_the_same_key(saver: Saver) -> None:
    await line(saver, config(), "1", "2")
    await put(saver, config("another"), "1", a="replaced")
    await put(saver, config("another"), "3", a="stays")
    await saver.acopy_thread("a thread", "another", checkpoint_id="1")
    newest, oldest = await listed(saver, whole("another"))
    assert newest.checkpoint["channel_values"] == {"a": "stays"}
    assert oldest.checkpoint["channel_values"] == {"a": [*LARGE, "1"]}
    child = config("another", "1")
    await put(saver, child, "4", a=[*LARGE, "1"])
    assert (await saver.averify()).whole


async def test_no_values_travel(saver: Saver) -> None:
    at = config()
    for number in range(30):
        at = await put(saver, at, f"{number:02}", a=[*LARGE, number])
    with statements() as seen:
        await saver.acopy_thread("a thread", "a copy", checkpoint_id="20")
    assert len(seen) <= 15
    for one in seen:
        assert not any(isinstance(value, bytes) for value in one.parameters[0])


@pytest.mark.parametrize("checkpoint_id", [None, "1"])
@pytest.mark.parametrize("target", ["a", "z"])
async def test_a_copy_of_what_is_deleted_meanwhile_leaves_no_row(
    migrated_url: str, database_url: str, target: str, checkpoint_id: str | None
) -> None:
    """The source is there when it is looked for, and gone when its row is to be held."""
    async with create_saver(migrated_url) as saver, create_saver(migrated_url) as other:
        if saver.engine.dialect.name == "sqlite":
            pytest.skip("a file has one writer at a time, which is the copy")
        await line(saver, config("m"), "1")
        await line(saver, config("kept"), "1")
        async with saver.engine.connect() as holder:
            held = sa.select(thread_rows).where(thread_rows.c.thread_id == "m").with_for_update()
            await holder.execute(held)
            copying = asyncio.create_task(
                saver.acopy_thread("m", target, checkpoint_id=checkpoint_id)
            )
            while not await _waits_for_a_row(other):  # noqa: ASYNC110 - the server tells no one
                await asyncio.sleep(0.01)
            for table in tables.metadata.sorted_tables:
                await holder.execute(sa.delete(table).where(table.c.thread_id == "m"))
            await holder.commit()
        if checkpoint_id is None:
            await copying
        else:
            with pytest.raises(InvalidInputError, match="found no checkpoint '1'"):
                await copying
        page = await other.alist_threads()
        assert [one.thread_id for one in page.threads] == ["kept"]


async def _waits_for_a_row(saver: Saver) -> bool:
    async with saver.engine.connect() as connection:
        sql = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return bool(await connection.scalar(sa.text(sql)))


def head_of(state: StateSnapshot) -> str:
    """The id of the checkpoint that a state is of."""
    return str(state.config.get("configurable", {})["checkpoint_id"])


def bare(found: list[CheckpointTuple], head: str) -> list[CheckpointTuple]:
    """Without the writes to one of them, which an `update_state` makes later for delta channels."""
    return [one._replace(pending_writes=None) if id_of(one) == head else one for one in found]


LINES = ("conversation", "approval", "subgraph", "subgraph with memory", "fan-out", "delta")
"""Scenarios without forks."""


@pytest.mark.parametrize("name", LINES)
async def test_a_copy_goes_on_as_the_original_did(saver: Saver, name: str) -> None:
    """After each step, the thread is copied as it is; later, up to the checkpoint it was at."""
    scenario = SCENARIOS[name]
    graph = scenario.builder(saver)
    # What follows takes an unanswered question back.
    steps = scenario.steps[:3] if name == "subgraph" else scenario.steps
    heads: list[tuple[str, bool]] = []
    for number, step in enumerate(steps):
        await play(graph, [step], "sync")
        state = await graph.aget_state(whole("a thread"))
        heads.append((head_of(state), bool(state.next)))
        await saver.acopy_thread("a thread", f"then {number}")
    for number, (checkpoint_id, stopped) in enumerate(heads[:-1]):
        copy, then = f"copy {number}", f"then {number}"
        await saver.acopy_thread("a thread", copy, checkpoint_id=checkpoint_id)
        if stopped:
            # The answer that came later stands in its writes, so it needs none.
            await graph.ainvoke(None, whole(copy), durability="sync")
            await play(graph, [steps[number + 1]], "sync", whole(then))
        else:
            expected = [as_of(one, copy) for one in await listed(saver, whole(then))]
            assert bare(await listed(saver, whole(copy)), checkpoint_id) == bare(
                expected, checkpoint_id
            )
            for thread in (copy, then):
                await play(graph, [steps[number + 1]], "sync", whole(thread))
        states = [await graph.aget_state(whole(thread)) for thread in (copy, then)]
        assert Normaliser()(states[0].values) == Normaliser()(states[1].values)
        assert states[0].next == states[1].next
    assert (await saver.averify()).problems == ()


@pytest.mark.parametrize("name", [*LINES, "time travel", "delta time travel"])
async def test_a_copy_of_a_head_takes_the_step_that_comes_next(saver: Saver, name: str) -> None:
    scenario = SCENARIOS[name]
    graph = scenario.builder(saver)
    *steps, last = scenario.steps
    if last.back:
        *steps, last = steps
    await play(graph, steps, "sync")
    state = await graph.aget_state(whole("a thread"))
    await saver.acopy_thread("a thread", "a copy", checkpoint_id=head_of(state))
    outcomes = []
    for thread in ("a thread", "a copy"):
        output = await play(graph, [last], "sync", whole(thread))
        state = await graph.aget_state(whole(thread), subgraphs=True)
        outcomes.append(Normaliser()([output, state.values, state.next]))
    assert outcomes[0] == outcomes[1]
    assert (await saver.averify()).problems == ()
