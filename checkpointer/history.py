"""The ancestors of a checkpoint, as far back as some channels' values must be rebuilt from."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from checkpointer.execution import Connection
from checkpointer.manifest import Manifest
from checkpointer.predicates import keys
from checkpointer.records import Namespace, StoredCheckpoint, StoredWrite
from checkpointer.slices import Slice, slices_of
from checkpointer.store import Store, batched

PAGE: Final = 256
"""Ancestors read at once."""


@dataclass(slots=True)
class History:
    """A checkpoint's ancestors with their writes to some channels.

    Attributes:
        ancestors: From the parent backwards. Each holds its writes to the channels that are still
            to be rebuilt there, and the bytes of these and of the seeds.
        seeds: For each channel whose value an ancestor holds, the index of the nearest such one.
    """

    ancestors: list[StoredCheckpoint] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)


def walk(
    connection: Connection,
    store: Store,
    namespace: Namespace,
    checkpoint_id: str | None,
    channels: Collection[str],
) -> History:
    """Walk back from a checkpoint, the namespace's latest where no id is given.

    For each channel the walk ends at the nearest ancestor that holds its value, or at the root. All
    must come from one snapshot: a prune in between would leave out writes without a trace.
    """
    history = History()
    remaining = set(channels)
    for one in _ancestors(connection, store, namespace, checkpoint_id):
        history.ancestors.append(one)
        if isinstance(one.manifest, Manifest):
            found = remaining & one.manifest.channels.keys()
            history.seeds.update(dict.fromkeys(found, len(history.ancestors) - 1))
            remaining -= found
        if not remaining:
            break
    _add_writes(connection, store, history, channels)
    _add_segments(connection, store, history)
    return history


def _ancestors(
    connection: Connection, store: Store, namespace: Namespace, checkpoint_id: str | None
) -> Iterator[StoredCheckpoint]:
    key = namespace.parameters()
    if checkpoint_id is None:
        latest = connection.fetch(store.queries.latest_checkpoint, key)
        checkpoint_id = latest[0].checkpoint_id if latest else None
    seen: set[str] = set()
    target = checkpoint_id
    while checkpoint_id is not None and checkpoint_id not in seen:
        parameters = {**key, "checkpoint_id": checkpoint_id, "limit": PAGE}
        rows = connection.fetch(store.queries.ancestors, parameters)
        checkpoint_id = None
        for row in rows:
            if row.checkpoint_id in seen:  # a checkpoint that is its own ancestor
                return
            seen.add(row.checkpoint_id)
            checkpoint_id = row.parent_checkpoint_id
            if row.checkpoint_id != target:
                yield StoredCheckpoint.from_row(row)


def _add_writes(
    connection: Connection, store: Store, history: History, channels: Collection[str]
) -> None:
    index = {
        (one.thread_id, one.checkpoint_ns, one.checkpoint_id): i
        for i, one in enumerate(history.ancestors)
    }
    for some in batched(index, store.queries.dialect.max_list):
        parameters = {**keys(some), "channels": list(channels)}
        for row in connection.fetch(store.queries.channel_writes_of_many, parameters):
            i = index[row.thread_id, row.checkpoint_ns, row.checkpoint_id]
            if i <= history.seeds.get(row.channel, i):
                history.ancestors[i].writes.append(StoredWrite.from_row(row))


def _add_segments(connection: Connection, store: Store, history: History) -> None:
    """Give the ancestors the bytes of the seeds and of their writes, and no others."""
    wanted = defaultdict[str, set[Slice]](set)
    for index, one in enumerate(history.ancestors):
        seeds = [channel for channel, i in history.seeds.items() if i == index]
        layouts = [layout for write in one.writes if (layout := write.layout()) is not None]
        if isinstance(one.manifest, Manifest):
            values = (one.manifest.channels[channel].layout() for channel in seeds)
            layouts += [layout for layout in values if layout is not None]
        one.wholes |= store.contents.get(one.thread_id, layouts)
        wanted[one.thread_id].update(slices_of(one_ for one_ in layouts if one_ not in one.wholes))
    segments = store.segments(connection, wanted)
    for one in history.ancestors:
        one.segments = segments[one.thread_id]
