"""Deleting threads, runs and chunks.

Each function is one unit of work for `Database.write`, on one thread. It holds the thread's row
from its first statement, reads what is live after that, deletes manifests before chunks, and raises
the thread's epoch when it has deleted chunks (docs/format.md, "Delete").
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from checkpointer.chunking import Tree, split_digests
from checkpointer.errors import DamagedDataError
from checkpointer.execution import Connection
from checkpointer.manifest import FormatError, Manifest, decode_manifest, decode_projection
from checkpointer.planning import Key
from checkpointer.records import StoredWrite
from checkpointer.store import Store, batched


def delete_thread(connection: Connection, store: Store, thread_id: str) -> None:
    """Delete everything of one thread. Its row goes as well; a new one starts at another epoch."""
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
    if any(connection.fetch(store.queries.any_rows, {"thread_id": thread_id})[0]):
        sweep(connection, store, thread_id)
    else:
        delete_thread(connection, store, thread_id)


def sweep_thread(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the chunks of one thread that nothing names; how many these were.

    Raises:
        DamagedDataError: It is unknown which chunks are live.
    """
    return sweep(connection, store, thread_id) if lock(connection, store, thread_id) else 0


def sweep(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the chunks that no manifest and no pending write of the thread names; how many.

    Raises:
        DamagedDataError: It is unknown which chunks are live; the transaction must not commit.
    """
    trees: list[Tree] = []
    for row in connection.fetch(store.queries.manifests, {"thread_id": thread_id}):
        trees += manifest_of(thread_id, row).trees()
    trees += trees_of_writes(connection, store, thread_id)
    live = live_digests(connection, store, thread_id, trees)
    rows = connection.fetch(store.queries.digests, {"thread_id": thread_id})
    garbage = {row.digest for row in rows} - live
    delete_chunks(connection, store, thread_id, garbage)
    return len(garbage)


def delete_chunks(
    connection: Connection, store: Store, thread_id: str, garbage: Collection[bytes]
) -> None:
    """Delete chunks that nothing names, and raise the thread's epoch if there are any."""
    for digests in batched(sorted(garbage), store.queries.dialect.max_list):
        parameters = {"thread_id": thread_id, "digests": digests}
        connection.execute(store.queries.delete_chunks, parameters)
    if garbage:
        connection.execute(store.queries.raise_epoch, {"of_thread": thread_id})


def trees_of_writes(
    connection: Connection,
    store: Store,
    thread_id: str,
    of: Callable[[Key], bool] = lambda _: True,
) -> Iterator[Tree]:
    """The trees of the pending writes of some of the thread's checkpoints, all without `of`.

    Raises:
        DamagedDataError: A write cannot be read.
    """
    for row in connection.fetch(store.queries.chunked_writes, {"thread_id": thread_id}):
        if not of((row.checkpoint_ns, row.checkpoint_id)):
            continue
        write = StoredWrite.from_row(row)
        if isinstance(write.value, FormatError):
            raise unknown(thread_id, row, f"a write to {row.channel!r}: {write.value}")
        if (tree := write.tree()) is not None:
            yield tree


def live_digests(
    connection: Connection, store: Store, thread_id: str, trees: Sequence[Tree]
) -> set[bytes]:
    """The digests of all chunks that some trees name, nodes included.

    Raises:
        DamagedDataError: A node is missing or altered.
    """
    nodes, complete = store.chunks_of(connection, [thread_id], trees, nodes_only=True)
    if not complete:
        raise DamagedDataError(
            f"thread {thread_id!r}: a node of a tree is missing or altered, so that it is unknown "
            f"which chunks are live; nothing was deleted. Delete the thread with adelete_thread"
        )
    live = {digest for tree in trees for digest in split_digests(tree.digests)}
    return live.union(*(split_digests(node) for node in nodes.values()))


def lock(connection: Connection, store: Store, thread_id: str) -> bool:
    """Hold the thread's row to the end of the transaction; whether there is one."""
    return bool(connection.fetch(store.queries.lock_thread, {"thread_id": thread_id}))


def delete_checkpoints(
    connection: Connection, store: Store, thread_id: str, doomed: Mapping[str, Sequence[str]]
) -> None:
    """Delete checkpoints and their own writes; children that stay lose their parent.

    Other writes stay: with `durability="async"` they may stand there before their checkpoint.
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
    """
    try:
        return decode_manifest(row.manifest)
    except FormatError as exc:
        raise unknown(thread_id, row, str(exc)) from exc


def metadata_of(thread_id: str, row: Any) -> dict[str, Any]:
    """The projection of a row's metadata.

    Raises:
        DamagedDataError: It cannot be read.
    """
    try:
        return decode_projection(row.metadata)
    except FormatError as exc:
        raise unknown(thread_id, row, str(exc), "ancestors are needed") from exc


def unknown(
    thread_id: str, row: Any, reason: str, what: str = "chunks are live"
) -> DamagedDataError:
    """The error that it is unknown what may be deleted."""
    return DamagedDataError(
        f"thread {thread_id!r}, namespace {row.checkpoint_ns!r}, checkpoint "
        f"{row.checkpoint_id!r}: {reason}; so it is unknown which {what}, and nothing was "
        f"deleted. Delete the thread with adelete_thread"
    )
