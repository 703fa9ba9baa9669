"""Checkpoints as commands look at them: where they stand, what ran before them, what is next."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, TASKS

from checkpointer.commands.values import Typed, as_json, loaded
from checkpointer.decoder import COUNTERS
from checkpointer.errors import InvalidInputError
from checkpointer.saver import AsyncSQLAlchemySaver

START: Final = "__start__"
_BRANCH: Final = "branch:to:"
_JOIN: Final = "join:"


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint, whose values are read when they are looked at.

    Attributes:
        parent_id: Its parent's id, in the same namespace.
        created: When, in ISO 8601.
        metadata: All of it.
        values: The channels' values; those of delta channels only where it holds them.
        versions: The channels' versions.
        seen: The versions that each node has seen.
        writes: Its pending writes: task, channel, value.
    """

    thread_id: str
    namespace: str
    checkpoint_id: str
    parent_id: str | None
    created: str
    metadata: Mapping[str, Any]
    values: Mapping[str, Any]
    versions: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, Any]]
    writes: Sequence[tuple[str, str, Any]]

    @classmethod
    def of(cls, found: CheckpointTuple) -> "Point":
        """The one that a saver found."""
        where = found.config.get("configurable", {})
        parent = (found.parent_config or {}).get("configurable", {})
        checkpoint: Mapping[str, Any] = found.checkpoint
        return cls(
            thread_id=where["thread_id"],
            namespace=where["checkpoint_ns"],
            checkpoint_id=where["checkpoint_id"],
            parent_id=parent.get("checkpoint_id"),
            created=str(checkpoint.get("ts", "")),
            metadata=found.metadata,
            values=checkpoint["channel_values"],
            versions=_dict(checkpoint.get("channel_versions")),
            seen={k: _dict(v) for k, v in _dict(checkpoint.get("versions_seen")).items()},
            writes=found.pending_writes or (),
        )

    @property
    def step(self) -> Any:
        """The superstep that made it; -1 for the first input."""
        return self.metadata.get("step")

    @property
    def source(self) -> str:
        """What made it: input, loop, update or fork."""
        return str(self.metadata.get("source", ""))

    @property
    def config(self) -> RunnableConfig:
        """The config that names it."""
        where = {"thread_id": self.thread_id, "checkpoint_ns": self.namespace}
        return {"configurable": where | {"checkpoint_id": self.checkpoint_id}}

    @property
    def interrupts(self) -> list[Any]:
        """What its tasks have asked, and nobody has answered in this checkpoint."""
        asked = [loaded(value) for _, channel, value in self.writes if channel == INTERRUPT]
        flat = [one for some in asked for one in (some if isinstance(some, list) else [some])]
        return [_asked(one) for one in map(loaded, flat)]

    @property
    def errors(self) -> list[Any]:
        """How its tasks have failed."""
        return [loaded(value) for _, channel, value in self.writes if channel == ERROR]

    def sent_to(self) -> list[str]:
        """The nodes that were sent something, once for each time."""
        return [_node(one) for one in loaded(self.values.get(TASKS)) or []]

    def next_nodes(self) -> list[str]:
        """The nodes that run next, told by the channels of a `StateGraph`."""
        found = {node for channel in self.values for node in self._triggered(channel)}
        return sorted(found) + self.sent_to()

    def _triggered(self, channel: str) -> Iterable[str]:
        node = channel.removeprefix(_BRANCH)
        if channel.startswith(_JOIN):
            sources, _, node = channel.removeprefix(_JOIN).rpartition(":")
            arrived = loaded(self.values[channel])
            if not isinstance(arrived, Typed) or len(arrived.value) < sources.count("+") + 1:
                return
        elif node == channel != START:
            return
        version, seen = self.versions.get(channel), self.seen.get(node, {}).get(channel)
        if version is not None and (seen is None or str(version) > str(seen)):
            yield node

    def as_json(self) -> dict[str, Any]:
        """It and all that it holds, as JSON."""
        writes = [
            {"task_id": task, "channel": channel, "value": as_json(value)}
            for task, channel, value in self.writes
        ]
        return {
            "thread_id": self.thread_id,
            "checkpoint_ns": self.namespace,
            "checkpoint_id": self.checkpoint_id,
            "parent_checkpoint_id": self.parent_id,
            "created_at": self.created,
            "metadata": as_json(self.metadata),
            "values": {name: as_json(value) for name, value in self.values.items()},
            "next": self.next_nodes(),
            "writes": writes,
        }


async def points(
    saver: AsyncSQLAlchemySaver,
    thread_id: str,
    *,
    namespace: str | None = None,
    limit: int | None = None,
) -> AsyncIterator[Point]:
    """The checkpoints of a thread, newest first.

    Args:
        saver: Where to read.
        thread_id: The thread.
        namespace: This namespace alone.
        limit: At most so many.
    """
    where: dict[str, Any] = {"thread_id": thread_id}
    if namespace is not None:
        where["checkpoint_ns"] = namespace
    async with aclosing(saver.alist({"configurable": where}, limit=limit)) as found:
        async for one in found:
            yield Point.of(one)


async def point(
    saver: AsyncSQLAlchemySaver, thread_id: str, checkpoint_id: str | None, namespace: str = ""
) -> Point:
    """One checkpoint, the namespace's latest where no id is given.

    Raises:
        InvalidInputError: There is none.
    """
    where = {"thread_id": thread_id, "checkpoint_ns": namespace}
    if checkpoint_id is not None:
        where["checkpoint_id"] = checkpoint_id
    found = await saver.aget_tuple({"configurable": where})
    if found is None:
        raise missing(thread_id, checkpoint_id, namespace)
    return Point.of(found)


def missing(
    thread_id: str, checkpoint_id: str | None = None, namespace: str = ""
) -> InvalidInputError:
    """The error for what is not stored."""
    what = f"thread {thread_id!r}"
    if namespace:
        what = f"namespace {namespace!r} of {what}"
    if checkpoint_id is not None:
        what = f"checkpoint {checkpoint_id!r} in {what}"
    return InvalidInputError(
        f"found no {what}, expected one that is stored; `checkpointer threads` and `checkpointer "
        f"history THREAD` list what is"
    )


async def complete_values(saver: AsyncSQLAlchemySaver, one: Point) -> dict[str, Any]:
    """The values of all channels: those of delta channels are put together from their writes."""
    values = {name: loaded(value) for name, value in one.values.items()}
    counters = one.metadata.get(COUNTERS)
    delta = [name for name in counters if name not in values] if counters else []
    if not delta:
        return values
    history = await saver.aget_delta_channel_history(config=one.config, channels=delta)
    for name in delta:
        told = history[name]
        writes = [loaded(value) for _, _, value in told.get("writes", [])]
        if "seed" in told or writes:
            values[name] = _replayed(loaded(told.get("seed")), writes)
    return values


def _replayed(seed: Any, writes: Sequence[Any]) -> Any:
    """What the writes to a delta channel come to, if it is a list; messages replace by their id.

    Its reducer stands in the graph, which is not at hand.
    """
    value = seed
    for write in writes:
        if isinstance(write, Typed) and write.is_a("Overwrite"):
            value = _payload(write, "value")
        elif value is None:
            value = write
        elif isinstance(value, list):
            value = _merged(value, write if isinstance(write, list) else [write])
        else:
            return Typed("delta channel", {"seed": seed, "writes": list(writes)})
    return value


def _merged(left: list[Any], right: list[Any]) -> list[Any]:
    merged = list(left)
    places = {key: n for n, one in enumerate(merged) if (key := message_id(one)) is not None}
    for one in right:
        key = message_id(one)
        if key is not None and key in places:
            merged[places[key]] = one
        else:
            merged.append(one)
    gone = {message_id(one) for one in right if isinstance(one, Typed) and one.role == "remove"}
    return [one for one in merged if not gone or message_id(one) not in gone]


def message_id(one: Any) -> str | None:
    """The id of a message, `None` for all else."""
    if isinstance(one, Typed) and one.role is not None:
        found = one.value.get("id")
        return found if isinstance(found, str) else None
    return None


def _payload(one: Typed, name: str) -> Any:
    """What one of LangGraph's types holds under a name; it is packed by keyword or in order."""
    value = one.value
    return value.get(name) if isinstance(value, dict) else value[0] if value else None


def _asked(one: Any) -> Any:
    return _payload(one, "value") if isinstance(one, Typed) and one.is_a("Interrupt") else one


def _node(one: Any) -> str:
    if isinstance(one, Typed) and one.is_a("Send"):
        return str(_payload(one, "node"))
    return "?"


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
