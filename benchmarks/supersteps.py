"""What LangGraph puts into a saver at each superstep of a run, made from a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from random import Random
from typing import Any, Final
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from savers import Saver
from workloads import prose

NODES: Final = ("plan", "act")
"""The graph's nodes, which take turns."""


@dataclass(frozen=True, slots=True)
class Superstep:
    """The writes of a node, and the checkpoint that follows from them."""

    writes: Sequence[tuple[str, Any]]
    task_id: str
    task_path: str
    checkpoint: Checkpoint
    metadata: CheckpointMetadata
    new_versions: ChannelVersions


@dataclass(slots=True)
class Thread:
    """A run of a graph with two nodes, as its saver sees it.

    Each superstep is made with `next` or `start`, which costs the saver nothing, and put later. A
    put passes the config that the put before it returned, as LangGraph does.
    """

    saver: Saver
    thread_id: str
    step: int = -2
    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, ChannelVersions] = field(default_factory=lambda: {"__input__": {}})
    config: RunnableConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}

    def start(self) -> Superstep:
        """The input, from which the first node starts."""
        return self._superstep({"__start__": {"goal": "an answer"}}, [], "input")

    def next(self, changed: Mapping[str, Any], written: Sequence[str] = ()) -> Superstep:
        """A superstep in which one node changes some channels and calls the other node.

        Args:
            changed: The new values.
            written: Those of the channels that the node's pending writes name.
        """
        node, other = NODES[self.step % 2], NODES[(self.step + 1) % 2]
        trigger = f"branch:to:{node}"
        if trigger in self.versions:
            self.seen = {**self.seen, node: {trigger: self.versions[trigger]}}
        for consumed in ("__start__", trigger):
            self.values.pop(consumed, None)
        writes = [(channel, changed[channel]) for channel in written]
        values = {**changed, f"branch:to:{other}": None}
        return self._superstep(values, writes, "loop", consumed=trigger)

    def _superstep(
        self,
        changed: Mapping[str, Any],
        writes: Sequence[tuple[str, Any]],
        source: Any,
        *,
        consumed: str | None = None,
    ) -> Superstep:
        self.step += 1
        newest = max(self.versions.values(), default=None)
        version: str = self.saver.get_next_version(newest, None)
        new_versions: ChannelVersions = {channel: version for channel in changed}  # noqa: C420
        if consumed is not None and consumed in self.versions:
            new_versions[consumed] = version
        self.values = {**self.values, **changed}
        self.versions = {**self.versions, **new_versions}
        checkpoint = Checkpoint(
            v=4,
            ts=datetime.now(UTC).isoformat(),
            id=str(uuid6(clock_seq=self.step)),
            channel_values=dict(self.values),
            channel_versions=self.versions,
            versions_seen=self.seen,
            updated_channels=sorted(changed),
        )
        metadata = CheckpointMetadata(source=source, step=self.step, parents={})
        task_id = made_uuid(f"{self.thread_id} {self.step}")
        path = f"~__pregel_pull, {NODES[self.step % 2]}"
        return Superstep(writes, task_id, path, checkpoint, metadata, new_versions)

    async def put(self, superstep: Superstep) -> None:
        """Put the checkpoint, as the child of the one that was put last."""
        self.config = await self.saver.aput(
            self.config, superstep.checkpoint, superstep.metadata, superstep.new_versions
        )

    async def put_writes(self, superstep: Superstep) -> None:
        """Put the node's writes, to the checkpoint that was put last."""
        await self.saver.aput_writes(
            self.config, superstep.writes, superstep.task_id, superstep.task_path
        )

    async def run(self, superstep: Superstep) -> None:
        """A whole superstep: the writes, then the checkpoint."""
        await self.put_writes(superstep)
        await self.put(superstep)


def made_uuid(seed: str) -> str:
    """The same UUID for the same seed."""
    return str(UUID(int=Random(seed).getrandbits(128), version=4))


@cache
def _small(index: int) -> dict[str, Any]:
    random = Random(index)
    return {
        "plan": [prose(f"plan {index} {item}", 40) for item in range(3)],
        "facts": {f"fact {item}": random.randrange(1000) for item in range(4)},
        "answer": prose(f"answer {index}", 80),
    }


SMALL_STATES: Final = 512


def small(index: int) -> dict[str, Any]:
    """Three small channels, about 400 bytes; another value for each of 512 indexes."""
    return _small(index % SMALL_STATES)


def small_superstep(thread: Thread, index: int) -> Superstep:
    """Two small writes, and a checkpoint with three small channels, all of which change."""
    return thread.next(small(index), written=("facts", "answer"))


def made_message(seed: str, index: int) -> BaseMessage:
    """A message with 1 KB of text: the human's and the model's by turns."""
    text = prose(f"{seed} {index}")
    if index % 2 == 0:
        return HumanMessage(text, id=made_uuid(f"{seed} {index}"))
    usage = {"input_tokens": 250 * index, "output_tokens": 250, "total_tokens": 250 * (index + 1)}
    return AIMessage(
        text,
        id=f"run--{made_uuid(f'{seed} {index}')}",
        response_metadata={"model_name": "a-model", "finish_reason": "stop"},
        usage_metadata=usage,
    )


@cache
def message(seed: str, index: int) -> BaseMessage:
    """The same message, made once for all savers."""
    return made_message(seed, index)


def messages(seed: str, count: int) -> list[BaseMessage]:
    """A new list of the first messages of a conversation."""
    return [message(seed, index) for index in range(count)]
