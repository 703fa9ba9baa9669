"""Bytes to chunks and back: content-defined chunking, digests and trees. Pure functions.

Long bytes are cut by FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for
Data Deduplication Based Storage Systems", IEEE TPDS 31(9), 2020), so that an append or an edit
changes the chunks near it and no others. Each chunk is named by its digest. A long list of digests
is cut in turn into nodes, which are stored as chunks as well: a tree, as in git and restic.

The constants here are part of the storage format (docs/format.md) and pinned by golden vectors.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain
from typing import Final

from pyfastcdc import FastCDC

DIGEST_SIZE: Final = 20
"""Bytes of a digest: BLAKE2b-160. Finding a collision takes about 2^80 hashes."""

HEAD_SIZE: Final = 16
"""Bytes at the front of a long value that stay in its tree instead of in a chunk.

Serialized containers carry their length there, so that every append changes them; kept apart, the
first chunk stays the same from checkpoint to checkpoint.
"""

MIN_CHUNK: Final = 256
AVERAGE_CHUNK: Final = 1024
MAX_CHUNK: Final = 8192

MAX_ROOT: Final = 16
"""Digests that a tree's root may hold; more are moved into nodes, one level deeper."""

NODE_MASK: Final = 0x0F
"""A node ends after a digest whose first byte has these bits clear: 16 digests on average."""

MIN_NODE: Final = 2
MAX_NODE: Final = 64
"""Digests that a node holds, but for the last of a level: two at least, so that each level has at
most half as many as the one below."""


MAX_SIZE: Final = 512 << 20
"""Bytes of a value at most; a longer one is refused, and a stored tree that claims more is damaged.

A put travels in one message, of which PostgreSQL takes 1 GB. And a tree may name one chunk many
times: without a bound, a few small rows could ask for any amount of memory.
"""

MAX_DEPTH: Final = 18
"""Levels of nodes that a tree may have: with the least chunks and nodes, so many are enough for
`MAX_SIZE`. A stored tree that claims more is damaged."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Long bytes, by reference to the chunks that hold them.

    Attributes:
        head: The first `HEAD_SIZE` bytes themselves.
        size: The length of all the bytes, the head included.
        depth: 0 where `digests` name chunks of the bytes; n where they name nodes n levels above.
        digests: The root's digests, `DIGEST_SIZE` bytes each, one after the other.
    """

    head: bytes
    size: int
    depth: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a tree, in order.

    Attributes:
        digests: The digests of its chunks or nodes.
        ends: Where each ends: for chunks the offset in the bytes, for nodes how many digests of the
            level below come before.
    """

    digests: list[bytes]
    ends: list[int]

    def first(self, count: int) -> "Level":
        """A level of its own that holds the first `count`."""
        return Level(self.digests[:count], self.ends[:count])


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Long bytes, and where they are cut.

    Attributes:
        data: The bytes.
        tree: The tree that names their chunks.
        levels: The levels of the tree, the lowest first, the root last.
        digests: All digests of these.
    """

    data: bytes
    tree: Tree
    levels: Sequence[Level]
    digests: frozenset[bytes]


class ChunkError(Exception):
    """A chunk that a tree names is missing or altered, or the tree contradicts its chunks.

    Attributes:
        digest: The chunk's digest, or `b""` where the tree itself is at fault.
    """

    def __init__(self, digest: bytes, reason: str) -> None:
        super().__init__(f"chunk {digest.hex()} {reason}" if digest else reason)
        self.digest = digest


def digest_of(data: bytes | memoryview) -> bytes:
    """The name of a chunk: the BLAKE2b hash of its bytes, `DIGEST_SIZE` bytes."""
    return blake2b(data, digest_size=DIGEST_SIZE).digest()


def split(data: bytes) -> tuple[Tree, dict[bytes, bytes]]:
    """Cut `data`, of more than `HEAD_SIZE` bytes, into chunks.

    Returns:
        The tree that names the chunks, and the chunks by digest, nodes included.
    """
    whole, chunks = cut(data)
    return whole.tree, chunks


def cut(data: bytes, before: Cut | None = None) -> tuple[Cut, dict[bytes, bytes]]:
    """Cut `data`, of more than `HEAD_SIZE` bytes, as `split` does.

    Args:
        data: The bytes.
        before: Other bytes that `split` or this function has cut. As far as `data` begins as these
            do, it is compared with them instead of being cut and hashed again.

    Returns:
        The bytes with all their chunks' digests, and the chunks by digest, nodes included, without
        those taken over from `before`. Where they are cut does not depend on `before`.
    """
    kept = _kept(data, before) if before else 0
    level = before.levels[0].first(kept) if before else Level([], [])
    levels = [level]
    chunks: dict[bytes, bytes] = {}
    start = level.ends[-1] if kept else HEAD_SIZE
    # A chunker is cheap to make and not safe to share between threads.
    chunker = FastCDC(AVERAGE_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK)
    for piece in chunker.cut_buf(memoryview(data)[start:]):
        end = start + piece.length
        _add(level, data[start:end], end, chunks)
        start = end
    while len(level.digests) > MAX_ROOT:
        below, level = level, Level([], [])
        if before and len(levels) < len(before.levels):
            # Those whose digests are all kept: where a node ends, no later digest has a say.
            above = before.levels[len(levels)]
            kept = bisect_right(above.ends, kept)
            level = above.first(kept)
        end = level.ends[-1] if level.ends else 0
        for group in _group(below.digests[end:]):
            end += len(group)
            _add(level, b"".join(group), end, chunks)
        levels.append(level)
    tree = Tree(data[:HEAD_SIZE], len(data), len(levels) - 1, b"".join(level.digests))
    return Cut(data, tree, levels, _all_digests(levels)), chunks


def _kept(data: bytes, before: Cut) -> int:
    """How many of the first chunks of `before` are chunks of `data` too.

    A chunk ends where its own bytes and the next one say so, or where the data end. So it is one if
    it and the chunk after it stand in `data` at the same place.
    """
    ends = before.levels[0].ends
    low, high, start = 0, len(ends), HEAD_SIZE
    while low < high:
        middle = (low + high + 1) // 2
        end = ends[middle - 1]
        if data.startswith(before.data[start:end], start):
            low, start = middle, end
        else:
            high = middle - 1
    return max(low - 1, 0)


def _add(level: Level, chunk: bytes, end: int, chunks: dict[bytes, bytes]) -> None:
    digest = digest_of(chunk)
    chunks[digest] = chunk
    level.digests.append(digest)
    level.ends.append(end)


def _all_digests(levels: Iterable[Level]) -> frozenset[bytes]:
    return frozenset(chain.from_iterable(level.digests for level in levels))


def assemble(tree: Tree, chunks: Mapping[bytes, bytes]) -> Cut:
    """Put the bytes of `tree` together again, and tell where they are cut.

    Raises:
        ChunkError: A chunk is missing, is too short or is no node where one is named, or the chunks
            do not add up to the tree's size.
    """
    digests = split_digests(tree.digests)
    levels = []
    for _ in range(tree.depth):
        nodes = _get_all(chunks, digests, MIN_NODE * DIGEST_SIZE)
        ends = [*accumulate(len(node) // DIGEST_SIZE for node in nodes)]
        # Told before the next level is put together: nodes that name each other again and again
        # can make each level many times as long as the one above.
        if ends and ends[-1] > tree.size // MIN_CHUNK + 1:
            raise ChunkError(b"", f"found {ends[-1]} chunks in a value of {tree.size} bytes")
        levels.append(Level(digests, ends))
        digests = [*chain.from_iterable(map(split_digests, nodes))]
    pieces = _get_all(chunks, digests, MIN_CHUNK)
    ends = [*accumulate(map(len, pieces), initial=len(tree.head))]
    if ends[-1] != tree.size:
        raise ChunkError(b"", f"the chunks hold {ends[-1]} bytes, expected {tree.size}")
    levels.append(Level(digests, ends[1:]))
    levels.reverse()
    return Cut(b"".join([tree.head, *pieces]), tree, levels, _all_digests(levels))


def join(tree: Tree, chunks: Mapping[bytes, bytes]) -> bytes:
    """Put the bytes of `tree` together again.

    Raises:
        ChunkError: As `assemble` does.
    """
    return assemble(tree, chunks).data


def union(sets: Iterable[frozenset[bytes]]) -> frozenset[bytes]:
    """The union of sets of digests, which is one of them if the others are empty."""
    filled = [digests for digests in sets if digests]
    return filled[0] if len(filled) == 1 else frozenset[bytes]().union(*filled)


def split_digests(digests: bytes) -> list[bytes]:
    """The digests that stand one after the other in a root or a node.

    Raises:
        ChunkError: The length is no multiple of `DIGEST_SIZE`.
    """
    if len(digests) % DIGEST_SIZE:
        raise ChunkError(b"", f"a list of digests has {len(digests)} bytes, not n x {DIGEST_SIZE}")
    return [digests[i : i + DIGEST_SIZE] for i in range(0, len(digests), DIGEST_SIZE)]


def _get_all(chunks: Mapping[bytes, bytes], digests: Iterable[bytes], least: int) -> list[bytes]:
    """The chunks of one level, each but the last of so many bytes at least."""
    try:
        found = [chunks[digest] for digest in digests]
    except KeyError as exc:
        raise ChunkError(exc.args[0], "is missing or altered") from None
    # Or a later value that begins as this one does would go on with more chunks than it may have.
    if (shortest := min(map(len, found[:-1]), default=least)) < least:
        raise ChunkError(b"", f"found a chunk of {shortest} bytes, expected {least} or the last")
    return found


def _group(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Cut a list of digests where its content says so, so that an append changes the last node."""
    group: list[bytes] = []
    for digest in digests:
        group.append(digest)
        if len(group) == MAX_NODE or (len(group) >= MIN_NODE and not digest[0] & NODE_MASK):
            yield group
            group = []
    if group:
        yield group
