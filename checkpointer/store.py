"""Checkpoints, writes and chunks on a given connection: verified rows out, and what is remembered.

Functions here are units of work for `Database.read` and `Database.write`. They know bytes and
strings; what the bytes mean is the saver's affair.
"""

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

from checkpointer.arrays import AnySelect, chunks_below
from checkpointer.cache import ChunkCache, LastCheckpoint, LastCheckpoints
from checkpointer.chunking import DIGEST_SIZE, Cut, Tree, digest_of, split_digests, union
from checkpointer.execution import Connection
from checkpointer.manifest import Manifest
from checkpointer.predicates import keys
from checkpointer.queries import Queries
from checkpointer.records import (
    Namespace,
    Put,
    PutCheckpoint,
    StoredCheckpoint,
    StoredWrite,
)

T = TypeVar("T")
Named: TypeAlias = tuple[bytes, int]
"""The digest of a chunk, and how many levels stand below it: 0 for a chunk of the data itself."""

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
                epoch = epochs[put.namespace.thread_id]
                self._learn(put.namespace, epoch, put.last, put.cuts)

    def learn_read(self, stored: StoredCheckpoint, versions: Mapping[str, Any]) -> None:
        """Remember a checkpoint that was read, all its channels assembled, with their versions."""
        if stored.epoch is None or not isinstance(stored.manifest, Manifest):
            return
        channels = {
            name: (value, stored.cuts[tree].digests if (tree := value.tree()) else frozenset())
            for name, value in stored.manifest.channels.items()
        }
        digests = union([frozenset(stored.chunks), *(named for _, named in channels.values())])
        last = LastCheckpoint(stored.checkpoint_id, dict(versions), channels, digests)
        self._learn(stored.namespace, stored.epoch, last, stored.cuts.values())

    def _learn(
        self, namespace: Namespace, epoch: int, last: LastCheckpoint, cuts: Collection[Cut]
    ) -> None:
        known = self.last.get(namespace)
        replaced = known[1].trees() if known else set[Tree]()
        if cuts or replaced:
            self.cache.put_cuts(cuts, replaced - last.trees())
        self.last.learn(namespace, epoch, last)

    def get(
        self,
        connection: Connection,
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
            rows = connection.fetch(statement, key)
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
        connection: Connection,
        statement: AnySelect,
        parameters: Mapping[str, Any],
        sends_channel: str,
    ) -> tuple[list[StoredCheckpoint], bool]:
        """One page of a list, as `Queries.page` built it, from one snapshot.

        Returns:
            The checkpoints, and whether more may follow.
        """
        rows = connection.fetch(statement, parameters)
        found = [StoredCheckpoint.from_row(row) for row in rows]
        count = _fitting(found)
        more = count < len(found) or len(found) == parameters["limit"]
        found = found[:count]
        self._add_writes(connection, found)
        self._add_sends(connection, found, sends_channel)
        self._add_chunks(connection, found)
        return found, more

    def _add_writes(self, connection: Connection, found: list[StoredCheckpoint]) -> None:
        if not found:
            return
        by_key = {(one.thread_id, one.checkpoint_ns, one.checkpoint_id): one for one in found}
        for row in connection.fetch(self.queries.writes_of_many, keys(by_key)):
            one = by_key.get((row.thread_id, row.checkpoint_ns, row.checkpoint_id))
            if one is not None:
                one.writes.append(StoredWrite.from_row(row))

    def _add_sends(
        self, connection: Connection, found: list[StoredCheckpoint], sends_channel: str
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
        for row in connection.fetch(self.queries.channel_writes_of_many, parameters):
            parent = (row.thread_id, row.checkpoint_ns, row.checkpoint_id)
            for one in by_parent.get(parent, ()):
                one.sends.append(StoredWrite.from_row(row))

    def _add_chunks(self, connection: Connection, found: list[StoredCheckpoint]) -> bool:
        """Give the checkpoints their chunks; whether all were found."""
        trees = {tree for one in found for tree in one.trees()}
        threads = sorted({one.thread_id for one in found})
        cuts = self.cache.get_cuts(trees)
        chunks, complete = self.chunks_of(connection, threads, trees - cuts.keys())
        for one in found:
            one.chunks, one.cuts = chunks, cuts
        return complete

    def chunks_of(
        self,
        connection: Connection,
        thread_ids: Sequence[str],
        trees: Iterable[Tree],
        *,
        nodes_only: bool = False,
    ) -> tuple[dict[bytes, bytes], bool]:
        """All chunks of some trees: from the cache, and the rest from the database.

        Args:
            connection: Where to read.
            thread_ids: The threads that the trees belong to.
            trees: The trees.
            nodes_only: Leave out the chunks of the data itself.

        Returns:
            The chunks whose bytes match their digests, nodes included, and whether these are all.
        """
        chunks: dict[bytes, bytes] = {}
        read: Mapping[bytes, bytes] = {}
        complete = True
        wanted = {(d, tree.depth) for tree in trees for d in split_digests(tree.digests)}
        missing: set[Named] = set()
        while True:
            wanted = {named for named in wanted if named[1] or not nodes_only}
            unknown = {digest for digest, _ in wanted} - chunks.keys()
            chunks |= {digest: read[digest] for digest in unknown & read.keys()}
            chunks |= self.cache.get_many(unknown - read.keys())
            missing |= {named for named in wanted if named[0] not in chunks}
            nodes = {named for named in wanted if named[1] and named[0] in chunks}
            # A chunk that is no list of digests is no node; joining the tree tells so.
            odd = {(node, depth) for node, depth in nodes if len(chunks[node]) % DIGEST_SIZE}
            complete = complete and not odd
            wanted = {
                (digest, depth - 1)
                for node, depth in nodes - odd
                for digest in split_digests(chunks[node])
            }
            if not wanted:
                if not missing:
                    return chunks, complete
                # Only once all that is at hand was followed, so that one question asks for all.
                # Where nothing is at hand, all below is missing too; elsewhere, hardly any of it.
                follow = not chunks and not nodes_only
                read = self._read_chunks(connection, thread_ids, missing, follow=follow)
                self.cache.put_many(read.items())
                wanted = {named for named in missing if named[0] in read}
                complete = complete and len(wanted) == len(missing)
                missing = set()

    def stored(
        self, connection: Connection, thread_id: str, digests: Iterable[bytes]
    ) -> set[bytes]:
        """Which of a thread's chunks stand in the database, whole."""
        named = [(digest, 0) for digest in digests]
        return set(self._read_chunks(connection, [thread_id], named, follow=False))

    def _read_chunks(
        self,
        connection: Connection,
        thread_ids: Sequence[str],
        named: Iterable[Named],
        *,
        follow: bool,
    ) -> dict[bytes, bytes]:
        """Chunks from the database, without those whose bytes do not match their digest.

        Args:
            connection: Where to read.
            thread_ids: The threads that they belong to.
            named: Which.
            follow: Read those below them as well, if the database can follow nodes by itself.
        """
        found: dict[bytes, bytes] = {}
        dialect = self.queries.dialect
        follow = follow and dialect.has_arrays
        statement = chunks_below(dialect) if follow else self.queries.chunks
        for some in batched(sorted(named), dialect.max_list):
            digests, depths = map(list, zip(*some, strict=True))
            given = {"given_digest": digests, "given_depth": depths}
            parameters = given if follow else {"digests": digests}
            rows = connection.fetch(statement, {"thread_ids": list(thread_ids), **parameters})
            found |= {digest: data for digest, data in rows if _is_whole(digest, data)}
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


def _is_whole(digest: bytes, data: object) -> bool:
    """Whether a chunk is what its digest names; SQLite stores anything in any column."""
    return isinstance(data, bytes) and digest_of(data) == digest


def _fitting(found: Sequence[StoredCheckpoint]) -> int:
    """How many of the checkpoints a page takes, at least one."""
    size = 0
    for count, one in enumerate(found):
        size += one.size
        if size > PAGE_BYTES and count:
            return count
    return len(found)
