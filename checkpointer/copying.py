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

from checkpointer.chunking import Tree
from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.execution import Connection
from checkpointer.planning import ROOT, Key, Origin, up_to
from checkpointer.predicates import KEY, keys, same
from checkpointer.queries import PROJECTION
from checkpointer.quoting import quoted
from checkpointer.store import Store, batched, new_epoch
from checkpointer.tables import checkpoints, chunks, threads, writes
from checkpointer.threads import live_digests, lock, manifest_of, metadata_of, trees_of_writes
from checkpointer.upserts import copying, replacing

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
    epoch = _hold(connection, store, source, target) if found else None
    # Once more, now that nothing can delete it.
    if epoch is None or not connection.fetch(_checkpoint, _root_key(source, checkpoint_id)):
        if epoch is not None:
            _release(connection, target, epoch)
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
    trees = _trees(connection, store, source, chosen)
    dialect = store.queries.dialect
    both = {"source": source, "target": target}
    for digests in batched(live_digests(connection, store, source, trees), dialect.max_list):
        connection.execute(_copy_chunks(dialect), {**both, "digests": digests})
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
        The target's new epoch; `None` where there is no source.
    """
    if not connection.fetch(store.queries.epochs, {"thread_ids": [source]}):
        return None
    now, epoch = datetime.now(UTC), new_epoch()
    touched = {"thread_id": target, "epoch": epoch, "created_at": now, "updated_at": now}
    for thread_id in sorted((source, target)):
        if thread_id == target:
            connection.execute(store.queries.touch_thread, touched)
        elif not lock(connection, store, source):
            # Deleted meanwhile. What comes there next is not held, and would be cut in two.
            _release(connection, target, epoch)
            return None
    # No put may take values of the target's checkpoints from memory: they may be others now.
    connection.execute(store.queries.set_epoch, {"of_thread": target, "new_epoch": epoch})
    return epoch


def _release(connection: Connection, target: str, epoch: int) -> None:
    """Leave no row of a target behind that had none before: only a new one has our epoch."""
    connection.execute(_delete_new, {"of_thread": target, "new_epoch": epoch})


def _trees(
    connection: Connection, store: Store, source: str, chosen: Mapping[str, Sequence[str]]
) -> list[Tree]:
    """The trees of all values of some checkpoints and of their writes."""
    wanted: set[Key] = {(ns, one) for ns, ids in chosen.items() for one in ids}
    trees: list[Tree] = []
    for some in batched(sorted(wanted), PAGE):
        asked = keys((source, ns, one) for ns, one in some)
        for row in connection.fetch(store.queries.manifests_of_many, asked):
            if (row.checkpoint_ns, row.checkpoint_id) in wanted.intersection(some):
                trees += manifest_of(source, row).trees()
    return trees + list(trees_of_writes(connection, store, source, wanted.__contains__))


_checkpoint = sa.select(checkpoints.c.checkpoint_id).where(same(checkpoints, *KEY))

_origins = sa.select(
    checkpoints.c.checkpoint_ns,
    checkpoints.c.checkpoint_id,
    checkpoints.c.parent_checkpoint_id,
    PROJECTION,
).where(same(checkpoints, "thread_id"))

_delete_new = sa.delete(threads).where(
    threads.c.thread_id == bindparam("of_thread"), threads.c.epoch == bindparam("new_epoch")
)


@cache
def _copy_chunks(dialect: Dialect) -> Any:
    named = dialect.is_any_of(chunks.c.digest, "digests")
    return copying(dialect, chunks, named).on_conflict_do_nothing()


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
