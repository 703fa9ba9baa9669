"""Sync calls: over a loop of the saver's own in a thread, or over the loop that it is used on."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph import END, START, MessagesState, StateGraph
from storing import checkpoint, config

from checkpointer import (
    AsyncSQLAlchemySaver,
    EventLoopError,
    SaverClosedError,
    SyncCallError,
    create_saver,
)

Saver = AsyncSQLAlchemySaver

THREAD = config()


def put(saver: Saver, name: str, parent: str | None = None, **values: Any) -> Any:
    stored = checkpoint(name, values)
    return saver.put(config(checkpoint_id=parent), stored, {}, stored["channel_versions"])


def loop_threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "checkpointer loop"}


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """No test leaves a background thread behind."""
    before = loop_threads()
    yield
    gc.collect()
    assert loop_threads() == before


def graph(saver: Saver) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("reply", lambda state: {"messages": [("ai", "hello")]})
    builder.add_edge(START, "reply")
    builder.add_edge("reply", END)
    return builder.compile(checkpointer=saver)


def texts(state: Any) -> list[str]:
    return [message.content for message in state["messages"]]


def test_a_plain_sync_graph_runs(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        app = graph(saver)
        for turn in range(3):
            state = app.invoke({"messages": [("user", f"turn {turn}")]}, THREAD)
            assert len(texts(state)) == 2 * (turn + 1)
        assert texts(app.get_state(THREAD).values)[-2:] == ["turn 2", "hello"]
        assert len(list(app.get_state_history(THREAD))) == 9
        app.update_state(THREAD, {"messages": [("ai", "by hand")]})
    with create_saver(migrated_url) as saver:
        assert texts(graph(saver).get_state(THREAD).values)[-1] == "by hand"


def test_every_sync_method_does_what_its_async_twin_does(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        saver.setup_sync()
        first = put(saver, "1", text="x")
        assert first == config(checkpoint_id="1")
        saver.put_writes(first, [("a", 1)], "a task", "a path")
        put(saver, "2", "1", other="y")
        found = saver.get_tuple(THREAD)
        assert found is not None
        assert found.parent_config == first
        assert saver.get(first) == checkpoint("1", {"text": "x"})
        assert [one.checkpoint["id"] for one in saver.list(THREAD)] == ["2", "1"]
        before = config(checkpoint_id="2")
        listed = list(saver.list(None, filter={}, before=before, limit=5))
        assert [one.pending_writes for one in listed] == [[("a task", "a", 1)]]
        history: Any = saver.get_delta_channel_history(config=THREAD, channels=["text"])
        assert history == {"text": {"writes": [], "seed": "x"}}
        saver.copy_thread("a thread", "a copy")
        saver.prune(["a copy"])
        assert [one.checkpoint["id"] for one in saver.list(config("a copy"))] == ["2"]
        saver.prune(["a copy"], strategy="delete")
        assert list(saver.list(config("a copy"))) == []
        put(saver, "3", "2")
        saver.delete_for_runs(["no run"])
        saver.delete_thread("a thread")
        assert list(saver.list(None)) == []


def test_the_background_thread_lives_as_long_as_the_block(migrated_url: str) -> None:
    before = loop_threads()
    with create_saver(migrated_url) as saver:
        assert saver.get_tuple(THREAD) is None
        (thread,) = loop_threads() - before
        assert thread.daemon
        assert thread.is_alive()
    assert not thread.is_alive()


def test_the_block_may_fail(migrated_url: str) -> None:
    def fail() -> None:
        with create_saver(migrated_url) as saver:
            put(saver, "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with create_saver(migrated_url) as saver:
        assert saver.get_tuple(THREAD) is not None


def test_a_saver_may_be_closed_twice(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        put(saver, "1")
        saver.close()
        saver.close()
    saver.close()
    with pytest.raises(SaverClosedError):
        saver.get_tuple(THREAD)


def test_a_saver_may_be_closed_without_being_used(migrated_url: str) -> None:
    with create_saver(migrated_url):
        pass
    saver = create_saver(migrated_url)
    saver.close()
    saver.close()


async def test_a_saver_may_be_closed_twice_on_its_loop(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        assert await saver.aget_tuple(THREAD) is None
        await asyncio.gather(saver.aclose(), saver.aclose())
    await saver.aclose()


def test_many_threads_share_a_saver(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> int:
            thread = config(number)
            for turn in range(5):
                saver.put(thread, checkpoint(f"{turn}", {"n": number}), {}, {})
                saver.put_writes(config(number, f"{turn}"), [("a", turn)], "a task")
            listed = list(saver.list(thread))
            assert [one.checkpoint["channel_values"]["n"] for one in listed] == [number] * 5
            return len(listed)

        assert sum(pool.map(work, range(24))) == 24 * 5


async def test_a_worker_thread_may_use_a_saver_of_the_loop(saver: Saver) -> None:
    assert await saver.aget_tuple(THREAD) is None

    def work() -> list[str]:
        put(saver, "1")
        put(saver, "2", "1")
        return [one.checkpoint["id"] for one in saver.list(THREAD)]

    assert await asyncio.to_thread(work) == ["2", "1"]
    assert len([one async for one in saver.alist(THREAD)]) == 2
    results = await asyncio.gather(*(asyncio.to_thread(saver.get_tuple, THREAD) for _ in range(10)))
    assert {one.checkpoint["id"] for one in results if one is not None} == {"2"}


async def test_a_sync_node_may_use_the_saver_of_its_graph(saver: Saver) -> None:
    """LangGraph runs sync nodes in threads while the graph runs on the loop."""
    seen: list[CheckpointTuple | None] = []
    builder = StateGraph(MessagesState)

    def look(state: MessagesState) -> dict[str, Any]:
        seen.append(saver.get_tuple(THREAD))
        return {"messages": [("ai", "hello")]}

    builder.add_node("look", look)
    builder.add_edge(START, "look")
    app: Any = builder.compile(checkpointer=saver)
    await app.ainvoke({"messages": []}, THREAD, durability="sync")
    assert len(seen) == 1
    assert seen[0] is not None


@pytest.fixture
def many(migrated_url: str) -> Iterator[Saver]:
    """A sync saver with more checkpoints than one page of a list takes."""
    with create_saver(migrated_url) as saver:
        for number in range(40):
            put(saver, f"{number:03}")
        yield saver
        checked_out = getattr(saver.engine.pool, "checkedout", int)
        assert checked_out() == 0


def test_a_list_may_be_left_early(many: Saver) -> None:
    for found in many.list(THREAD):
        assert found.checkpoint["id"] == "039"
        break
    found_ = many.list(THREAD)
    next(found_)
    del found_
    gc.collect()
    assert many.get_tuple(THREAD) is not None


def test_the_saver_may_be_used_inside_a_sync_list(many: Saver) -> None:
    seen = []
    for found in many.list(THREAD):
        seen.append(found.checkpoint["id"])
        assert many.get_tuple(found.config) == found
        assert next(iter(many.list(THREAD))).checkpoint["id"] == "039"
    assert seen == [f"{number:03}" for number in range(39, -1, -1)]


def test_a_list_that_nobody_asked_for_an_item_costs_nothing(many: Saver) -> None:
    found = many.list(THREAD)
    del found
    gc.collect()


def test_a_list_may_outlive_its_saver(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        for number in range(40):
            put(saver, f"{number:03}")
        left: Any = saver.list(THREAD)
        closed: Any = saver.list(THREAD)
        gone_on = saver.list(THREAD)
        for found in (left, closed, gone_on):
            next(found)
    del left
    gc.collect()
    closed.close()
    with pytest.raises(SaverClosedError):
        list(gone_on)


async def test_a_list_of_a_worker_thread_may_be_left_early(saver: Saver) -> None:
    for number in range(40):
        await saver.aput(THREAD, checkpoint(f"{number:03}", {}), {}, {})

    def first() -> str:
        found = saver.list(THREAD)
        name = next(found).checkpoint["id"]
        del found
        gc.collect()
        return name

    assert await asyncio.to_thread(first) == "039"


def test_a_loop_that_runs_elsewhere_does_not_matter(migrated_url: str) -> None:
    """In a notebook a loop runs in the main thread: sync calls have one of their own."""

    async def cell(saver: Saver) -> CheckpointTuple | None:
        return saver.get_tuple(THREAD)

    with create_saver(migrated_url) as saver:
        put(saver, "1")
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            found = runner.run(cell(saver))
            assert found is not None
            with pytest.raises(EventLoopError):
                runner.run(saver.aget_tuple(THREAD))


async def test_the_end_waits_for_sync_calls_under_way(migrated_url: str) -> None:
    saver = create_saver(migrated_url)
    assert await saver.aget_tuple(THREAD) is None
    thread = str(uuid4())

    def work() -> list[str]:
        done = []
        try:
            for number in range(10_000):
                name = f"{number:05}"
                saver.put(config(thread), checkpoint(name, {}), {}, {})
                done.append(name)
        except SaverClosedError:
            return done
        return []

    working = asyncio.ensure_future(asyncio.to_thread(work))
    while await saver.aget_tuple(config(thread)) is None:
        pass
    await saver.aclose()
    done = await working
    assert done
    async with create_saver(migrated_url) as other:
        stored = [one.checkpoint["id"] async for one in other.alist(config(thread))]
    assert stored == done[::-1]


def test_close_waits_for_calls_of_other_threads(migrated_url: str) -> None:
    saver = create_saver(migrated_url)
    stored: list[str] = []
    enough = threading.Event()

    def work(worker: int) -> None:
        for number in range(5_000):
            name = f"{worker}-{number:05}"
            try:
                saver.put(config(worker), checkpoint(name, {}), {}, {})
            except SaverClosedError:
                return
            stored.append(name)
            if len(stored) >= 20:
                enough.set()

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, n) for n in range(4)]
        assert enough.wait(60)
        saver.close()
        for one in working:
            one.result()
    with create_saver(migrated_url) as other:
        assert sorted(one.checkpoint["id"] for one in other.list(None)) == sorted(stored)


async def test_a_block_on_the_loop_refuses_sync_calls_and_stays_usable(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        with pytest.raises(SyncCallError):
            graph(saver).invoke({"messages": []}, THREAD)
        state = await graph(saver).ainvoke({"messages": []}, THREAD)
        assert texts(state) == ["hello"]
