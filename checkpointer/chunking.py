"""Bytes to chunks and back: content-defined chunking, digests and trees. Pure functions.

Long bytes are cut by FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for
Data Deduplication Based Storage Systems", IEEE TPDS 31(9), 2020), so that an append or an edit
changes the chunks near it and no others. Each chunk is named by its digest. A long list of digests
is cut in turn into nodes, which are stored as chunks as well: a tree, as in git and restic.

The constants here are part of the storage format (docs/format.md) and pinned by golden vectors.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
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

MAX_DEPTH: Final = 16
"""Levels of nodes that a tree may have; a stored tree that claims more is damaged."""


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


def split(data: bytes) -> tuple[Tree, dict[bytes, memoryview | bytes]]:
    """Cut `data`, of more than `HEAD_SIZE` bytes, into chunks.

    Returns:
        The tree that names the chunks, and the chunks by digest, nodes included. The chunks of the
        data itself are views into `data`.
    """
    # A chunker is cheap to make and not safe to share between threads.
    chunker = FastCDC(AVERAGE_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK)
    chunks: dict[bytes, memoryview | bytes] = {}
    digests: list[bytes] = []
    for piece in chunker.cut_buf(memoryview(data)[HEAD_SIZE:]):
        digest = digest_of(piece.data)
        chunks[digest] = piece.data
        digests.append(digest)
    depth = 0
    while len(digests) > MAX_ROOT:
        nodes = [b"".join(group) for group in _group(digests)]
        digests = [digest_of(node) for node in nodes]
        chunks.update(zip(digests, nodes, strict=True))
        depth += 1
    return Tree(data[:HEAD_SIZE], len(data), depth, b"".join(digests)), chunks


def join(tree: Tree, chunks: Mapping[bytes, bytes]) -> bytes:
    """Put the bytes of `tree` together again.

    Raises:
        ChunkError: A chunk is missing, or the chunks do not add up to the tree's size.
    """
    digests = split_digests(tree.digests)
    for _ in range(tree.depth):
        digests = [d for node in digests for d in split_digests(_get(chunks, node))]
    data = b"".join([tree.head, *(_get(chunks, digest) for digest in digests)])
    if len(data) != tree.size:
        raise ChunkError(b"", f"the chunks hold {len(data)} bytes, expected {tree.size}")
    return data


def digests_of(tree: Tree | None, chunks: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """All digests that `tree` names, nodes included.

    Raises:
        ChunkError: A node is missing.
    """
    if tree is None:
        return frozenset()
    level = split_digests(tree.digests)
    found = set(level)
    for _ in range(tree.depth):
        level = [d for node in level for d in split_digests(_get(chunks, node))]
        found.update(level)
    return frozenset(found)


def split_digests(digests: bytes) -> list[bytes]:
    """The digests that stand one after the other in a root or a node.

    Raises:
        ChunkError: The length is no multiple of `DIGEST_SIZE`.
    """
    if len(digests) % DIGEST_SIZE:
        raise ChunkError(b"", f"a list of digests has {len(digests)} bytes, not n x {DIGEST_SIZE}")
    return [digests[i : i + DIGEST_SIZE] for i in range(0, len(digests), DIGEST_SIZE)]


def _get(chunks: Mapping[bytes, bytes], digest: bytes) -> bytes:
    try:
        return chunks[digest]
    except KeyError:
        raise ChunkError(digest, "is missing or altered") from None


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
