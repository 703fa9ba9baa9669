"""The chunks of one thread, all read and hashed again, and what is wrong with trees that name them.

Trees are followed, not put together: each node is looked at once, however many values name it, and
what is remembered of a chunk is how long it is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Final

from checkpointer.chunking import (
    DIGEST_SIZE,
    MIN_CHUNK,
    MIN_NODE,
    ChunkError,
    Tree,
    digest_of,
    split_digests,
)
from checkpointer.execution import Connection
from checkpointer.problems import ProblemKind
from checkpointer.quoting import quoted
from checkpointer.store import Named, Store, batched

CHUNKS: Final = 1024
"""Chunks read at once, about; nodes a quarter of that. 1 MB as a rule, and 8 MB at most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a chunk; without a digest, with a tree."""

    kind: ProblemKind
    digest: bytes
    detail: str


@dataclass(slots=True)
class _Part:
    """What stands below a node, or below many side by side.

    Attributes:
        size: How many bytes.
        ragged: Whether a chunk is shorter than all must be but the last of its level.
        ends_short: Whether the last of a level is so short.
        faults: What is wrong there. Once something above has told of them, one stands for all.
    """

    size: int = 0
    ragged: bool = False
    ends_short: bool = False
    faults: list[Fault] = field(default_factory=list)

    def told(self) -> list[Fault]:
        """The faults that nothing above has told of yet, or the one that stands for all."""
        faults = self.faults[:]
        del self.faults[1:]
        return faults


class Chunks:
    """The chunks of a thread, and what trees make of them.

    Args:
        connection: Where to read.
        store: The statements.
        thread_id: The thread.
        expected: About how many they are.

    Attributes:
        count: How many are stored.
        bytes: Their bytes.
        altered: What was found in place of those whose bytes do not have their digest.
        unnamed: The digests of those that no tree looked at so far has named.
        certain: Whether every node that a tree names can be read.
    """

    def __init__(self, connection: Connection, store: Store, thread_id: str, expected: int) -> None:
        self._connection, self._store, self._thread_id = connection, store, thread_id
        self._sizes: dict[bytes, int] = {}
        self._parts: dict[Named, _Part] = {}
        self.altered: dict[bytes, str] = {}
        self.bytes = 0
        for low, high in ranges(expected):
            given = {"thread_id": thread_id, "low": low, "high": high}
            for digest, data in connection.fetch(store.queries.chunks_between, given):
                if not isinstance(data, bytes):  # SQLite stores anything in any column
                    self.altered[digest] = f"found {quoted(data)}, expected bytes"
                    continue
                self.bytes += len(data)
                if (found := digest_of(data)) == digest:
                    self._sizes[digest] = len(data)
                else:
                    self.altered[digest] = f"found {len(data)} bytes with the digest {found.hex()}"
        self.unnamed = self._sizes.keys() | self.altered.keys()
        self.count = len(self.unnamed)
        self.certain = True

    def follow(self, trees: Iterable[Tree]) -> None:
        """Read the nodes of trees that are to be looked at."""
        self._follow((digest, t.depth) for t in trees for digest in split_digests(t.digests))

    def _follow(self, named: Iterable[Named]) -> None:
        nodes = {one for one in named if one[1] and one[0] in self._sizes}
        for some in batched(sorted(nodes - self._parts.keys()), CHUNKS // 4):
            digests = [digest for digest, _ in some]
            given = {"thread_ids": [self._thread_id], "digests": digests}
            rows = self._connection.fetch(self._store.queries.chunks, given)
            data = {row.digest: row.data for row in rows}
            below: dict[Named, list[Named]] = {}
            for digest, depth in some:
                try:
                    children = split_digests(data[digest])
                except ChunkError as exc:
                    self.certain = False
                    fault = Fault(ProblemKind.CONTRADICTORY_TREE, digest, str(exc))
                    self._parts[digest, depth] = _Part(faults=[fault])
                else:
                    below[digest, depth] = [(child, depth - 1) for child in children]
            self._follow(chain.from_iterable(below.values()))
            for node, level in below.items():
                self._parts[node] = part = self._sum(level)
                part.ends_short |= len(level) < MIN_NODE

    def faults(self, tree: Tree) -> list[Fault]:
        """What is wrong with a tree that was followed."""
        part = self._sum((digest, tree.depth) for digest in split_digests(tree.digests))
        size = len(tree.head) + part.size
        if not part.faults and (size != tree.size or part.ragged):
            ragged = ", with too short ones between them" if part.ragged else ""
            detail = f"the chunks hold {size} bytes{ragged}, expected {tree.size}"
            return [Fault(ProblemKind.CONTRADICTORY_TREE, b"", detail)]
        return list(dict.fromkeys(part.faults))

    def _sum(self, named: Iterable[Named]) -> _Part:
        whole = _Part()
        for one in named:
            digest, depth = one
            self.unnamed.discard(digest)
            size = self._sizes.get(digest)
            whole.ragged |= whole.ends_short
            if size is None:
                whole.faults.append(self._fault(digest))
                self.certain = self.certain and not depth
            elif depth:
                part = self._parts[one]
                whole.size += part.size
                whole.ragged |= part.ragged
                whole.ends_short = part.ends_short
                whole.faults += part.told()
            else:
                whole.size += size
                whole.ends_short = size < MIN_CHUNK
        return whole

    def _fault(self, digest: bytes) -> Fault:
        if digest in self.altered:
            return Fault(ProblemKind.ALTERED_CHUNK, digest, self.altered[digest])
        return Fault(ProblemKind.MISSING_CHUNK, digest, "no row has this digest")


def ranges(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Ranges of digests, each from its first bytes to the next one's, of `CHUNKS` each.

    Digests are spread evenly, so that ranges of one width hold as many.
    """
    number = -(-count // CHUNKS)
    if not number:
        return
    edges = [((i << 32) // number).to_bytes(4, "big") for i in range(1, number)]
    # Greater than any digest.
    yield from pairwise([b"", *edges, b"\xff" * (DIGEST_SIZE + 1)])
