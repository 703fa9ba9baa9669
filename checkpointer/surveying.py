"""What a thread holds, as far as pruning it needs to know. One pass over its rows each."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from checkpointer.arrays import AnySelect
from checkpointer.dialect import Dialect
from checkpointer.execution import Connection
from checkpointer.inventory import length, stored_size
from checkpointer.manifest import Manifest, Value
from checkpointer.planning import Key, Node, Rule, made_at
from checkpointer.predicates import same
from checkpointer.queries import PROJECTION
from checkpointer.slices import Layout
from checkpointer.store import Store
from checkpointer.tables import checkpoints, writes
from checkpointer.threads import manifest_of, metadata_of


@dataclass(frozen=True, slots=True)
class Meaning:
    """What planning has to be told of LangGraph.

    Attributes:
        node_of: What planning needs of a checkpoint, by the metadata's projection, the manifest
            and the parent's id.
        time_of: When a checkpoint was made, by its own dict, where its id does not tell.
        sends: The channel of pending sends.
        interrupts: The channel of interrupts.
    """

    node_of: Callable[[Mapping[str, Any], Manifest, str | None], Node]
    time_of: Callable[[Value], datetime | None]
    sends: str
    interrupts: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All checkpoints of a thread: what planning needs of each, its long values, its bytes."""

    nodes: dict[Key, Node]
    layouts: dict[Key, list[Layout]]
    bytes: dict[Key, int]


def survey(
    connection: Connection, store: Store, thread_id: str, rule: Rule, meaning: Meaning
) -> Survey:
    """Read all checkpoints of a thread.

    Raises:
        DamagedDataError: A manifest or its metadata cannot be read.
    """
    given = {"thread_id": thread_id}
    channels = [meaning.sends, meaning.interrupts]
    holding = defaultdict[str, set[Key]](set)
    statement = _holding(store.queries.dialect)
    for row in connection.fetch(statement, {**given, "channels": channels}):
        holding[row.channel].add((row.checkpoint_ns, row.checkpoint_id))
    found = Survey({}, {}, {})
    for row in connection.fetch(_checkpoints(store.queries.dialect), given):
        key = (row.checkpoint_ns, row.checkpoint_id)
        manifest = manifest_of(thread_id, row)
        node = meaning.node_of(metadata_of(thread_id, row), manifest, row.parent_checkpoint_id)
        if (row.checkpoint_ns, node.sends_parent) not in holding[meaning.sends]:
            node = replace(node, sends_parent=None)
        made = None
        if rule.made_after is not None:
            made = made_at(row.checkpoint_id) or meaning.time_of(manifest.checkpoint)
        interrupted = key in holding[meaning.interrupts]
        found.nodes[key] = replace(node, made=made, interrupted=interrupted)
        found.layouts[key] = manifest.layouts()
        found.bytes[key] = row.bytes
    return found


def write_sizes(connection: Connection, thread_id: str) -> dict[Key, tuple[int, int]]:
    """How many pending writes each checkpoint of a thread has, and their bytes."""
    rows = connection.fetch(_write_sizes, {"thread_id": thread_id})
    return {(row.checkpoint_ns, row.checkpoint_id): (row.row_count, int(row.bytes)) for row in rows}


@cache
def _checkpoints(dialect: Dialect) -> AnySelect:
    """All checkpoints of a thread."""
    c = checkpoints.c
    return sa.select(
        c.checkpoint_ns,
        c.checkpoint_id,
        c.parent_checkpoint_id,
        PROJECTION,
        c.manifest,
        stored_size(dialect, checkpoints).label("bytes"),
    ).where(same(checkpoints, "thread_id"))


@cache
def _holding(dialect: Dialect) -> AnySelect:
    """The checkpoints of a thread that have writes to some channels."""
    w = writes.c
    written = dialect.is_any_of(w.channel, "channels")
    columns = (w.checkpoint_ns, w.checkpoint_id, w.channel)
    return sa.select(*columns).where(same(writes, "thread_id"), written).distinct()


_write_sizes = (
    sa.select(
        writes.c.checkpoint_ns,
        writes.c.checkpoint_id,
        sa.func.count().label("row_count"),
        sa.func.sum(length(writes.c.data)).label("bytes"),
    )
    .where(same(writes, "thread_id"))
    .group_by(writes.c.checkpoint_ns, writes.c.checkpoint_id)
)
