"""A batch of puts on a given connection, over any number of threads.

Threads are touched in the order of their ids, so that two batches cannot deadlock. Holding a
thread's row, chunks are skipped only if they were learned under the row's epoch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from checkpointer.arrays import PUTS, arrays, put_at_once
from checkpointer.errors import DatabaseError
from checkpointer.execution import Connection
from checkpointer.records import Put, PutCheckpoint, ReuseError
from checkpointer.store import Store, batched, new_epoch, same_life
from checkpointer.tables import writes

Epochs = Mapping[str, int]

TOUCH_INTERVAL: Final = timedelta(seconds=1)
"""How exact `updated_at` is on SQLite, where it costs a page of the log that a commit waits for."""

Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """The rows of a batch, each key once: within one statement a row can be replaced only once."""

    chunks: dict[Any, Row] = field(default_factory=dict)
    checkpoints: dict[Any, Row] = field(default_factory=dict)
    writes: dict[Any, Row] = field(default_factory=dict)
    special: dict[Any, Row] = field(default_factory=dict)


def put(connection: Connection, store: Store, batch: Sequence[Put]) -> Epochs:
    """Store a batch, with `Database.put`.

    Returns:
        The epoch of each thread, for `Store.learn` once this has committed.

    Raises:
        ReuseError: A put reuses values of its parent that may be gone.
    """
    if store.queries.dialect.has_arrays:
        return _put_at_once(connection, store, batch)
    epochs = _touched(connection, store, batch)
    rows = _rows(connection, store, batch, epochs)
    for statement, parameters in (
        (store.queries.put_chunk, rows.chunks),
        (store.queries.put_checkpoint, rows.checkpoints),
        (store.queries.put_write, rows.writes),
        (store.queries.put_special_write, rows.special),
    ):
        if parameters:
            connection.execute(statement, *parameters.values())
    return epochs


def _put_at_once(connection: Connection, store: Store, batch: Sequence[Put]) -> Epochs:
    """Store a batch in one statement, on the chance that no epoch was raised meanwhile.

    If one was, nothing was stored, and the batch is put once more under the epochs found.
    """
    expected: Mapping[str, int | None] = _expected_epochs(store, batch)
    while True:
        found, held = _execute_at_once(connection, store, batch, expected)
        if held:
            return found
        if found == expected:
            raise DatabaseError(
                f"found that the database refused {len(batch)} puts under the epochs that it holds "
                f"itself, expected that it stores them; report this, with the server's version"
            )
        expected = found


def _expected_epochs(store: Store, batch: Iterable[Put]) -> dict[str, int | None]:
    """An epoch under which each thread's chunks were learned; its namespaces may know others."""
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
    connection: Connection,
    store: Store,
    batch: Sequence[Put],
    expected: Mapping[str, int | None],
) -> tuple[dict[str, int], bool]:
    """Send a batch; the epoch of each thread, and whether the batch was stored."""
    rows = _rows(connection, store, batch, expected)
    sets = {name: list(getattr(rows, name).values()) for name in PUTS}
    sets["checkpoints"] = [
        {**row, "metadata": json.dumps(row["metadata"])} for row in sets["checkpoints"]
    ]
    names = sorted(expected)
    given: dict[str, Any] = {
        "now": datetime.now(UTC),
        "wanted_thread_id": names,
        "wanted_epoch": [expected[name] for name in names],
        "threads_thread_id": names,
        "threads_epoch": [new_epoch() for _ in names],
    }
    for name, some in sets.items():
        if some:
            given |= arrays(name, some)
    filled = frozenset(name for name, some in sets.items() if some)
    result = connection.fetch(put_at_once(store.queries.dialect, filled), given)
    return {row.thread_id: row.epoch for row in result}, all(row.held for row in result)


def _touched(connection: Connection, store: Store, batch: Iterable[Put]) -> Epochs:
    """The threads' epochs; rows that are missing are made, and others touched now and then.

    The transaction is the database's only writer from its start, so that no row has to be held.
    """
    names = {one.namespace.thread_id for one in batch}
    now = datetime.now(UTC)
    found: dict[str, Any] = {}
    for some in batched(names, store.queries.dialect.max_list):
        given = {"thread_ids": some, "touched_after": now - TOUCH_INTERVAL, "now": now}
        rows = connection.fetch(store.queries.epochs_and_touch, given)
        found |= {row.thread_id: row for row in rows}
    stale = [name for name in names if name not in found or not found[name].touched]
    epochs = {name: found[name].epoch if name in found else new_epoch() for name in names}
    if stale:
        times = {"created_at": now, "updated_at": now}
        touched = ({"thread_id": name, "epoch": epochs[name], **times} for name in stale)
        connection.execute(store.queries.touch_thread, *touched)
    return epochs


def _rows(
    connection: Connection,
    store: Store,
    batch: Iterable[Put],
    epochs: Mapping[str, int | None],
) -> Rows:
    """All rows of a batch, without the chunks that are known to be stored under `epochs`."""
    rows = Rows()
    for one in batch:
        thread_id, namespace = one.namespace.thread_id, one.namespace
        known = store.last.stored(namespace, epochs[thread_id])
        new = {digest: data for digest, data in one.chunks.items() if digest not in known}
        if isinstance(one, PutCheckpoint):
            new |= _reused(connection, store, one, epochs[thread_id], known)
            rows.checkpoints[namespace, one.row["checkpoint_id"]] = one.row
        else:
            for row in one.rows:
                rows.writes.setdefault(_write_key(row), row)
            rows.special |= {_write_key(row): row for row in one.special_rows}
        for digest, data in new.items():
            key = {"thread_id": thread_id, "digest": digest, "data": data}
            rows.chunks[thread_id, digest] = key
    return rows


def _reused(
    connection: Connection,
    store: Store,
    one: PutCheckpoint,
    epoch: int | None,
    known: frozenset[bytes],
) -> dict[bytes, bytes]:
    """The chunks that were left out and are not known to be stored, or no longer.

    Those that the process has not kept may be stored all the same: what was learned of them is
    lost with a connection. Under the same epoch, what is there stays there.

    Raises:
        ReuseError: They are neither kept nor stored; or the thread was deleted, or copied over.
    """
    if one.epoch is None:
        return {}
    if epoch is None or not same_life(one.epoch, epoch):
        raise ReuseError
    again = one.reused - known
    cached = store.cache.get_many(again)
    lost = again - cached.keys()
    if lost - store.stored(connection, one.namespace.thread_id, lost):
        raise ReuseError
    return cached


def _write_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in writes.primary_key)
