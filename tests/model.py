"""The model that our saver is held against: `InMemorySaver` with the operations that it lacks.

And the random operations that both are given.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointTuple,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED, _DeltaSnapshot

from checkpointer import AsyncSQLAlchemySaver
from checkpointer.manifest import decode_manifest
from checkpointer.records import StoredWrite
from checkpointer.slices import Coverage, slices_of
from checkpointer.tables import checkpoints, segments, writes

THREADS = ("a", "b", "ü")
COUNTERS = "counters_since_delta_snapshot"
ABSENT = object()
"""In a checkpoint's changes: the channel gets a new version, and no value."""

# Random, so that no two parts of it are alike.
NOISE = random.Random(18).randbytes(300_000)  # noqa: S311 - a test's data, not a secret


def config(thread: str, ns: str | None = None, checkpoint_id: str | None = None) -> RunnableConfig:
    """A config that says no more than it is given."""
    parts = {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: part for name, part in parts.items() if part is not None}}


def id_of(found: CheckpointTuple) -> str:
    """The checkpoint's id."""
    return found.checkpoint["id"]


def parent_of(found: CheckpointTuple) -> str:
    """The id of the checkpoint's parent, or an empty string."""
    configurable = (found.parent_config or {}).get("configurable", {})
    return str(configurable.get("checkpoint_id", ""))


def where(found: CheckpointTuple) -> tuple[str, str, str]:
    """What our lists are ordered by, descending."""
    configurable = found.config.get("configurable", {})
    return (id_of(found), configurable["thread_id"], configurable["checkpoint_ns"])


def new_checkpoint(
    checkpoint_id: str, values: dict[str, Any], versions: ChannelVersions, v: int = 4
) -> Checkpoint:
    """A checkpoint that holds these channels."""
    return Checkpoint(
        v=v,
        id=checkpoint_id,
        ts="2025-01-01T00:00:00+00:00",
        channel_values=values,
        channel_versions=versions,
        versions_seen={"node": versions},
        updated_channels=sorted(versions),
    )


async def listed(
    saver: BaseCheckpointSaver[Any], at: RunnableConfig | None, **conditions: Any
) -> list[CheckpointTuple]:
    """All that a list yields."""
    return [found async for found in saver.alist(at, **conditions)]


async def rows_of(saver: AsyncSQLAlchemySaver, statement: sa.Select[Any]) -> list[Any]:
    """Rows of the saver's tables."""
    async with saver.engine.connect() as connection:
        return list((await connection.execute(statement)).all())


async def segments_of(saver: AsyncSQLAlchemySaver, thread: str) -> set[tuple[int, int, int]]:
    """The segments of a thread: stream, start and stop of each."""
    found = await rows_of(saver, sa.select(segments).filter_by(thread_id=thread))
    return {(row.stream_id, row.start, row.stop) for row in found}


async def garbage(saver: AsyncSQLAlchemySaver, thread: str) -> set[tuple[int, int, int]]:
    """Those of which some bytes are not named."""
    named = Coverage()
    for row in await rows_of(saver, sa.select(checkpoints).filter_by(thread_id=thread)):
        named.add(slices_of(decode_manifest(row.manifest).layouts()))
    for row in await rows_of(saver, sa.select(writes).filter_by(thread_id=thread)):
        layout = StoredWrite.from_row(row).layout()
        named.add(layout.slices() if layout is not None else ())
    stored = await segments_of(saver, thread)
    return {one for one in stored if named.within(*one) != [one[1:]]}


class Model(InMemorySaver):
    """`InMemorySaver`, with copying, pruning and deleting by runs, on its dicts."""

    def state(self) -> object:
        """All that is stored, for `restore`."""
        return deepcopy((self.storage, self.writes, self.blobs))

    def restore(self, state: Any) -> None:
        """Go back to what was stored."""
        self.storage, self.writes, self.blobs = state

    def copy_all(self, source: str, target: str) -> None:
        """Copy a thread."""
        if source == target:
            return
        for ns, found in list(self.storage.get(source, {}).items()):
            self.storage[target][ns].update(found)
        for (thread, *key), blob in list(self.blobs.items()):
            if thread == source:
                self.blobs[(target, *key)] = blob  # type: ignore[index]
        for (thread, ns, checkpoint_id), written in list(self.writes.items()):
            if thread == source:
                self.writes[target, ns, checkpoint_id].update(written)

    def drop(self, thread: str, ns: str, ids: Iterable[str]) -> None:
        """Delete checkpoints with their writes; their children lose their parent."""
        stored, gone = self.storage[thread][ns], set(ids)
        for checkpoint_id in gone:
            stored.pop(checkpoint_id)
            self.writes.pop((thread, ns, checkpoint_id), None)
        for checkpoint_id, (checkpoint, metadata, parent) in stored.items():
            stored[checkpoint_id] = (checkpoint, metadata, None if parent in gone else parent)

    def drop_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs."""
        for thread, namespaces in self.storage.items():
            for ns in namespaces:
                found = list(self.list(config(thread, ns)))
                gone = [id_of(one) for one in found if one.metadata.get("run_id") in run_ids]
                self.drop(thread, ns, gone)

    def keep(
        self,
        thread: str,
        keep_last: int | None = None,
        protected: Collection[str] | None = None,
    ) -> None:
        """Prune one thread: to the latest, to the latest few, or by a policy that protects ids."""
        found = {
            ns: {id_of(one): one for one in self.list(config(thread, ns))}
            for ns in list(self.storage.get(thread, {}))
        }
        found = {ns: in_ns for ns, in_ns in found.items() if in_ns}
        wanted = {ns: set(sorted(in_ns)[-(keep_last or 1) :]) for ns, in_ns in found.items()}
        if protected is not None:
            for ns, in_ns in found.items():
                rows = in_ns.values()
                done = {parent_of(one) for one in rows if one.metadata.get("source") == "loop"}
                wanted[ns] |= {
                    name
                    for name, one in in_ns.items()
                    if name in protected or (name not in done and _waits(one))
                }
        if keep_last is not None:
            for root, ns in product(wanted.get("", ()), found):
                if ns and ":" not in ns:
                    wanted[ns] |= set(sorted(name for name in found[ns] if name < root)[-1:])
        self._drop_unneeded(thread, found, wanted, protected or ())

    def _drop_unneeded(
        self,
        thread: str,
        found: dict[str, dict[str, CheckpointTuple]],
        wanted: dict[str, set[str]],
        protected: Collection[str],
    ) -> None:
        def needed(ns: str) -> set[str]:
            return {name for one in wanted[ns] for name in self._needed(found[ns], one)}

        kept = needed("") if "" in found else set()
        for ns, in_ns in found.items():
            root = in_ns[max(in_ns)].metadata.get("parents", {}).get("")
            finished = ":" in ns and root in found.get("", ()) and root not in kept
            if finished:
                wanted[ns] = in_ns.keys() & set(protected)
            self.drop(thread, ns, in_ns.keys() - needed(ns))
            if finished and not wanted[ns]:
                for key in [key for key in self.writes if key[:2] == (thread, ns)]:
                    del self.writes[key]

    @staticmethod
    def _needed(found: dict[str, CheckpointTuple], name: str) -> set[str]:
        """A checkpoint, and the ancestors that its delta channels are rebuilt from."""
        head = found[name]
        counters = head.metadata.get("counters_since_delta_snapshot", {})
        needed, missing = {id_of(head)}, counters.keys() - head.checkpoint["channel_values"].keys()
        parent = parent_of(head)
        while missing and parent in found:
            needed.add(parent)
            missing -= found[parent].checkpoint["channel_values"].keys()
            parent = parent_of(found[parent])
        return needed


def _waits(found: CheckpointTuple) -> bool:
    """Whether an interrupt was written to a checkpoint."""
    return any(channel == INTERRUPT for _, channel, _ in found.pending_writes or ())


@dataclass(frozen=True)
class PutCheckpoint:
    """A checkpoint to put, its parent's changed; `extra` comes into the metadata by its config."""

    thread: str
    ns: str
    id: str
    parent: str | None
    changes: dict[str, Any]
    metadata: dict[str, Any]
    extra: dict[str, Any]

    @property
    def key(self) -> object:
        """What two puts that are made at once must differ by."""
        return (self.thread, self.ns, self.id)


@dataclass(frozen=True)
class PutWrites:
    """Writes of one task to put."""

    thread: str
    ns: str
    id: str
    task: str
    path: str
    writes: list[tuple[str, Any]]

    @property
    def key(self) -> object:
        """What two puts that are made at once must differ by."""
        return (self.thread, self.ns, self.id, self.task)


@dataclass(frozen=True)
class Removal:
    """A thread to delete, to prune, to copy over another, or of which a run is deleted."""

    how: str
    thread: str
    other: str
    run_id: str

    async def run(self, saver: BaseCheckpointSaver[str]) -> None:
        """Do it, in the model or in our saver."""
        if isinstance(saver, Model):
            done: dict[str, Callable[[], object]] = {
                "delete": lambda: saver.delete_thread(self.thread),
                "prune": lambda: saver.keep(self.thread),
                "copy": lambda: saver.copy_all(self.thread, self.other),
                "runs": lambda: saver.drop_runs([self.run_id]),
            }
            done[self.how]()
        elif self.how == "delete":
            await saver.adelete_thread(self.thread)
        elif self.how == "prune":
            await saver.aprune([self.thread])
        elif self.how == "copy":
            await saver.acopy_thread(self.thread, self.other)
        else:
            await saver.adelete_for_runs([self.run_id])


def noise(size: int, edit_at: int) -> bytes:
    """The same bytes each time but for one, so that most of them are shared."""
    data = bytearray(NOISE[:size])
    data[edit_at % size] ^= 1
    return bytes(data)


def conversation(length: int) -> list[str]:
    """A list that grows at its end."""
    return [f"message {n}: {NOISE[n * 500 : n * 500 + 500].hex()}" for n in range(length)]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
scalars = st.one_of(st.none(), st.integers(-3, 3), text)
values = st.one_of(
    scalars,
    st.binary(max_size=8),
    st.builds(conversation, st.integers(0, 60)),
    st.builds(noise, st.sampled_from([100, 5_000, 5_000, 300_000]), st.integers(0, 1 << 20)),
)
ids = st.integers(0, 15).map("{:03}".format)
threads = st.sampled_from(THREADS)
namespaces = st.sampled_from(["", "", "inner", "call:1", "call:1|deep:2"])
runs = st.sampled_from(["run 1", "run 2", "run 3"])
changes = st.dictionaries(st.sampled_from(["messages", "files", "flag"]), values) | st.sampled_from(
    [{"delta": ABSENT}, {"delta": ABSENT}, {"delta": _DeltaSnapshot([1, 2])}, {"flag": ABSENT}]
)
metadata = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["loop", "input"]),
        "step": st.integers(0, 3),
        "tag": scalars,
        "run_id": runs,
        COUNTERS: st.sampled_from([{"delta": [1, 2]}, {"delta": [1, 2], "files": [0, 1]}, {}]),
    },
    optional={
        "parents": ids.map(lambda root: {"": root}),
        "nested": st.dictionaries(text, st.lists(scalars, max_size=3), max_size=3),
    },
)
filters = st.dictionaries(
    st.sampled_from(["source", "step", "tag", "run_id"]),
    st.sampled_from(["loop", "run 1", 0, 1, -1, ""]),
    max_size=2,
)
_any_puts = st.builds(
    PutCheckpoint,
    thread=threads,
    ns=namespaces,
    id=ids,
    parent=st.none() | ids,
    changes=changes,
    metadata=metadata,
    extra=st.sampled_from([{}, {"user": "someone"}, {"user": "x", "__private": "y"}]),
)
# LangGraph's walks along parents never end in a circle, so there must be none.
puts = _any_puts.map(
    lambda put: put if put.parent and put.parent < put.id else replace(put, parent=None)
)
put_writes = st.builds(
    PutWrites,
    thread=threads,
    ns=namespaces,
    id=ids,
    task=st.sampled_from(["task 1", "task 2", "00000000-0000-0000-0000-000000000000"]),
    path=st.sampled_from(["", "~__pregel_pull, a", "~__pregel_pull, b"]),
    writes=st.lists(
        st.tuples(
            st.sampled_from(["messages", "delta", ERROR, INTERRUPT, RESUME, SCHEDULED]), values
        ),
        max_size=4,
    ),
)
removals = st.builds(
    Removal,
    how=st.sampled_from(["delete", "prune", "copy", "runs"]),
    thread=threads,
    other=threads,
    run_id=runs,
)
