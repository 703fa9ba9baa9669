"""The contract of `get_delta_channel_history`, which the conformance suite does not cover.

Each answer is compared with `InMemorySaver`'s and with that of the base class, which walks with
`get_tuple` alone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    DeltaChannelHistory,
    PendingWrite,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpointer import AsyncSQLAlchemySaver, create_saver

Savers = Sequence[BaseCheckpointSaver[str]]
Write = tuple[str, Any, str, str]
"""Channel, value, task, and the task's path."""


class Thread:
    """One thread, kept on our saver and on the reference alike."""

    def __init__(self, saver: AsyncSQLAlchemySaver, namespace: str = "") -> None:
        self.saver = saver
        self.reference = InMemorySaver()
        self.namespace = namespace

    def config(self, checkpoint_id: str | None = None) -> RunnableConfig:
        configurable = {"thread_id": "a thread", "checkpoint_ns": self.namespace}
        if checkpoint_id is not None:
            configurable["checkpoint_id"] = checkpoint_id
        return {"configurable": configurable}

    async def put(self, checkpoint_id: str, parent: str | None = None, **values: Any) -> None:
        """Store a checkpoint that holds these channels; all of them get a new version."""
        versions: ChannelVersions = {
            channel: f"{checkpoint_id} {channel}" for channel in (*values, "other")
        }
        checkpoint = Checkpoint(
            v=4,
            id=checkpoint_id,
            ts="2025-01-01T00:00:00+00:00",
            channel_values={**values, "other": 0},
            channel_versions=versions,
            versions_seen={},
            updated_channels=None,
        )
        for saver in (self.saver, self.reference):
            await saver.aput(self.config(parent), checkpoint, {"source": "loop"}, versions)

    async def write(self, checkpoint_id: str, *writes: Write) -> None:
        """Store writes, each of its own task."""
        for channel, value, task, path in writes:
            for saver in (self.saver, self.reference):
                await saver.aput_writes(self.config(checkpoint_id), [(channel, value)], task, path)

    async def history(
        self, checkpoint_id: str | None, *channels: str
    ) -> Mapping[str, DeltaChannelHistory]:
        """Our answer, once it is seen to be the two others' as well."""
        config = self.config(checkpoint_id)
        ours = await self.saver.aget_delta_channel_history(config=config, channels=channels)
        walked = await BaseCheckpointSaver.aget_delta_channel_history(
            self.saver, config=config, channels=channels
        )
        assert ours == walked
        assert ours == self.reference.get_delta_channel_history(config=config, channels=channels)
        assert list(ours) == list(channels)
        return ours


@pytest.fixture(params=["", "call:1|inner"])
def thread(saver: AsyncSQLAlchemySaver, request: pytest.FixtureRequest) -> Thread:
    return Thread(saver, request.param)


def written(history: DeltaChannelHistory) -> list[Any]:
    """The values of the writes."""
    return [value for _, _, value in history["writes"]]


async def chain(thread: Thread, length: int) -> None:
    """Checkpoints 0000, 0001, ... each with one write of its number to `log`."""
    for n in range(length):
        await thread.put(f"{n:04}", f"{n - 1:04}" if n else None)
        await thread.write(f"{n:04}", ("log", n, f"task {n}", ""))


async def test_without_a_seed_the_walk_ends_at_the_root(thread: Thread) -> None:
    await chain(thread, 4)

    history = await thread.history("0003", "log")

    assert history == {
        "log": {"writes": [("task 0", "log", 0), ("task 1", "log", 1), ("task 2", "log", 2)]}
    }


async def test_the_writes_of_the_target_itself_are_left_out(thread: Thread) -> None:
    await chain(thread, 1)

    assert await thread.history("0000", "log") == {"log": {"writes": []}}


async def test_without_a_checkpoint_id_the_latest_is_meant(thread: Thread) -> None:
    await chain(thread, 3)

    history = await thread.history(None, "log")

    assert written(history["log"]) == [0, 1]


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(_DeltaSnapshot(["a", {"b": 1}]), id="snapshot"),
        pytest.param(_DeltaSnapshot(None), id="snapshot of None"),
        pytest.param(["plain"], id="plain value"),
        pytest.param(None, id="None"),
        pytest.param([], id="empty list"),
        pytest.param(0, id="zero"),
        pytest.param("", id="empty string"),
        pytest.param(False, id="False"),
    ],
)
async def test_the_walk_ends_at_the_nearest_value_and_takes_the_writes_made_on_it(
    thread: Thread, seed: Any
) -> None:
    await chain(thread, 2)
    await thread.put("0002", "0001", log=seed)
    await thread.write("0002", ("log", 2, "task 2", ""))
    await thread.put("0003", "0002")
    await thread.write("0003", ("log", 3, "task 3", ""))
    await thread.put("0004", "0003")

    history = (await thread.history("0004", "log"))["log"]

    assert written(history) == [2, 3]
    assert "seed" in history
    assert history["seed"] == seed
    assert type(history["seed"]) is type(seed)


async def test_a_value_at_the_target_itself_is_no_seed(thread: Thread) -> None:
    await chain(thread, 2)
    await thread.put("0002", "0001", log=_DeltaSnapshot([9]))

    history = (await thread.history("0002", "log"))["log"]

    assert written(history) == [0, 1]
    assert "seed" not in history


async def test_channels_end_at_different_ancestors(thread: Thread) -> None:
    await thread.put("0000", near=_DeltaSnapshot(["old"]), far=["far"])
    await thread.put("0001", "0000", middle={"is": "plain"})
    await thread.put("0002", "0001", near=_DeltaSnapshot(["near"]))
    await thread.put("0003", "0002")
    for checkpoint_id in ("0000", "0001", "0002", "0003"):
        await thread.write(
            checkpoint_id,
            *(
                (channel, checkpoint_id, channel, "")
                for channel in ("far", "middle", "near", "never")
            ),
        )

    history = await thread.history("0003", "near", "never", "middle", "far", "unknown")

    assert {channel: written(one) for channel, one in history.items()} == {
        "near": ["0002"],
        "never": ["0000", "0001", "0002"],
        "middle": ["0001", "0002"],
        "far": ["0000", "0001", "0002"],
        "unknown": [],
    }
    assert {channel: one["seed"] for channel, one in history.items() if "seed" in one} == {
        "near": _DeltaSnapshot(["near"]),
        "middle": {"is": "plain"},
        "far": ["far"],
    }


async def test_only_ancestors_on_the_path_count_in_a_fork(thread: Thread) -> None:
    await chain(thread, 3)
    # Two branches from 0001: one by way of a snapshot; their ids interleave with the first one's.
    await thread.put("0001-fork", "0001", log=_DeltaSnapshot(["fork"]))
    await thread.write("0001-fork", ("log", "on the fork", "task f", ""))
    await thread.put("0005", "0001-fork")
    await thread.put("0004", "0002")

    assert written((await thread.history("0004", "log"))["log"]) == [0, 1, 2]
    forked = (await thread.history("0005", "log"))["log"]
    assert (written(forked), forked.get("seed")) == (["on the fork"], _DeltaSnapshot(["fork"]))
    assert written((await thread.history("0001-fork", "log"))["log"]) == [0, 1]


async def test_other_namespaces_and_threads_do_not_count(saver: AsyncSQLAlchemySaver) -> None:
    for namespace in ("", "inner", "inner:1"):
        thread = Thread(saver, namespace)
        for checkpoint_id, parent in (("1", None), ("2", "1")):
            await thread.put(checkpoint_id, parent)
            await thread.write(checkpoint_id, ("log", f"in {namespace}", "task", ""))

        assert written((await thread.history("2", "log"))["log"]) == [f"in {namespace}"]
    await saver.acopy_thread("a thread", "another")
    await thread.write("1", ("log", "later", "task 2", ""))

    assert written((await thread.history("2", "log"))["log"]) == ["in inner:1", "later"]


async def test_writes_come_in_the_order_in_which_a_run_applies_them(thread: Thread) -> None:
    await thread.put("1")
    await thread.write(
        "1",
        ("log", "path b, task 1", "task 1", "~b"),
        ("log", "path a, task 2", "task 2", "~a"),
        ("log", "no path, task 9", "task 9", ""),
        ("log", "path a, task 0", "task 0", "~a"),
        ("log", "path é, task 5", "task 5", "~é"),
        ("log", "path Z, task 5", "task 6", "~Z"),
    )
    for saver in (thread.saver, thread.reference):
        many = [("log", n) if n % 2 else ("other", n) for n in range(12)]
        await saver.aput_writes(thread.config("1"), many, "task 3", "~a")
    await thread.put("2", "1")

    history = await thread.history("2", "log")

    assert written(history["log"]) == [
        "no path, task 9",
        "path Z, task 5",
        "path a, task 0",
        "path a, task 2",
        *(1, 3, 5, 7, 9, 11),
        "path b, task 1",
        "path é, task 5",
    ]


@pytest.mark.parametrize("checkpoint_id", ["unknown", None])
async def test_an_unknown_checkpoint_has_no_history(
    thread: Thread, checkpoint_id: str | None
) -> None:
    if checkpoint_id is not None:
        await chain(thread, 2)

    assert await thread.history(checkpoint_id, "log") == {"log": {"writes": []}}


async def test_a_missing_parent_ends_the_walk(thread: Thread) -> None:
    await thread.write("gone", ("log", "unseen", "task", ""))
    await thread.put("1", "gone")
    await thread.write("1", ("log", "seen", "task", ""))
    await thread.put("2", "1")

    assert await thread.history("2", "log") == {"log": {"writes": [("task", "log", "seen")]}}
    assert await thread.history("1", "log") == {"log": {"writes": []}}


async def test_without_channels_nothing_is_asked(thread: Thread) -> None:
    assert await thread.history(None) == {}


@pytest.mark.parametrize("seeded", [True, False])
async def test_a_chain_of_many_hundred_checkpoints_is_read_whole(
    saver: AsyncSQLAlchemySaver, *, seeded: bool
) -> None:
    thread = Thread(saver)
    await thread.put("0000", None, **({"log": _DeltaSnapshot([-1])} if seeded else {}))
    work = []
    for n in range(1, 700):
        work.append(thread.put(f"{n:04}", f"{n - 1:04}", **({"short": n} if n % 50 == 0 else {})))
        work.append(thread.write(f"{n:04}", ("log", n, "task 1", ""), ("short", n, "task 2", "")))
    await asyncio.gather(*work)

    history = await thread.history(None, "log", "short")

    assert written(history["log"]) == list(range(1, 699))
    assert history["log"].get("seed") == (_DeltaSnapshot([-1]) if seeded else None)
    assert (written(history["short"]), history["short"].get("seed")) == (list(range(650, 699)), 650)


async def test_long_values_of_seeds_and_writes_come_back_whole(migrated_url: str) -> None:
    long = [f"{n} " + "long " * 100 for n in range(2_000)]
    async with create_saver(migrated_url) as saver:
        thread = Thread(saver)
        await thread.put("0", log=_DeltaSnapshot(long))
        for n in range(1, 4):
            await thread.put(f"{n}", f"{n - 1}")
            await thread.write(f"{n}", ("log", long[n:], "task", ""), ("other", long, "task 2", ""))

    # With nothing in memory, too.
    async with create_saver(migrated_url) as thread.saver:
        history = (await thread.history(None, "log"))["log"]

    assert history.get("seed") == _DeltaSnapshot(long)
    assert written(history) == [long[1:], long[2:]]


def test_the_sync_twin_answers_the_same(migrated_url: str) -> None:
    reference = InMemorySaver()
    with create_saver(migrated_url) as saver:
        for one in (saver, reference):
            config: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
            for n in range(5):
                values = {"log": _DeltaSnapshot([n])} if n == 2 else {}
                checkpoint = Checkpoint(
                    v=4,
                    id=f"{n}",
                    ts="",
                    channel_values=values,
                    channel_versions={"log": f"{n}"},
                    versions_seen={},
                    updated_channels=None,
                )
                config = one.put(config, checkpoint, {"step": n}, {"log": f"{n}"})
                one.put_writes(config, [("log", n), ("other", n)], "task")
        history = saver.get_delta_channel_history(config=config, channels=["log", "other"])
        walked = BaseCheckpointSaver.get_delta_channel_history(
            saver, config=config, channels=["log", "other"]
        )

    expected: list[PendingWrite] = [("task", "log", 2), ("task", "log", 3)]
    assert history["log"] == {"writes": expected, "seed": _DeltaSnapshot([2])}
    assert history == walked
    assert history == reference.get_delta_channel_history(config=config, channels=["log", "other"])
