"""Whether the rows still hold what was written: all are read, and every chunk is hashed again.

Each function is a unit of work on a given connection. A thread is verified within one snapshot, so
that what others write meanwhile is no matter, and page by page, so that it may be of any size.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from checkpointer.arrays import AnySelect
from checkpointer.chunking import Tree, join
from checkpointer.execution import Connection
from checkpointer.manifest import FormatError, Manifest, Value, decode_manifest, decode_projection
from checkpointer.predicates import keys
from checkpointer.problems import Problem, ProblemKind, Verification
from checkpointer.quoting import quoted
from checkpointer.records import StoredWrite
from checkpointer.soundness import Chunks
from checkpointer.store import Store, batched

IdOf: TypeAlias = Callable[[str, bytes], str | None]
"""Tells a checkpoint's id from its type tag and its bytes, `None` where that cannot be told."""

PAGE: Final = 128
"""Threads listed at once, and checkpoints read: so many manifests take a few ms to decode."""


def count_threads(connection: Connection, store: Store) -> int:
    """How many threads have a row."""
    [row] = connection.fetch(store.queries.thread_count)
    return int(row.threads)


def threads_after(connection: Connection, store: Store, thread_id: str | None) -> list[str]:
    """A page of the ids of threads, in order: also of those that have rows, but none themselves.

    Args:
        connection: Where to read.
        store: The statements.
        thread_id: The last of the page before.
    """
    after = {} if thread_id is None else {"after_thread_id": thread_id}
    statement = store.queries.threads_after(cursor=bool(after))
    return [row.thread_id for row in connection.fetch(statement, {"limit": PAGE, **after})]


def verify_thread(
    connection: Connection, store: Store, thread_id: str, id_of: IdOf
) -> Verification:
    """Read all rows of a thread, from one snapshot, and tell what is wrong with them.

    A chunk that many values name is named with the first, and once more with each other value
    that is damaged by it.
    """
    return _Thread(connection, store, thread_id, id_of).verify()


def has_garbage(found: Verification) -> bool:
    """Whether a verified thread has chunks that may be swept away."""
    undecided = any(one.kind is ProblemKind.UNDECIDED_CHUNKS for one in found.problems)
    unnamed = (one.digest is not None and one.checkpoint_id is None for one in found.problems)
    return not undecided and any(unnamed)


class _Thread:
    """One thread under verification."""

    def __init__(self, connection: Connection, store: Store, thread_id: str, id_of: IdOf) -> None:
        self._connection, self._store, self._thread_id = connection, store, thread_id
        self._id_of = id_of
        self._problems: list[Problem] = []
        [found] = connection.fetch(store.queries.thread_summary, {"thread_id": thread_id})
        self._has_row = bool(found.has_row)
        self._chunks = Chunks(connection, store, thread_id, found.chunks)

    def verify(self) -> Verification:
        """Read everything; to be called once."""
        queries, stored = self._store.queries, self._chunks
        rows = self._read(
            queries.checkpoint_keys, queries.manifests_of_many, self._check_checkpoints
        )
        writes = self._read(queries.write_keys, queries.writes_of_many, self._check_writes)
        is_there = bool(self._has_row or rows or writes or stored.count)
        if is_there and not self._has_row:
            found = f"{rows} checkpoints, {writes} writes, {stored.count} chunks"
            detail = f"found {found} of a thread without a row; the next put makes one"
            self._add(ProblemKind.MISSING_THREAD, (None, None), detail=detail)
        self._check_unnamed()
        problems = tuple(self._problems)
        return Verification(int(is_there), rows, writes, stored.count, stored.bytes, problems)

    def _read(
        self, keys_statement: AnySelect, statement: AnySelect, check: Callable[[list[Any]], None]
    ) -> int:
        """Check rows, of some checkpoints at a time, in the order of these; how many there are."""
        count = 0
        found = self._connection.fetch(keys_statement, {"thread_id": self._thread_id})
        for some in batched(sorted(map(tuple, found)), PAGE):
            wanted = set(some)
            rows = self._connection.fetch(statement, keys(some))
            rows = sorted((row for row in rows if row[:3] in wanted), key=lambda row: row[:3])
            check(rows)
            count += len(rows)
        return count

    def _check_checkpoints(self, rows: list[Any]) -> None:
        found: dict[tuple[str, str], Manifest] = {}
        for row in rows:
            key = (row.checkpoint_ns, row.checkpoint_id)
            try:
                found[key] = decode_manifest(row.manifest)
            except FormatError as exc:
                self._chunks.certain = False
                self._add(ProblemKind.UNDECODABLE_MANIFEST, key, detail=str(exc))
            try:
                decode_projection(row.metadata)
            except FormatError as exc:
                self._add(ProblemKind.UNDECODABLE_METADATA, key, detail=str(exc))
        self._chunks.follow(tree for one in found.values() for tree in one.trees())
        readable = {}
        for key, manifest in found.items():
            if self._check_value(manifest.checkpoint, key, None, "the checkpoint"):
                readable[key] = manifest.checkpoint
            self._check_value(manifest.metadata, key, None, "the metadata")
            for channel, value in manifest.channels.items():
                self._check_value(value, key, channel, "the channel's value")
        self._check_ids(readable)

    def _check_ids(self, found: dict[tuple[str, str], Value]) -> None:
        """Whether checkpoints stand under their own ids."""
        trees = [tree for value in found.values() if (tree := value.tree()) is not None]
        chunks, _ = self._store.chunks_of(self._connection, [self._thread_id], trees)
        for key, value in found.items():
            data = value.content
            stored = self._id_of(value.type, join(data, chunks) if isinstance(data, Tree) else data)
            if stored not in {None, key[1]}:
                self._chunks.certain = False  # its own may come back from a backup
                detail = f"found the manifest of checkpoint {quoted(stored)}"
                self._add(ProblemKind.MISPLACED_MANIFEST, key, detail=detail)

    def _check_writes(self, rows: list[Any]) -> None:
        found = [(row.checkpoint_ns, StoredWrite.from_row(row)) for row in rows]
        trees = (write.tree() for _, write in found)
        self._chunks.follow(tree for tree in trees if tree is not None)
        for namespace, write in found:
            key, what = (
                (namespace, write.checkpoint_id),
                f"the write of task {quoted(write.task_id)}",
            )
            if isinstance(write.value, Value):
                self._check_value(write.value, key, write.channel, what)
            else:
                self._chunks.certain = False
                detail = f"{what}: {write.value}"
                self._add(ProblemKind.UNDECODABLE_WRITE, key, write.channel, detail=detail)

    def _check_value(
        self, value: Value, key: tuple[str, str], channel: str | None, what: str
    ) -> bool:
        """Whether a value can be put together."""
        tree = value.tree()
        faults = self._chunks.faults(tree) if tree else []
        for fault in faults:
            self._add(fault.kind, key, channel, fault.digest, f"{what}: {fault.detail}")
        return not faults

    def _check_unnamed(self) -> None:
        """Tell of the chunks that nothing names."""
        unnamed, altered = self._chunks.unnamed, self._chunks.altered
        for digest in sorted(unnamed):
            if digest in altered:
                detail = f"{altered[digest]}, and nothing that names it"
                self._add(ProblemKind.ALTERED_CHUNK, (None, None), None, digest, detail)
            elif self._chunks.certain:
                detail = "nothing names it"
                self._add(ProblemKind.UNREFERENCED_CHUNK, (None, None), None, digest, detail)
        if unnamed and not self._chunks.certain:
            detail = f"found {len(unnamed)} that only a damaged row may name"
            self._add(ProblemKind.UNDECIDED_CHUNKS, (None, None), detail=detail)

    def _add(
        self,
        kind: ProblemKind,
        key: tuple[str | None, str | None],
        channel: str | None = None,
        digest: bytes = b"",
        detail: str = "",
    ) -> None:
        found = Problem(kind, self._thread_id, *key, channel, digest.hex() or None, detail)
        self._problems.append(found)
