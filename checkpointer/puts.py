"""A batch of puts on a given connection, over any number of threads.

Threads are touched in the order of their ids, so that two batches cannot deadlock. If the row of a
thread does not show the state that its puts rely on, all these puts are refused and not stored.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from checkpointer.arrays import PUTS, arrays, put_at_once
from checkpointer.basis import Basis, New
from checkpointer.errors import DatabaseError
from checkpointer.execution import Connection
from checkpointer.records import Put, PutCheckpoint
from checkpointer.store import Store, batched, new_state, segment_row, thread_row
from checkpointer.tables import writes

TOUCH_INTERVAL: Final = timedelta(seconds=1)
"""How exact `updated_at` is on SQLite for puts that replace no state. To set it costs a page of the
log that a commit waits for."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Puts that go into one transaction.

    Attributes:
        puts: The puts.
        expected: The state that each thread's row must show; `None` if its puts rely on none.
        following: The state that the row shows afterwards; `None` to leave it as it is. If a state
            is expected, this is the same at each attempt: an attempt that finds it in the row knows
            that an earlier one has stored the batch.
        passes_over: Whether threads that others hold are left out.
    """

    puts: Sequence[Put]
    expected: Mapping[str, int | None]
    following: Mapping[str, int | None]
    passes_over: bool

    def with_puts(self, puts: Sequence[Put]) -> "Batch":
        """One attempt with some of its puts.

        If no state is expected, each attempt sets another one. An earlier attempt may have
        committed, and others may have read the thread under its state. If that was deleted since,
        the same state must not come back.
        """
        following = {
            name: new_state() if state is not None and self.expected[name] is None else state
            for name, state in self.following.items()
        }
        return replace(self, puts=puts, following=following)


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a batch. If a thread is in neither attribute, its puts were refused.

    Attributes:
        states: The threads whose puts are stored, and the states of their rows.
        held_by_others: The threads that were passed over.
    """

    states: Mapping[str, int]
    held_by_others: AbstractSet[str]


def batch_of(
    puts: Sequence[Put], expected: Mapping[str, int | None], *, passes_over: bool = False
) -> Batch:
    """A batch that expects these states, as far as they are known."""
    stores = {one.namespace.thread_id for one in puts if one.segments}
    names = {one.namespace.thread_id for one in puts}
    relied = {name: expected.get(name) for name in names}
    following = {name: new_state() if name in stores else relied[name] for name in names}
    return Batch(puts, relied, following, passes_over)


@dataclass(slots=True)
class Rows:
    """The rows of a batch, each key once: within one statement a row can be replaced only once."""

    segments: dict[Any, Row] = field(default_factory=dict)
    checkpoints: dict[Any, Row] = field(default_factory=dict)
    writes: dict[Any, Row] = field(default_factory=dict)
    special: dict[Any, Row] = field(default_factory=dict)


def put(connection: Connection, store: Store, batch: Batch) -> Stored:
    """Store a batch. It is work for `Database.put`."""
    if store.queries.dialect.has_arrays:
        return _put_at_once(connection, store, batch)
    states = _touched(connection, store, batch)
    rows = _rows(one for one in batch.puts if one.namespace.thread_id in states)
    for statement, parameters in (
        (store.queries.put_segment, rows.segments),
        (store.queries.put_checkpoint, rows.checkpoints),
        (store.queries.put_write, rows.writes),
        (store.queries.put_special_write, rows.special),
    ):
        if parameters:
            connection.execute(statement, *parameters.values())
    return Stored(states, frozenset())


def put_held(connection: Connection, store: Store, new: New) -> tuple[Put, Mapping[str, int]]:
    """Encode and store one put in one transaction that holds its thread's row from the start.

    Returns:
        The put, and the state of its thread.
    """
    thread_id, basis = new.namespace.thread_id, Basis()
    if new.builds_on_others:
        touched = thread_row(thread_id, new_state(), datetime.now(UTC))
        connection.execute(store.queries.touch_thread, touched)
        basis = store.read_basis(connection, new)
    one = new.encode(basis)
    stored = put(connection, store, batch_of([one], {thread_id: basis.state}))
    if thread_id not in stored.states:
        raise DatabaseError(
            f"thread {thread_id!r}: found that the database refused a put under the state that its "
            f"row shows, expected that it stores it; report this, with the server's version"
        )
    return one, stored.states


def _put_at_once(connection: Connection, store: Store, batch: Batch) -> Stored:
    """Send a batch in one statement."""
    rows = _rows(batch.puts)
    sets = {name: list(getattr(rows, name).values()) for name in PUTS}
    sets["checkpoints"] = [
        {**row, "metadata": json.dumps(row["metadata"])} for row in sets["checkpoints"]
    ]
    names = sorted(batch.expected)
    fresh = {name: _first_state(batch, name) for name in names}
    given: dict[str, Any] = {
        "now": datetime.now(UTC),
        "threads_thread_id": names,
        "threads_expected": [batch.expected[name] for name in names],
        "threads_state": [fresh[name] for name in names],
        "threads_next": [batch.following[name] for name in names],
    }
    for name, some in sets.items():
        if some:
            given |= arrays(name, some)
    filled = frozenset(name for name, some in sets.items() if some)
    statement = put_at_once(store.queries.dialect, filled, passes_over=batch.passes_over)
    result = connection.fetch(statement, given)
    found = {row.thread_id: row.state for row in result}
    # If a put relies on a thread that was deleted, the thread got a row before the put was refused.
    made = [{"of_thread": name, "new_state": fresh[name]} for name in names if name not in found]
    if made:
        connection.execute(store.queries.delete_new_thread, *made)
    return Stored(
        {name: state for name, state in found.items() if state is not None},
        {name for name, state in found.items() if state is None},
    )


def _first_state(batch: Batch, thread_id: str) -> int:
    """The state of a new row. If a put relies on a state, this must not be the following one."""
    following = batch.following[thread_id]
    return new_state() if following is None or batch.expected[thread_id] is not None else following


def _touched(connection: Connection, store: Store, batch: Batch) -> dict[str, int]:
    """The states of the threads whose puts are not refused. Missing rows are made.

    From its start, the transaction is the database's only writer, so no row has to be locked.
    """
    now = datetime.now(UTC)
    found: dict[str, Any] = {}
    for some in batched(sorted(batch.expected), store.queries.dialect.max_list):
        given = {"thread_ids": some, "touched_after": now - TOUCH_INTERVAL, "now": now}
        rows = connection.fetch(store.queries.states_and_touch, given)
        found |= {row.thread_id: row for row in rows}
    states: dict[str, int] = {}
    stale: list[Row] = []
    for name, expected in batch.expected.items():
        row, following = found.get(name), batch.following[name]
        if expected is not None and (row is None or row.state not in {expected, following}):
            continue
        before = row.state if row is not None else None
        states[name] = following or before or new_state()
        if row is None or states[name] != before or not row.touched:
            stale.append(thread_row(name, states[name], now))
    if stale:
        connection.execute(store.queries.set_thread, *stale)
    return states


def _rows(batch: Iterable[Put]) -> Rows:
    """All rows of some puts."""
    rows = Rows()
    for one in batch:
        thread_id, namespace = one.namespace.thread_id, one.namespace
        if isinstance(one, PutCheckpoint):
            rows.checkpoints[namespace, one.row["checkpoint_id"]] = one.row
        else:
            for row in one.rows:
                rows.writes.setdefault(_write_key(row), row)
            rows.special |= {_write_key(row): row for row in one.special_rows}
        for segment in one.segments:
            key = thread_id, segment.stream, segment.start
            rows.segments[key] = segment_row(thread_id, segment)
    return rows


def _write_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in writes.primary_key)
