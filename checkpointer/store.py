"""Checkpoints, writes and chunks on a given connection: verified rows out, and what is remembered.

Functions here are units of work for `Database.read` and `Database.write`. They know bytes and
strings; what the bytes mean is the saver's affair.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from checkpointer.cache import ChunkCache, LastCheckpoint, LastCheckpoints
from checkpointer.chunking import Tree, digest_of, digests_of, split_digests
from checkpointer.manifest import Manifest
from checkpointer.queries import AnySelect, Queries, keys
from checkpointer.records import (
    Namespace,
    Put,
    PutCheckpoint,
    StoredCheckpoint,
    StoredWrite,
)

T = TypeVar("T")
LIFE_SHIFT: Final = 20
"""Bits of an epoch that count deletions; those above tell a thread from one deleted before."""

PAGE_BYTES: Final = 32 << 20
"""Logical bytes of values after which a page of a list ends, however few its checkpoints."""


@dataclass(frozen=True, slots=True)
class Store:
    """The statements and memories that work on a connection needs."""

    queries: Queries
    cache: ChunkCache
    last: LastCheckpoints

    def learn(self, batch: Sequence[Put], epochs: Mapping[str, int]) -> None:
        """Remember a batch whose transaction has committed."""
        for put in batch:
            self.cache.put_many(put.chunks.items())
            if isinstance(put, PutCheckpoint):
                self.last.learn(put.namespace, epochs[put.namespace.thread_id], put.last)

    def learn_read(self, stored: StoredCheckpoint, versions: Mapping[str, Any]) -> None:
        """Remember a checkpoint that was read, with the versions of its channels."""
        if stored.epoch is None or not isinstance(stored.manifest, Manifest):
            return
        channels = {
            name: (value, digests_of(value.tree(), stored.chunks))
            for name, value in stored.manifest.channels.items()
        }
        digests = frozenset(stored.chunks)
        last = LastCheckpoint(stored.checkpoint_id, dict(versions), channels, digests)
        self.last.learn(stored.namespace, stored.epoch, last)

    def get(
        self,
        connection: sa.Connection,
        namespace: Namespace,
        checkpoint_id: str | None,
        sends_channel: str,
    ) -> StoredCheckpoint | None:
        """One checkpoint, the namespace's latest where no id is given, or `None`.

        Where a chunk is missing, the row is read again before that counts as damage: a prune may
        have committed between the two statements.
        """
        key = namespace.parameters()
        statement = self.queries.latest_and_writes
        if checkpoint_id is not None:
            key["checkpoint_id"] = checkpoint_id
            statement = self.queries.checkpoint_and_writes
        before: list[Tree] | None = None
        while True:
            rows = connection.execute(statement, key).all()
            if not rows:
                return None
            one = next(StoredCheckpoint.from_row(row) for row in rows if row.manifest is not None)
            one.writes = [StoredWrite.from_row(row) for row in rows if row.task_id is not None]
            self._add_sends(connection, [one], sends_channel)
            trees = list(one.trees())
            if self._add_chunks(connection, [one]) or trees == before:
                return one
            before = trees

    def page(
        self,
        connection: sa.Connection,
        statement: AnySelect,
        parameters: Mapping[str, Any],
        sends_channel: str,
    ) -> tuple[list[StoredCheckpoint], bool]:
        """One page of a list, as `Queries.page` built it, from one snapshot.

        Returns:
            The checkpoints, and whether more may follow.
        """
        result = connection.execute(statement, parameters)
        found = [StoredCheckpoint.from_row(row) for row in result]
        count = _fitting(found)
        more = count < len(found) or len(found) == parameters["limit"]
        found = found[:count]
        self._add_writes(connection, found)
        self._add_sends(connection, found, sends_channel)
        self._add_chunks(connection, found)
        return found, more

    def _add_writes(self, connection: sa.Connection, found: list[StoredCheckpoint]) -> None:
        if not found:
            return
        by_key = {(one.thread_id, one.checkpoint_ns, one.checkpoint_id): one for one in found}
        for row in connection.execute(self.queries.writes_of_many, keys(by_key)):
            one = by_key.get((row.thread_id, row.checkpoint_ns, row.checkpoint_id))
            if one is not None:
                one.writes.append(StoredWrite.from_row(row))

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
        parameters = {**keys(by_parent), "channels": [sends_channel]}
        for row in connection.execute(self.queries.channel_writes_of_many, parameters):
            parent = (row.thread_id, row.checkpoint_ns, row.checkpoint_id)
            for one in by_parent.get(parent, ()):
                one.sends.append(StoredWrite.from_row(row))

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
            rows = connection.execute(self.queries.chunks, parameters)
            found |= {digest: data for digest, data in rows if digest_of(data) == digest}
        return found


def new_epoch() -> int:
    """The epoch of a new thread, or of one whose values were replaced: it begins another life.

    Random, so that no knowledge of another life fits it. What deletes chunks adds 1.
    """
    return secrets.randbits(62 - LIFE_SHIFT) << LIFE_SHIFT


def same_life(one: int, other: int) -> bool:
    """Whether two epochs of a thread differ by deletions of chunks alone."""
    return one >> LIFE_SHIFT == other >> LIFE_SHIFT


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
