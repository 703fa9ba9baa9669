"""A batch of puts on a given connection, over any number of threads.

Threads are touched in the order of their ids, so that two batches cannot deadlock. Holding a
thread's row, chunks are skipped only if they were learned under the row's epoch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from checkpointer.queries import arrays
from checkpointer.records import Put, PutCheckpoint, ReuseError
from checkpointer.store import Store, batched, new_epoch, same_life
from checkpointer.tables import checkpoints, chunks, threads, writes

Epochs = Mapping[str, int]
Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """The rows of a batch, each key once: within one statement a row can be replaced only once."""

    chunks: dict[Any, Row] = field(default_factory=dict)
    checkpoints: dict[Any, Row] = field(default_factory=dict)
    writes: dict[Any, Row] = field(default_factory=dict)
    special_writes: dict[Any, Row] = field(default_factory=dict)


def put(connection: sa.Connection, store: Store, batch: Sequence[Put]) -> Epochs:
    """Store a batch, with `Database.put`.

    Returns:
        The epoch of each thread, for `Store.learn` once this has committed.

    Raises:
        ReuseError: A put reuses values of its parent that may be gone.
    """
    if store.queries.dialect.has_arrays:
        return _put_at_once(connection, store, batch)
    touched = _touch(batch)
    if len(touched) == 1:
        epoch = connection.scalars(store.queries.touch_one_thread, touched[0]).one()
        epochs = {touched[0]["thread_id"]: epoch}
    else:
        connection.execute(store.queries.touch_thread, touched)
        epochs = _epochs(connection, store, [row["thread_id"] for row in touched])
    rows = _rows(store, batch, epochs)
    for statement, parameters in (
        (store.queries.put_chunk, rows.chunks),
        (store.queries.put_checkpoint, rows.checkpoints),
        (store.queries.put_write, rows.writes),
        (store.queries.put_special_write, rows.special_writes),
    ):
        if parameters:
            connection.execute(statement, list(parameters.values()))
    return epochs


def _put_at_once(connection: sa.Connection, store: Store, batch: Sequence[Put]) -> Epochs:
    """Store a batch in one statement, on the chance that no epoch was raised meanwhile.

    Threads whose epoch was raised store nothing, and are put once more under the epoch found.
    """
    epochs: dict[str, int] = {}
    expected = _expected_epochs(store, batch)
    while batch:
        found = _execute_at_once(connection, store, batch, expected)
        epochs |= found
        expected = {
            thread_id: epoch
            for thread_id, epoch in found.items()
            if expected[thread_id] not in {None, epoch}
        }
        batch = [one for one in batch if one.namespace.thread_id in expected]
    return epochs


def _expected_epochs(store: Store, batch: Iterable[Put]) -> dict[str, int | None]:
    """The epoch under which each thread's chunks were learned, the newest of its namespaces'."""
    expected: dict[str, int | None] = {}
    for one in batch:
        thread_id = one.namespace.thread_id
        known = store.last.get(one.namespace) if one.chunks else None
        epochs = [
            expected.get(thread_id),
            known[0] if known else None,
            one.epoch if isinstance(one, PutCheckpoint) else None,
        ]
        expected[thread_id] = max((e for e in epochs if e is not None), default=None)
    return expected


def _execute_at_once(
    connection: sa.Connection,
    store: Store,
    batch: Sequence[Put],
    expected: Mapping[str, int | None],
) -> dict[str, int]:
    touched = [{**row, "expected": expected[row["thread_id"]]} for row in _touch(batch)]
    rows = _rows(store, batch, expected)
    stored = [{**r, "metadata": json.dumps(r["metadata"])} for r in rows.checkpoints.values()]
    result = connection.execute(
        store.queries.put_at_once,
        {
            **arrays("threads", [*threads.c.keys(), "expected"], touched),
            **arrays("chunks", chunks.c.keys(), rows.chunks.values()),
            **arrays("checkpoints", checkpoints.c.keys(), stored),
            **arrays("writes", writes.c.keys(), rows.writes.values()),
            **arrays("special", writes.c.keys(), rows.special_writes.values()),
        },
    )
    return {row.thread_id: row.epoch for row in result}


def _touch(batch: Iterable[Put]) -> list[Row]:
    """The rows of the batch's threads, in the order of their ids."""
    now = datetime.now(UTC)
    return [
        {"thread_id": thread_id, "epoch": new_epoch(), "created_at": now, "updated_at": now}
        for thread_id in sorted({one.namespace.thread_id for one in batch})
    ]


def _epochs(connection: sa.Connection, store: Store, thread_ids: Sequence[str]) -> dict[str, int]:
    epochs: dict[str, int] = {}
    for some in batched(thread_ids, store.queries.dialect.max_list):
        result = connection.execute(store.queries.epochs, {"thread_ids": some})
        epochs.update((thread_id, epoch) for thread_id, epoch in result)
    return epochs


def _rows(store: Store, batch: Iterable[Put], epochs: Mapping[str, int | None]) -> Rows:
    """All rows of a batch, without the chunks that are known to be stored under `epochs`."""
    rows = Rows()
    for one in batch:
        thread_id, namespace = one.namespace.thread_id, one.namespace
        known = store.last.stored(namespace, epochs[thread_id])
        new = {digest: data for digest, data in one.chunks.items() if digest not in known}
        if isinstance(one, PutCheckpoint):
            new |= _reused(store, one, epochs[thread_id], known)
            rows.checkpoints[namespace, one.row["checkpoint_id"]] = one.row
        else:
            for row in one.rows:
                rows.writes.setdefault(_write_key(row), row)
            rows.special_writes |= {_write_key(row): row for row in one.special_rows}
        for digest, data in new.items():
            key = {"thread_id": thread_id, "digest": digest, "data": data}
            rows.chunks[thread_id, digest] = key
    return rows


def _reused(
    store: Store, one: PutCheckpoint, epoch: int | None, known: frozenset[bytes]
) -> dict[bytes, bytes]:
    """The chunks of the parent's values that may have been deleted since they were learned.

    Raises:
        ReuseError: The process has not kept them; or the thread was deleted, or copied over.
    """
    if one.epoch is None or epoch is None or one.epoch == epoch:
        return {}
    again = one.reused - known
    cached = store.cache.get_many(again)
    if not same_life(one.epoch, epoch) or len(cached) < len(again):
        raise ReuseError
    return cached


def _write_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in writes.primary_key)
