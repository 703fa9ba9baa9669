"""Deleting threads, runs and stored bytes.

`delete_thread`, `delete_runs` and `sweep_thread` are units of work for `Database.write`, on one
thread. Each holds the thread's row from its first statement, and only then reads what is live. It
deletes manifests before segments. If it has deleted segments, it replaces the thread's state, or
deletes the row (docs/format.md, "Delete"). The other functions are parts of such work.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from checkpointer.arrays import keys_wanted, segments_at_once
from checkpointer.errors import DamagedDataError, SchemaTooNewError
from checkpointer.execution import Connection
from checkpointer.manifest import Manifest, decode_manifest, decode_projection
from checkpointer.planning import Key
from checkpointer.records import StoredWrite, too_new
from checkpointer.sealing import FormatError, TooNewError
from checkpointer.slices import Coverage, Interval, Layout, Segment, is_place, segments_of
from checkpointer.store import Store, batched, new_state, segment_row, thread_row


def delete_thread(connection: Connection, store: Store, thread_id: str) -> None:
    """Delete everything of one thread, with its row. A new row would get another state."""
    if not lock(connection, store, thread_id):
        return
    for statement in store.queries.delete_thread:
        connection.execute(statement, {"thread_id": thread_id})


def threads_of_runs(connection: Connection, store: Store, run_ids: Sequence[str]) -> list[str]:
    """The threads that hold checkpoints of these runs."""
    found: set[str] = set()
    for some in batched(run_ids, store.queries.dialect.max_list):
        result = connection.fetch(store.queries.threads_of_runs, {"run_ids": some})
        found.update(row.thread_id for row in result)
    return sorted(found)


def delete_runs(
    connection: Connection, store: Store, thread_id: str, run_ids: Sequence[str]
) -> None:
    """Delete the checkpoints that these runs made in one thread, with their writes."""
    if not lock(connection, store, thread_id):
        return
    doomed = defaultdict[str, list[str]](list)
    for some in batched(run_ids, store.queries.dialect.max_list):
        parameters = {"thread_id": thread_id, "run_ids": some}
        for row in connection.fetch(store.queries.checkpoints_of_runs, parameters):
            doomed[row.checkpoint_ns].append(row.checkpoint_id)
    if not doomed:
        return
    delete_checkpoints(connection, store, thread_id, doomed)
    [left] = connection.fetch(store.queries.any_rows, {"thread_id": thread_id})
    if left.any_checkpoints or left.any_writes:
        sweep(connection, store, thread_id)
    else:
        delete_thread(connection, store, thread_id)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A segment that has bytes that nothing names.

    Attributes:
        stream: Its stream.
        start: Where it begins.
        stop: Where it ends.
        bytes: Its stored bytes.
        live: The intervals of it that are named, if any.
    """

    stream: int
    start: int
    stop: int
    bytes: int
    live: tuple[Interval, ...]


CUT: Final = 32
"""How many segments are read and cut at once. Each has at most 1 MB."""


def sweep_thread(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the bytes of one thread that nothing names. Returns from how many segments.

    Raises:
        DamagedDataError: It is unknown which bytes are live.
    """
    return sweep(connection, store, thread_id) if lock(connection, store, thread_id) else 0


def sweep(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the bytes that no manifest and no pending write of the thread names.

    Returns:
        How many segments were deleted or cut.

    Raises:
        DamagedDataError: It is unknown which bytes are live; the transaction must not commit.
    """
    layouts: list[Layout] = []
    for row in connection.fetch(store.queries.manifests, {"thread_id": thread_id}):
        layouts += manifest_of(thread_id, row).layouts()
    layouts += layouts_of_writes(connection, store, thread_id)
    garbage = garbage_of(connection, store, thread_id, layouts)
    return delete_garbage(connection, store, thread_id, garbage)[0]


def garbage_of(
    connection: Connection, store: Store, thread_id: str, live: Iterable[Layout]
) -> list[Garbage]:
    """The segments of a thread that have bytes that nothing names.

    Args:
        connection: Where to read.
        store: The statements.
        thread_id: The thread.
        live: All values that name bytes.
    """
    named = Coverage()
    for layout in live:
        named.add(layout.slices())
    found = []
    for row in connection.fetch(store.queries.segment_keys, {"thread_id": thread_id}):
        if not is_place(row.stream_id, row.start, row.stop):
            continue  # damaged: what it holds, and where it belongs, is unknown
        used = tuple(named.within(row.stream_id, row.start, row.stop))
        if used != ((row.start, row.stop),):
            found.append(Garbage(row.stream_id, row.start, row.stop, row.bytes, used))
    return found


def delete_garbage(
    connection: Connection,
    store: Store,
    thread_id: str,
    garbage: Sequence[Garbage],
    *,
    dry_run: bool = False,
) -> tuple[int, int]:
    """Delete bytes that nothing names, and replace the thread's state if there are any.

    Live parts of a segment are stored again in rows of their own. A damaged segment with live parts
    stays as it is, because it is unknown what it should hold. So do the other segments of its
    stream that would be cut.

    Args:
        connection: Where to work.
        store: The statements.
        thread_id: The thread.
        garbage: The segments to delete or cut.
        dry_run: Change nothing, and only count.

    Returns:
        How many segments were deleted or cut, and how many stored bytes that has freed.
    """
    dead = [one for one in garbage if not one.live]
    count, freed = len(dead), sum(one.bytes for one in dead)
    for some in batched([one for one in garbage if one.live], CUT):
        cut = _parts(connection, store, thread_id, some)
        parts = [part for of_one in cut.values() for part in of_one]
        count += len(cut)
        freed += sum(one.bytes for one in cut) - sum(len(part.data) for part in parts)
        if not dry_run:
            _delete_segments(connection, store, thread_id, cut)
            insert_segments(connection, store, thread_id, parts)
    if count and not dry_run:
        _delete_segments(connection, store, thread_id, dead)
        renewed = {"of_thread": thread_id, "new_state": new_state()}
        connection.execute(store.queries.set_state, renewed)
    return count, freed


def _parts(
    connection: Connection, store: Store, thread_id: str, some: Sequence[Garbage]
) -> dict[Garbage, list[Segment]]:
    """The live parts of some segments, as segments. Streams with a damaged one are left out."""
    dialect = store.queries.dialect
    asked = keys_wanted(dialect, thread_id, ((one.stream, one.start) for one in some))
    rows = connection.fetch(segments_at_once(dialect), asked)
    found = {(row.stream_id, row.start): Segment(*row[1:]) for row in rows}
    cut: dict[Garbage, list[Segment]] = {}
    damaged: set[int] = set()
    for one in some:
        try:
            data = found[one.stream, one.start].unpack()
        except (KeyError, FormatError):
            damaged.add(one.stream)
            continue
        pieces = ((at, data[at - one.start : stop - one.start]) for at, stop in one.live)
        cut[one] = [part for at, piece in pieces for part in segments_of(one.stream, at, piece)]
    # A damaged segment may overlap a whole one. It would keep the parts of that from being stored.
    return {one: parts for one, parts in cut.items() if one.stream not in damaged}


def _delete_segments(
    connection: Connection, store: Store, thread_id: str, some: Iterable[Garbage]
) -> None:
    """Delete segments, each by its key."""
    ordered = sorted(some, key=lambda one: (one.stream, one.start))
    for part in batched(ordered, store.queries.dialect.max_list):
        rows = [{"thread_id": thread_id, "stream_id": g.stream, "start": g.start} for g in part]
        connection.execute(store.queries.delete_segment, *rows)


def insert_segments(
    connection: Connection, store: Store, thread_id: str, segments: Iterable[Segment]
) -> None:
    """Store segments. If there is a longer one with the same key, that one stays."""
    rows = [segment_row(thread_id, one) for one in segments]
    if rows:
        connection.execute(store.queries.copy_segment, *rows)


def layouts_of_writes(
    connection: Connection,
    store: Store,
    thread_id: str,
    of: Callable[[Key], bool] = lambda _: True,
) -> Iterator[Layout]:
    """The layouts of the pending writes of some of the thread's checkpoints; without `of`, of all.

    Raises:
        DamagedDataError: A write cannot be read.
    """
    for row in connection.fetch(store.queries.sliced_writes, {"thread_id": thread_id}):
        if not of((row.checkpoint_ns, row.checkpoint_id)):
            continue
        write = StoredWrite.from_row(row)
        if isinstance(write.value, FormatError):
            raise unknown(thread_id, row, write.value)
        if (layout := write.layout()) is not None:
            yield layout


def lock(connection: Connection, store: Store, thread_id: str) -> bool:
    """Hold the thread's row to the end of the transaction. Returns whether the thread has any rows.

    If a thread has rows in other tables, but none in `threads`, it gets one again.
    """
    given = {"thread_id": thread_id}
    if connection.fetch(store.queries.lock_thread, given):
        return True
    if not any(connection.fetch(store.queries.any_rows, given)[0]):
        return False
    row = thread_row(thread_id, new_state(), datetime.now(UTC))
    connection.execute(store.queries.touch_thread, row)
    return True


def delete_checkpoints(
    connection: Connection, store: Store, thread_id: str, doomed: Mapping[str, Sequence[str]]
) -> None:
    """Delete checkpoints and their own writes; children that stay lose their parent.

    Other writes stay: with `durability="async"`, writes may be stored before their checkpoint.
    """
    queries = store.queries
    for namespace, checkpoint_ids in doomed.items():
        for some in batched(checkpoint_ids, queries.dialect.max_list):
            key = {"thread_id": thread_id, "checkpoint_ns": namespace}
            children = {"of_thread": thread_id, "of_namespace": namespace}
            connection.execute(queries.delete_checkpoints, {**key, "checkpoint_ids": some})
            connection.execute(queries.delete_writes, {**key, "checkpoint_ids": some})
            connection.execute(queries.orphan_checkpoints, {**children, "checkpoint_ids": some})


def manifest_of(thread_id: str, row: Any) -> Manifest:
    """The manifest of a row.

    Raises:
        DamagedDataError: It cannot be read.
        SchemaTooNewError: Only a newer version of this package can read it.
    """
    try:
        return decode_manifest(row.manifest)
    except FormatError as exc:
        raise unknown(thread_id, row, exc) from exc


def metadata_of(thread_id: str, row: Any) -> dict[str, Any]:
    """The projection of a row's metadata.

    Raises:
        DamagedDataError: It cannot be read.
    """
    try:
        return decode_projection(row.metadata)
    except FormatError as exc:
        raise unknown(thread_id, row, exc, "ancestors are needed") from exc


def unknown(
    thread_id: str, row: Any, cause: FormatError, what: str = "bytes are live"
) -> DamagedDataError | SchemaTooNewError:
    """The error that it is unknown what may be deleted.

    Args:
        thread_id: The thread.
        row: The row that cannot be read.
        cause: Why it cannot be read.
        what: What is unknown because of that.
    """
    found = (
        f"thread {thread_id!r}, namespace {row.checkpoint_ns!r}, checkpoint "
        f"{row.checkpoint_id!r}: {cause}; so it is unknown which {what}, and nothing was deleted"
    )
    if isinstance(cause, TooNewError):
        return too_new(found)
    return DamagedDataError(f"{found}. Delete the thread with adelete_thread")
