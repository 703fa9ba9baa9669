"""Deleting, pruning and copying threads: plan, then apply.

Each function is one unit of work for `Database.write`, on one thread. It holds the thread's row
from its first statement, reads what is live after that, deletes manifests before chunks, and raises
the thread's epoch when it has deleted chunks (docs/format.md, "Delete").
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from checkpointer.chunking import Tree, split_digests
from checkpointer.errors import DamagedDataError
from checkpointer.execution import Connection
from checkpointer.manifest import FormatError, Manifest, decode_manifest, decode_projection
from checkpointer.queries import keys
from checkpointer.records import StoredWrite
from checkpointer.store import Store, batched, new_epoch

Key: TypeAlias = tuple[str, str]
"""A checkpoint within its thread: namespace and id."""

CALL_SEPARATOR: Final = ":"
"""Stands in the namespace of a subgraph's call, before the id of the task that called it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One checkpoint of a thread, as far as planning needs it.

    Attributes:
        parent: The id of its parent, in the same namespace.
        stored: The channels whose values it holds.
        replayed: The channels that it rebuilds from its ancestors' writes, where it does not hold
            their values.
        root: The id of the root graph's checkpoint that its subgraph call started from.
        sends_parent: Its parent's id, if it takes its pending sends from there.
    """

    parent: str | None
    stored: frozenset[str]
    replayed: frozenset[str]
    root: str | None
    sends_parent: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune removes from one thread.

    Attributes:
        namespaces: Dropped whole: calls that have finished.
        checkpoints: The ids to delete, by namespace.
    """

    namespaces: frozenset[str] = frozenset()
    checkpoints: dict[str, list[str]] = field(default_factory=dict)


def plan_keep_latest(nodes: Mapping[Key, Node]) -> Plan:
    """Keep the latest checkpoint of each namespace, and the ancestors that it is read from.

    These are, for each channel that it rebuilds, all back to the nearest one that holds the
    channel's value; and the parent that holds its pending sends. The namespaces of subgraph calls
    go with the root checkpoint that they started from, once that one is saved and not kept.
    """
    heads: dict[str, str] = {}
    for namespace, checkpoint_id in nodes:
        heads[namespace] = max(heads.get(namespace, checkpoint_id), checkpoint_id)
    kept = {ns: {head} | set(_needed(nodes, ns, head)) for ns, head in heads.items()}
    finished = frozenset(
        ns
        for ns, head in heads.items()
        if CALL_SEPARATOR in ns
        and (root := nodes[ns, head].root) is not None
        and ("", root) in nodes
        and root not in kept.get("", ())
    )
    checkpoints = defaultdict[str, list[str]](list)
    for namespace, checkpoint_id in nodes:
        if namespace not in finished and checkpoint_id not in kept[namespace]:
            checkpoints[namespace].append(checkpoint_id)
    return Plan(finished, dict(checkpoints))


def _needed(nodes: Mapping[Key, Node], namespace: str, head: str) -> Iterable[str]:
    """The ancestors without which `head` would not read the same."""
    node = nodes[namespace, head]
    if node.sends_parent is not None:
        yield node.sends_parent
    missing = node.replayed - node.stored
    seen = {head}
    while missing and node.parent is not None and node.parent not in seen:
        ancestor = nodes.get((namespace, node.parent))
        if ancestor is None:
            return
        seen.add(node.parent)
        yield node.parent
        missing -= ancestor.stored
        node = ancestor


def keep_latest(
    connection: Connection,
    store: Store,
    thread_id: str,
    node_of: Callable[[Mapping[str, Any], Manifest, str | None], Node],
    sends_channel: str,
) -> None:
    """Prune one thread by `plan_keep_latest`.

    Args:
        connection: Where to work.
        store: The statements.
        thread_id: The thread.
        node_of: Tells what planning needs from the metadata's projection, the manifest and the
            parent's id; all that is LangGraph's is decided there.
        sends_channel: The channel of pending sends.

    Raises:
        DamagedDataError: A manifest or its metadata cannot be read, so that it is unknown what is
            needed.
    """
    if not _lock(connection, store, thread_id):
        return
    nodes: dict[Key, Node] = {}
    for row in connection.fetch(store.queries.manifests, {"thread_id": thread_id}):
        key = (row.checkpoint_ns, row.checkpoint_id)
        manifest = _manifest(thread_id, row)
        nodes[key] = node_of(_metadata(thread_id, row), manifest, row.parent_checkpoint_id)
    _forget_empty_sends(connection, store, thread_id, nodes, sends_channel)
    plan = plan_keep_latest(nodes)
    for namespace in sorted(plan.namespaces):
        for statement in store.queries.delete_namespace:
            key_of = {"thread_id": thread_id, "checkpoint_ns": namespace}
            connection.execute(statement, key_of)
    _delete_checkpoints(connection, store, thread_id, plan.checkpoints)
    if plan.namespaces or plan.checkpoints:
        sweep(connection, store, thread_id)


def _forget_empty_sends(
    connection: Connection,
    store: Store,
    thread_id: str,
    nodes: dict[Key, Node],
    sends_channel: str,
) -> None:
    """Clear `sends_parent` where the parent holds no pending sends."""
    asking = {
        (thread_id, namespace, node.sends_parent)
        for (namespace, _), node in nodes.items()
        if node.sends_parent is not None
    }
    holding: set[Key] = set()
    for some in batched(asking, store.queries.dialect.max_list):
        parameters = {**keys(some), "channels": [sends_channel]}
        result = connection.fetch(store.queries.channel_writes_of_many, parameters)
        holding |= {(row.checkpoint_ns, row.checkpoint_id) for row in result}
    for key, node in nodes.items():
        if node.sends_parent is not None and (key[0], node.sends_parent) not in holding:
            nodes[key] = replace(node, sends_parent=None)


def delete_thread(connection: Connection, store: Store, thread_id: str) -> None:
    """Delete everything of one thread. Its row goes as well; a new one starts at another epoch."""
    if not _lock(connection, store, thread_id):
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
    if not _lock(connection, store, thread_id):
        return
    doomed = defaultdict[str, list[str]](list)
    for some in batched(run_ids, store.queries.dialect.max_list):
        parameters = {"thread_id": thread_id, "run_ids": some}
        for row in connection.fetch(store.queries.checkpoints_of_runs, parameters):
            doomed[row.checkpoint_ns].append(row.checkpoint_id)
    if not doomed:
        return
    _delete_checkpoints(connection, store, thread_id, doomed)
    if any(connection.fetch(store.queries.any_rows, {"thread_id": thread_id})[0]):
        sweep(connection, store, thread_id)
    else:
        delete_thread(connection, store, thread_id)


def copy_thread(connection: Connection, store: Store, source: str, target: str) -> None:
    """Copy everything of one thread into another, inside the database.

    What stands in the target already stays, but for checkpoints and writes with the same keys.
    """
    if source == target:
        return
    if not connection.fetch(store.queries.epochs, {"thread_ids": [source]}):
        return
    now, epoch = datetime.now(UTC), new_epoch()
    touched = {"thread_id": target, "epoch": epoch, "created_at": now, "updated_at": now}
    for thread_id in sorted((source, target)):  # the order of every transaction that holds two
        if thread_id == target:
            connection.execute(store.queries.touch_thread, touched)
        elif not _lock(connection, store, source):
            return  # Deleted meanwhile. What comes there next is not held, and would be cut in two.
    # No put may take values of the target's checkpoints from memory: they may be others now.
    connection.execute(store.queries.set_epoch, {"of_thread": target, "new_epoch": epoch})
    for statement in store.queries.copy_thread:
        connection.execute(statement, {"source": source, "target": target})


def sweep_thread(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the chunks of one thread that nothing names; how many these were.

    Raises:
        DamagedDataError: It is unknown which chunks are live.
    """
    return sweep(connection, store, thread_id) if _lock(connection, store, thread_id) else 0


def sweep(connection: Connection, store: Store, thread_id: str) -> int:
    """Delete the chunks that no manifest and no pending write of the thread names; how many.

    Raises:
        DamagedDataError: It is unknown which chunks are live; the transaction must not commit.
    """
    live = _live_digests(connection, store, thread_id)
    rows = connection.fetch(store.queries.digests, {"thread_id": thread_id})
    stored = {row.digest for row in rows}
    garbage = sorted(stored - live)
    for digests in batched(garbage, store.queries.dialect.max_list):
        parameters = {"thread_id": thread_id, "digests": digests}
        connection.execute(store.queries.delete_chunks, parameters)
    if garbage:
        connection.execute(store.queries.raise_epoch, {"of_thread": thread_id})
    return len(garbage)


def _live_digests(connection: Connection, store: Store, thread_id: str) -> set[bytes]:
    trees: list[Tree] = []
    for row in connection.fetch(store.queries.manifests, {"thread_id": thread_id}):
        trees += _manifest(thread_id, row).trees()
    for row in connection.fetch(store.queries.chunked_writes, {"thread_id": thread_id}):
        write = StoredWrite.from_row(row)
        if isinstance(write.value, FormatError):
            raise _unknown(thread_id, row, f"a write to {row.channel!r}: {write.value}")
        if (tree := write.tree()) is not None:
            trees.append(tree)
    nodes, complete = store.chunks_of(connection, [thread_id], trees, nodes_only=True)
    if not complete:
        raise DamagedDataError(
            f"thread {thread_id!r}: a node of a tree is missing or altered, so that it is unknown "
            f"which chunks are live; nothing was deleted. Delete the thread with adelete_thread"
        )
    live = {digest for tree in trees for digest in split_digests(tree.digests)}
    return live.union(*(split_digests(node) for node in nodes.values()))


def _lock(connection: Connection, store: Store, thread_id: str) -> bool:
    """Hold the thread's row to the end of the transaction; whether there is one."""
    return bool(connection.fetch(store.queries.lock_thread, {"thread_id": thread_id}))


def _delete_checkpoints(
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


def _manifest(thread_id: str, row: Any) -> Manifest:
    try:
        return decode_manifest(row.manifest)
    except FormatError as exc:
        raise _unknown(thread_id, row, str(exc)) from exc


def _metadata(thread_id: str, row: Any) -> dict[str, Any]:
    try:
        return decode_projection(row.metadata)
    except FormatError as exc:
        raise _unknown(thread_id, row, str(exc), "ancestors are needed") from exc


def _unknown(
    thread_id: str, row: Any, reason: str, what: str = "chunks are live"
) -> DamagedDataError:
    return DamagedDataError(
        f"thread {thread_id!r}, namespace {row.checkpoint_ns!r}, checkpoint "
        f"{row.checkpoint_id!r}: {reason}; so it is unknown which {what}, and nothing was "
        f"deleted. Delete the thread with adelete_thread"
    )
