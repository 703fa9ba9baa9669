"""Checkpoints, writes and chunks on a given connection: batches in, verified rows out.

Functions here are units of work for `Database.read` and `Database.write`. They know bytes and
strings; what the bytes mean is the saver's affair.
"""

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from checkpointer.cache import ChunkCache, StoredChunks
from checkpointer.chunking import ChunkError, Tree, digest_of, join, split_digests
from checkpointer.errors import DamagedDataError
from checkpointer.manifest import FormatError, Manifest, decode_content, decode_manifest
from checkpointer.queries import Queries

T = TypeVar("T")
Chunks = Mapping[bytes, bytes | memoryview]

PAGE_BYTES: Final = 32 << 20
"""Logical bytes of values after which a page of a list ends, however few its checkpoints."""


@dataclass(frozen=True, slots=True)
class PutCheckpoint:
    """One checkpoint to store: its row, and every chunk that its manifest names."""

    thread_id: str
    checkpoint_ns: str
    row: dict[str, Any]
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class PutWrites:
    """One task's pending writes to store: their rows, and every chunk that they name.

    Attributes:
        rows: Kept as they stand in the database, if they stand there already.
        special_rows: Take the place of those that stand there.
    """

    thread_id: str
    checkpoint_ns: str
    rows: list[dict[str, Any]]
    special_rows: list[dict[str, Any]]
    chunks: Chunks


Put = PutCheckpoint | PutWrites


@dataclass(slots=True)
class StoredWrite:
    """One pending write as it stands in the database."""

    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    type: str
    content: bytes | Tree | FormatError


@dataclass(slots=True)
class StoredCheckpoint:
    """One checkpoint as it stands in the database, with the chunks that it names.

    Attributes:
        manifest: The manifest, or why it cannot be read.
        writes: Its pending writes, in no order.
        sends: Its parent's writes to the channel of pending sends, for old formats.
        chunks: Those that were found whole.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    epoch: int | None
    manifest: Manifest | FormatError
    writes: list[StoredWrite] = field(default_factory=list)
    sends: list[StoredWrite] = field(default_factory=list)
    chunks: Mapping[bytes, bytes] = field(default_factory=dict)

    def trees(self) -> Iterable[Tree]:
        """The trees of all its values and writes."""
        if isinstance(self.manifest, Manifest):
            yield from self.manifest.trees()
        for write in (*self.writes, *self.sends):
            if isinstance(write.content, Tree):
                yield write.content

    def load(self, content: bytes | Tree | FormatError, what: str) -> bytes:
        """The bytes of one of its values, verified.

        Args:
            content: The value's content.
            what: What the value is, for the error: "channel 'messages'", for example.

        Raises:
            DamagedDataError: A chunk is missing or altered.
        """
        try:
            if isinstance(content, FormatError):
                raise content
            return content if isinstance(content, bytes) else join(content, self.chunks)
        except (ChunkError, FormatError) as exc:
            raise self.damage(f"{what}: {exc}") from exc

    def damage(self, reason: str) -> DamagedDataError:
        """The error that names this checkpoint."""
        return DamagedDataError(
            f"thread {self.thread_id!r}, namespace {self.checkpoint_ns!r}, checkpoint "
            f"{self.checkpoint_id!r}: {reason}; the stored rows do not hold what was written, "
            f"restore them from a backup or delete the checkpoint"
        )


@dataclass(frozen=True, slots=True)
class Store:
    """The statements and memories that work on a connection needs."""

    queries: Queries
    cache: ChunkCache
    stored: StoredChunks

    def put(self, connection: sa.Connection, batch: Sequence[Put]) -> dict[str, int]:
        """Store a batch in the transaction under way.

        Threads are touched in the order of their ids, so that two batches cannot deadlock; holding a
        thread's row, chunks are skipped only if they were learned under the row's epoch.

        Returns:
            The epoch of each thread, for `learn` once the transaction has committed.
        """
        now = datetime.now(UTC)
        thread_ids = sorted({put.thread_id for put in batch})
        times = {"created_at": now, "updated_at": now}
        connection.execute(
            self.queries.touch_thread,
            [{"thread_id": t, "epoch": new_epoch(), **times} for t in thread_ids],
        )
        epochs = self._epochs(connection, thread_ids)
        chunks: dict[tuple[str, bytes], bytes | memoryview] = {}
        rows = defaultdict[str, list[dict[str, Any]]](list)
        for put in batch:
            known = self.stored.get(put.thread_id, put.checkpoint_ns, epochs[put.thread_id])
            for digest, data in put.chunks.items():
                if digest not in known:
                    chunks[put.thread_id, digest] = data
            if isinstance(put, PutCheckpoint):
                rows["checkpoints"].append(put.row)
            else:
                rows["writes"] += put.rows
                rows["special"] += put.special_rows
        chunk_rows = [
            {"thread_id": thread_id, "digest": digest, "data": data}
            for (thread_id, digest), data in chunks.items()
        ]
        for statement, parameters in (
            (self.queries.put_chunk, chunk_rows),
            (self.queries.put_checkpoint, rows["checkpoints"]),
            (self.queries.put_write, rows["writes"]),
            (self.queries.put_special_write, rows["special"]),
        ):
            if parameters:
                connection.execute(statement, parameters)
        return epochs

    def _epochs(self, connection: sa.Connection, thread_ids: Sequence[str]) -> dict[str, int]:
        epochs: dict[str, int] = {}
        for some in batched(thread_ids, self.queries.dialect.max_list):
            result = connection.execute(self.queries.epochs, {"thread_ids": some})
            epochs.update((thread_id, epoch) for thread_id, epoch in result)
        return epochs

    def learn(self, batch: Sequence[Put], epochs: Mapping[str, int]) -> None:
        """Remember a batch whose transaction has committed."""
        for put in batch:
            self.cache.put_many(put.chunks.items())
            if isinstance(put, PutCheckpoint):
                self.stored.learn(
                    put.thread_id,
                    put.checkpoint_ns,
                    epochs[put.thread_id],
                    frozenset(put.chunks),
                )

    def get(
        self,
        connection: sa.Connection,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        sends_channel: str,
    ) -> StoredCheckpoint | None:
        """One checkpoint, the namespace's latest where no id is given, or `None`."""
        key = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
        statement = self.queries.latest_checkpoint
        if checkpoint_id is not None:
            key["checkpoint_id"] = checkpoint_id
            statement = self.queries.checkpoint

        def rows() -> list[StoredCheckpoint]:
            found = [stored_checkpoint(row) for row in connection.execute(statement, key)]
            for one in found:
                full_key = {**key, "checkpoint_id": one.checkpoint_id}
                result = connection.execute(self.queries.writes_of_one, full_key)
                one.writes = [stored_write(row) for row in result]
            self._add_sends(connection, found, sends_channel)
            return found

        found = self._with_chunks(connection, rows)
        if not found:
            return None
        one = found[0]
        if one.epoch is not None:
            self.stored.learn(thread_id, checkpoint_ns, one.epoch, frozenset(one.chunks))
        return one

    def page(
        self,
        connection: sa.Connection,
        statement: sa.Select[Any],
        parameters: Mapping[str, Any],
        sends_channel: str,
    ) -> tuple[list[StoredCheckpoint], bool]:
        """One page of a list, as `Queries.page` built it.

        Returns:
            The checkpoints, and whether the page was cut short because their values are large.
        """
        cut = False

        def rows() -> list[StoredCheckpoint]:
            nonlocal cut
            found = [stored_checkpoint(row) for row in connection.execute(statement, parameters)]
            count = _fitting(found)
            cut = count < len(found)
            found = found[:count]
            self._add_writes(connection, found)
            self._add_sends(connection, found, sends_channel)
            return found

        return self._with_chunks(connection, rows), cut

    def _add_writes(self, connection: sa.Connection, found: list[StoredCheckpoint]) -> None:
        if not found:
            return
        by_key = {(one.thread_id, one.checkpoint_ns, one.checkpoint_id): one for one in found}
        result = connection.execute(self.queries.writes_of_many, {"keys": list(by_key)})
        for row in result:
            by_key[row.thread_id, row.checkpoint_ns, row.checkpoint_id].writes.append(stored_write(row))

    def _add_sends(
        self, connection: sa.Connection, found: list[StoredCheckpoint], sends_channel: str
    ) -> None:
        """LangGraph kept pending sends with the parent until version 4 of its format."""
        by_parent = defaultdict[tuple[str, str, str], list[StoredCheckpoint]](list)
        for one in found:
            if one.parent_checkpoint_id is not None and (
                isinstance(one.manifest, Manifest) and one.manifest.version < 4  # noqa: PLR2004
            ):
                key = (one.thread_id, one.checkpoint_ns, one.parent_checkpoint_id)
                by_parent[key].append(one)
        if not by_parent:
            return
        parameters = {"keys": list(by_parent), "channels": [sends_channel]}
        for row in connection.execute(self.queries.channel_writes_of_many, parameters):
            for one in by_parent[row.thread_id, row.checkpoint_ns, row.checkpoint_id]:
                one.sends.append(stored_write(row))

    def _with_chunks(
        self, connection: sa.Connection, rows: Callable[[], list[StoredCheckpoint]]
    ) -> list[StoredCheckpoint]:
        """Checkpoints with their chunks.

        Where a chunk is missing, the rows are read once more before that counts as damage: a prune
        may have committed between the two queries.
        """
        found = rows()
        if not self._add_chunks(connection, found):
            found = rows()
            self._add_chunks(connection, found)
        return found

    def _add_chunks(self, connection: sa.Connection, found: list[StoredCheckpoint]) -> bool:
        """Give the checkpoints their chunks; whether all were found."""
        trees = [tree for one in found for tree in one.trees()]
        threads = sorted({one.thread_id for one in found})
        chunks, complete = self.chunks_of(connection, threads, trees)
        for one in found:
            one.chunks = chunks
        return complete

    def chunks_of(
        self,
        connection: sa.Connection,
        thread_ids: Sequence[str],
        trees: Iterable[Tree],
        *,
        nodes_only: bool = False,
    ) -> tuple[dict[bytes, bytes], bool]:
        """All chunks of some trees, level by level: from the cache, the rest from the database.

        Args:
            connection: Where to read.
            thread_ids: The threads that the trees belong to.
            trees: The trees.
            nodes_only: Leave out the chunks of the data itself.

        Returns:
            The chunks whose bytes match their digests, nodes included, and whether these are all.
        """
        chunks: dict[bytes, bytes] = {}
        complete = True
        levels = [(tree.digests, tree.depth) for tree in trees]
        while levels := [level for level in levels if level[1] or not nodes_only]:
            wanted = {d for digests, _ in levels for d in split_digests(digests)} - chunks.keys()
            chunks |= self.cache.get_many(wanted)
            missing = wanted - chunks.keys()
            if missing:
                read = self._read_chunks(connection, thread_ids, missing)
                self.cache.put_many(read.items())
                chunks |= read
                complete = complete and len(read) == len(missing)
            levels = [
                (chunks[node], depth - 1)
                for digests, depth in levels
                if depth
                for node in split_digests(digests)
                if node in chunks
            ]
        return chunks, complete

    def _read_chunks(
        self, connection: sa.Connection, thread_ids: Sequence[str], digests: Iterable[bytes]
    ) -> dict[bytes, bytes]:
        """Chunks from the database, without those whose bytes do not match their digest."""
        found: dict[bytes, bytes] = {}
        for some in batched(sorted(digests), self.queries.dialect.max_list):
            parameters = {"thread_ids": list(thread_ids), "digests": some}
            for digest, data in connection.execute(self.queries.chunks, parameters):
                if digest_of(data) == digest:
                    found[digest] = data
        return found


def new_epoch() -> int:
    """The epoch of a new thread: random, so that no knowledge of a deleted one fits it."""
    return secrets.randbits(62)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _fitting(found: Sequence[StoredCheckpoint]) -> int:
    """How many of the checkpoints a page takes, at least one."""
    size = 0
    for count, one in enumerate(found):
        size += sum(tree.size for tree in one.trees())
        if size > PAGE_BYTES and count:
            return count
    return len(found)


def stored_checkpoint(row: sa.Row[Any]) -> StoredCheckpoint:
    manifest: Manifest | FormatError
    try:
        manifest = decode_manifest(row.manifest)
    except FormatError as exc:
        manifest = exc
    return StoredCheckpoint(
        row.thread_id,
        row.checkpoint_ns,
        row.checkpoint_id,
        row.parent_checkpoint_id,
        row.epoch,
        manifest,
    )


def stored_write(row: sa.Row[Any]) -> StoredWrite:
    content: bytes | Tree | FormatError
    try:
        content = decode_content(row.data, chunked=row.chunked)
    except FormatError as exc:
        content = exc
    return StoredWrite(
        row.checkpoint_id, row.task_id, row.idx, row.task_path, row.channel, row.type, content
    )
