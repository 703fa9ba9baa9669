"""Copying threads inside the database: no value travels.

Each function is one unit of work for `Database.write`. It holds both threads' rows, in the order of
their ids (docs/format.md, "Copy").
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.execution import Connection
from checkpointer.planning import ROOT, Key, Origin, up_to
from checkpointer.predicates import KEY, keys, same
from checkpointer.queries import PROJECTION
from checkpointer.quoting import quoted
from checkpointer.slices import Layout, slices_of
from checkpointer.store import Store, batched, new_state, thread_row
from checkpointer.tables import checkpoints, segments, writes
from checkpointer.threads import layouts_of_writes, lock, manifest_of, metadata_of, sweep
from checkpointer.upserts import copying, lengthening, replacing

PAGE: Final = 256
"""Checkpoints that are copied, and whose manifests are read, at once."""


def copy_thread(connection: Connection, store: Store, source: str, target: str) -> None:
    """Copy everything of one thread into another.

    What stands in the target already stays, but for checkpoints and writes with the same keys.
    """
    if source != target and _hold(connection, store, source, target) is not None:
        for statement in store.queries.copy_thread:
            connection.execute(statement, {"source": source, "target": target})


def copy_up_to(  # noqa: PLR0913, PLR0917 - two threads and a place
    connection: Connection,
    store: Store,
    source: str,
    target: str,
    checkpoint_id: str,
    root_of: Callable[[Mapping[str, Any]], str | None],
) -> None:
    """Copy one thread into another as it stood at one of the root graph's checkpoints.

    Args:
        connection: Where to work.
        store: The statements.
        source: The thread to copy from.
        target: The thread to copy into, as in `copy_thread`.
        checkpoint_id: The checkpoint, see `up_to`.
        root_of: The id of the root graph's checkpoint that one started from, by its metadata's
            projection.

    Raises:
        InvalidInputError: The source has no such checkpoint.
        DamagedDataError: It is unknown what belongs to it. Nothing may be committed.
    """
    found = connection.fetch(_checkpoint, _root_key(source, checkpoint_id))
    if found and source == target:
        return
    state = _hold(connection, store, source, target) if found else None
    # Once more, now that nothing can delete it.
    if state is None or not connection.fetch(_checkpoint, _root_key(source, checkpoint_id)):
        if state is not None:
            _release(connection, store, target, state)
        raise InvalidInputError(
            f"found no checkpoint {quoted(checkpoint_id)} in the root namespace of thread "
            f"{quoted(source)}, expected one; alist tells which there are"
        )
    origins = {
        (row.checkpoint_ns, row.checkpoint_id): Origin(
            row.parent_checkpoint_id, root_of(metadata_of(source, row))
        )
        for row in connection.fetch(_origins, {"thread_id": source})
    }
    chosen = up_to(origins, checkpoint_id)
    _copy(connection, store, source, target, chosen)
    # Of a stream that the source has named further bytes of, these came along.
    sweep(connection, store, target)


def _copy(
    connection: Connection,
    store: Store,
    source: str,
    target: str,
    chosen: Mapping[str, Sequence[str]],
) -> None:
    """Copy some checkpoints with their writes, and the segments that hold their values."""
    dialect, both = store.queries.dialect, {"source": source, "target": target}
    named = slices_of(_layouts(connection, store, source, chosen))
    for numbers in batched(sorted({one.stream for one in named}), dialect.max_list):
        connection.execute(_copy_segments(dialect), {**both, "streams": numbers})
    for namespace, ids in chosen.items():
        for some in batched(ids, PAGE):
            given = {**both, "checkpoint_ns": namespace, "checkpoint_ids": some}
            for statement in _copy_checkpoints(dialect):
                connection.execute(statement, given)


def _root_key(thread_id: str, checkpoint_id: str) -> dict[str, str]:
    return {"thread_id": thread_id, "checkpoint_ns": ROOT, "checkpoint_id": checkpoint_id}


def _hold(connection: Connection, store: Store, source: str, target: str) -> int | None:
    """Hold both threads' rows, in the order of every transaction that holds two.

    Returns:
        The target's new state; `None` where there is no source.
    """
    if not connection.fetch(store.queries.states, {"thread_ids": [source]}):
        return None
    state = new_state()
    touched = thread_row(target, state, datetime.now(UTC))
    for thread_id in sorted((source, target)):
        if thread_id == target:
            connection.execute(store.queries.touch_thread, touched)
        elif not lock(connection, store, source):
            # Deleted meanwhile. What comes there next is not held, and would be cut in two.
            _release(connection, store, target, state)
            return None
    # No put may take values of the target's checkpoints from memory: they may be others now.
    connection.execute(store.queries.set_state, {"of_thread": target, "new_state": state})
    return state


def _release(connection: Connection, store: Store, target: str, state: int) -> None:
    """Leave no row of a target behind that had none before: only a new one has our state."""
    made = {"of_thread": target, "new_state": state}
    connection.execute(store.queries.delete_new_thread, made)


def _layouts(
    connection: Connection, store: Store, source: str, chosen: Mapping[str, Sequence[str]]
) -> list[Layout]:
    """The layouts of all values of some checkpoints and of their writes."""
    wanted: set[Key] = {(ns, one) for ns, ids in chosen.items() for one in ids}
    layouts: list[Layout] = []
    for some in batched(sorted(wanted), PAGE):
        asked = keys((source, ns, one) for ns, one in some)
        for row in connection.fetch(store.queries.manifests_of_many, asked):
            if (row.checkpoint_ns, row.checkpoint_id) in wanted.intersection(some):
                layouts += manifest_of(source, row).layouts()
    return layouts + list(layouts_of_writes(connection, store, source, wanted.__contains__))


_checkpoint = sa.select(checkpoints.c.checkpoint_id).where(same(checkpoints, *KEY))

_origins = sa.select(
    checkpoints.c.checkpoint_ns,
    checkpoints.c.checkpoint_id,
    checkpoints.c.parent_checkpoint_id,
    PROJECTION,
).where(same(checkpoints, "thread_id"))


@cache
def _copy_segments(dialect: Dialect) -> Any:
    named = dialect.is_any_of(segments.c.stream_id, "streams")
    return lengthening(copying(dialect, segments, named))


@cache
def _copy_checkpoints(dialect: Dialect) -> Sequence[Any]:
    """Copy checkpoints of one namespace with their writes."""
    return [
        replacing(
            copying(
                dialect,
                table,
                table.c.checkpoint_ns == bindparam("checkpoint_ns"),
                dialect.is_any_of(table.c.checkpoint_id, "checkpoint_ids"),
            )
        )
        for table in (checkpoints, writes)
    ]
