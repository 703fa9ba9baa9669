"""Checkpoints, writes and segments on a given connection: rows out, and what is remembered.

Functions here are units of work for `Database.read` and `Database.write`. They handle bytes
and strings; only the saver knows what the bytes mean.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeVar

from checkpointer.arrays import AnySelect
from checkpointer.basis import Basis, CheckpointKey, New
from checkpointer.execution import Connection
from checkpointer.gathering import gather
from checkpointer.manifest import Manifest, decode_manifest
from checkpointer.memory import Contents, Known, KnownCheckpoint, Memory
from checkpointer.predicates import keys
from checkpointer.queries import Queries
from checkpointer.records import (
    Namespace,
    Put,
    PutCheckpoint,
    StoredCheckpoint,
    StoredWrite,
)
from checkpointer.sealing import FormatError
from checkpointer.slices import Layout, Piece, Segment, Segments, Slice, pieces_of, slices_of

T = TypeVar("T")

PAGE_BYTES: Final = 32 << 20
"""The most bytes of a page's values before compression. It has at least one checkpoint."""


@dataclass(frozen=True, slots=True)
class Store:
    """The statements and memories that work on a connection needs."""

    queries: Queries
    contents: Contents
    memory: Memory

    def learn(
        self, batch: Iterable[Put], states: Mapping[str, int], relied_on: Mapping[str, Known | None]
    ) -> None:
        """Remember puts whose transaction has committed.

        Args:
            batch: The puts.
            states: The state of each thread's row, as it is now.
            relied_on: What was known of each thread, if the database has confirmed it.
        """
        found: dict[str, Known | None] = {}
        for thread_id, state in states.items():
            known = relied_on.get(thread_id)
            if known is None:
                found[thread_id] = self.memory.found(thread_id, state)
            else:
                found[thread_id] = self.memory.advance(thread_id, known, state)
        for put in batch:
            if (known := found.get(put.namespace.thread_id)) is not None:
                self._learn(put, known)

    def _learn(self, put: Put, known: Known) -> None:
        namespace, thread_id = put.namespace.checkpoint_ns, put.namespace.thread_id
        replaced: list[Layout] = []
        if isinstance(put, PutCheckpoint):
            replaced = self.memory.learn(thread_id, known, namespace, put.checkpoint)
        elif put.values:
            self.memory.learn_writes(
                thread_id, known, namespace, put.checkpoint_id, [one for _, one in put.values]
            )
        self.contents.put(thread_id, put.values, replaced)

    def learn_read(self, stored: StoredCheckpoint, versions: Mapping[str, Any]) -> None:
        """Remember a checkpoint that was read, after all its values were joined."""
        if stored.state is None or not isinstance(stored.manifest, Manifest):
            return
        thread_id = stored.thread_id
        known = self.memory.found(thread_id, stored.state)
        writes = [layout for one in stored.writes if (layout := one.layout()) is not None]
        found = KnownCheckpoint(
            stored.checkpoint_id, dict(versions), stored.manifest.channels, writes
        )
        replaced = self.memory.learn(thread_id, known, stored.checkpoint_ns, found)
        wholes = [(whole, layout) for layout, whole in stored.wholes.items()]
        self.contents.put(thread_id, wholes, replaced)

    def last(self, namespace: Namespace) -> KnownCheckpoint | None:
        """The last checkpoint of a namespace, as far as it is remembered."""
        known = self.memory.get(namespace.thread_id)
        return known.checkpoints.get(namespace.checkpoint_ns) if known is not None else None

    def parent(self, namespace: Namespace, checkpoint_id: str | None) -> Basis | None:
        """What is remembered of a checkpoint that is about to get a child."""
        known = self.memory.get(namespace.thread_id)
        found = known and known.checkpoints.get(namespace.checkpoint_ns)
        if not found or found.checkpoint_id != checkpoint_id:
            return None
        wholes = self.contents.get(namespace.thread_id, found.layouts())
        return Basis(known, found, wholes=wholes)

    def remembered(self, new: New) -> Basis | None:
        """What a put builds on, if all of it is remembered; `None` if it has to be read."""
        if not new.builds_on_others:
            return Basis()
        thread_id, place = new.namespace.thread_id, (new.namespace.checkpoint_ns, new.parent)
        known = self.memory.get(thread_id)
        if new.known is not None and known is not new.known:
            return None
        if known is None:
            return None if new.required else Basis()
        basis = Basis(known)
        for ns, checkpoint_id in new.required:
            found = known.checkpoints.get(ns)
            if found is None or found.checkpoint_id != checkpoint_id:
                return None
            if (ns, checkpoint_id) == place:
                basis.parent = found
            else:
                basis.others.append(found)
        layouts = set(basis.layouts())
        basis.wholes = self.contents.get(thread_id, layouts)
        return basis if not new.is_long or len(basis.wholes) == len(layouts) else None

    def read_basis(self, connection: Connection, new: New) -> Basis:
        """Read what a put builds on: the state of its thread first, or together with it."""
        thread_id, place = new.namespace.thread_id, (new.namespace.checkpoint_ns, new.parent)
        asked = {
            "thread_id": thread_id,
            "namespaces": sorted({ns for ns, _ in new.required}),
            "checkpoint_ids": sorted({one for _, one in new.required}),
        }
        rows = connection.fetch(self.queries.basis, asked)
        if not rows:
            return Basis()
        basis = Basis(self.memory.found(thread_id, rows[0].state), state=rows[0].state)
        writes = self._long_writes(connection, thread_id, new.required)
        for row in rows:
            key = (row.checkpoint_ns, row.checkpoint_id)
            if key not in new.required:
                continue
            try:
                manifest = decode_manifest(row.manifest)
            except FormatError:
                continue  # a read raises the error; here, its bytes are only stored again
            about = manifest.checkpoint
            data = about.content if key == place else None
            versions = new.versions_of(about.type, data) if isinstance(data, bytes) else {}
            found = KnownCheckpoint(row.checkpoint_id, versions, manifest.channels, writes[key])
            if key == place:
                basis.parent = found
            else:
                basis.others.append(found)
        layouts = set(basis.layouts())
        basis.wholes = self.contents.get(thread_id, layouts)
        missing = slices_of(layouts - basis.wholes.keys())
        basis.segments = self.segments(connection, {thread_id: missing})[thread_id]
        return basis

    def holds(self, connection: Connection, put: PutCheckpoint) -> bool:
        """Whether a checkpoint is stored already: an earlier attempt may have done that."""
        namespace, row = put.namespace, put.row
        asked = keys([(namespace.thread_id, namespace.checkpoint_ns, row["checkpoint_id"])])
        found = connection.fetch(self.queries.manifests_of_many, asked)
        return any(one.manifest == row["manifest"] for one in found)

    def _long_writes(
        self, connection: Connection, thread_id: str, required: Sequence[CheckpointKey]
    ) -> Mapping[CheckpointKey, list[Layout]]:
        """The long pending writes of some checkpoints."""
        found = defaultdict[CheckpointKey, list[Layout]](list)
        if required:
            asked = keys((thread_id, ns, one) for ns, one in required)
            for row in connection.fetch(self.queries.sliced_writes_of_many, asked):
                if (layout := StoredWrite.from_row(row).layout()) is not None:
                    found[row.checkpoint_ns, row.checkpoint_id].append(layout)
        return found

    def get(
        self,
        connection: Connection,
        namespace: Namespace,
        checkpoint_id: str | None,
        sends_channel: str,
    ) -> StoredCheckpoint | None:
        """One checkpoint, or the namespace's latest if no id is given; `None` if there is none.

        If bytes are missing, the row is read again before that counts as damage: a prune may have
        committed between the two statements.
        """
        key = namespace.parameters()
        statement = self.queries.latest_and_writes
        if checkpoint_id is not None:
            key["checkpoint_id"] = checkpoint_id
            statement = self.queries.checkpoint_and_writes
        before: list[Layout] | None = None
        while True:
            rows = connection.fetch(statement, key)
            if not rows:
                return None
            one = next(StoredCheckpoint.from_row(row) for row in rows if row.manifest is not None)
            one.writes = [StoredWrite.from_row(row) for row in rows if row.task_id is not None]
            self._add_sends(connection, [one], sends_channel)
            layouts = list(one.layouts())
            if self.add_segments(connection, [one]) or layouts == before:
                return one
            before = layouts

    def page(
        self,
        connection: Connection,
        statement: AnySelect,
        parameters: Mapping[str, Any],
        sends_channel: str,
    ) -> tuple[list[StoredCheckpoint], bool]:
        """One page of a list, as `Queries.page` built it, from one snapshot.

        Returns:
            The checkpoints, and whether more may follow.
        """
        rows = connection.fetch(statement, parameters)
        found = [StoredCheckpoint.from_row(row) for row in rows]
        count = _fitting(found)
        more = count < len(found) or len(found) == parameters["limit"]
        found = found[:count]
        self._add_writes(connection, found)
        self._add_sends(connection, found, sends_channel)
        self.add_segments(connection, found)
        return found, more

    def _add_writes(self, connection: Connection, found: list[StoredCheckpoint]) -> None:
        if not found:
            return
        by_key = {(one.thread_id, one.checkpoint_ns, one.checkpoint_id): one for one in found}
        for row in connection.fetch(self.queries.writes_of_many, keys(by_key)):
            one = by_key.get((row.thread_id, row.checkpoint_ns, row.checkpoint_id))
            if one is not None:
                one.writes.append(StoredWrite.from_row(row))

    def _add_sends(
        self, connection: Connection, found: list[StoredCheckpoint], sends_channel: str
    ) -> None:
        """LangGraph kept pending sends with the parent until version 4 of its format."""
        by_parent = defaultdict[tuple[str, str, str], list[StoredCheckpoint]](list)
        for one in found:
            if one.parent_checkpoint_id is not None and (
                isinstance(one.manifest, Manifest) and one.manifest.version < 4  # noqa: PLR2004
            ):
                key = (one.thread_id, one.checkpoint_ns, one.parent_checkpoint_id)
                by_parent[key].append(one)
        if not by_parent:
            return
        parameters = {**keys(by_parent), "channels": [sends_channel]}
        for row in connection.fetch(self.queries.channel_writes_of_many, parameters):
            parent = (row.thread_id, row.checkpoint_ns, row.checkpoint_id)
            for one in by_parent.get(parent, ()):
                one.sends.append(StoredWrite.from_row(row))

    def add_segments(self, connection: Connection, found: Sequence[StoredCheckpoint]) -> bool:
        """Give checkpoints the bytes of their long values. Returns whether all were found."""
        wanted = defaultdict[str, set[Slice]](set)
        for one in found:
            layouts = set(one.layouts())
            one.wholes |= self.contents.get(one.thread_id, layouts)
            wanted[one.thread_id].update(slices_of(layouts - one.wholes.keys()))
        segments = self.segments(connection, wanted)
        for one in found:
            one.segments = segments[one.thread_id]
        return all(
            segments[thread_id].covers(each) for thread_id, some in wanted.items() for each in some
        )

    def segments(
        self, connection: Connection, wanted: Mapping[str, Iterable[Slice]]
    ) -> Mapping[str, Segments]:
        """The bytes of some slices, by thread: from memory, and the rest from the database.

        Args:
            connection: Where to read.
            wanted: The slices of each thread.
        """
        at_hand = {name: self._pieces(name) if some else [] for name, some in wanted.items()}
        return gather(connection, self.queries, wanted, at_hand)

    def _pieces(self, thread_id: str) -> list[Segment | Piece]:
        """The bytes of a thread's streams that are in remembered values."""
        known = self.memory.get(thread_id)
        found = [*known.checkpoints.values()] if known is not None else []
        layouts = (layout for one in found for layout in one.layouts())
        wholes = self.contents.get(thread_id, layouts, counted=False)
        return [
            piece for layout, whole in wholes.items() for piece in pieces_of(whole.data, layout)
        ]


def new_state() -> int:
    """A state for a thread's row, which nobody has seen before."""
    return secrets.randbits(63)


def thread_row(thread_id: str, state: int, now: datetime) -> dict[str, Any]:
    """A thread's row as it is made."""
    return {"thread_id": thread_id, "state": state, "created_at": now, "updated_at": now}


def segment_row(thread_id: str, segment: Segment) -> dict[str, Any]:
    """A segment's row."""
    return {
        "thread_id": thread_id,
        "stream_id": segment.stream,
        "start": segment.start,
        "stop": segment.stop,
        "data": segment.data,
    }


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _fitting(found: Sequence[StoredCheckpoint]) -> int:
    """How many of the checkpoints a page takes, at least one."""
    size = 0
    for count, one in enumerate(found):
        size += one.size
        if size > PAGE_BYTES and count:
            return count
    return len(found)
