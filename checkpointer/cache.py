"""What a process remembers, within bounds: the bytes of chunks, and what stands in the database.

Both memories are safe to use from several threads: SQLite's work runs in its connections' own.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from checkpointer.chunking import Cut, Tree
from checkpointer.manifest import Value

_VERSION: Final = (str, int, float)

ENTRY_OVERHEAD: Final = 200
"""Bytes that one remembered chunk costs beside its data: two `bytes` objects and a dict entry."""


class ChunkCache:
    """Bytes of chunks by digest, and whole values by tree, the least recently used dropped first.

    It never goes stale, because digests name their content. A whole value spares looking at its
    chunks, which may be dropped before it.

    Args:
        max_bytes: What the cache may hold, overhead included; 0 turns it off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._chunks: OrderedDict[bytes | Tree, Any] = OrderedDict()
        self._lock = Lock()

    def get_many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those of the chunks that are here."""
        return self._get_many(digests)

    def get_cuts(self, trees: Iterable[Tree]) -> dict[Tree, Cut]:
        """Those of the whole values that are here."""
        return self._get_many(trees)

    def get_cut(self, tree: Tree) -> Cut | None:
        """A whole value, if it is here."""
        return self.get_cuts([tree]).get(tree)

    def _get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        found = {}
        with self._lock:
            for key in keys:
                entry = self._chunks.get(key)
                if entry is not None:
                    self._chunks.move_to_end(key)
                    found[key] = entry
        return found

    def put_many(self, chunks: Iterable[tuple[bytes, bytes | memoryview]]) -> None:
        """Remember chunks; those that are here already are only moved to the front."""
        with self._lock:
            for digest, data in chunks:
                if digest in self._chunks:
                    self._chunks.move_to_end(digest)
                else:
                    self._chunks[digest] = bytes(data)
                    self.size += len(data) + ENTRY_OVERHEAD
            self._drop_oldest()

    def put_cuts(self, cuts: Iterable[Cut], replaced: Iterable[Tree]) -> None:
        """Remember whole values, and forget those that they take the place of.

        One that would fill the cache alone is not remembered.
        """
        with self._lock:
            for tree in replaced:
                self.size -= _size(self._chunks.pop(tree, None))
            for cut in cuts:
                if _size(cut) <= self.max_bytes:
                    self.size += _size(cut) - _size(self._chunks.pop(cut.tree, None))
                    self._chunks[cut.tree] = cut
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self.size > self.max_bytes:
            _, dropped = self._chunks.popitem(last=False)
            self.size -= _size(dropped)


class CountingCache(ChunkCache):
    """A cache that tells how many looks into it found something.

    Args:
        max_bytes: What the cache may hold.
        looked_up: Told of each kind, `chunk` or `value`, how many were found and were missing.
    """

    def __init__(self, max_bytes: int, looked_up: Callable[..., None]) -> None:
        super().__init__(max_bytes)
        self._looked_up = looked_up

    def get_many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those of the chunks that are here."""
        return self._counted("chunk", digests)

    def get_cuts(self, trees: Iterable[Tree]) -> dict[Tree, Cut]:
        """Those of the whole values that are here."""
        return self._counted("value", trees)

    def _counted(self, kind: str, keys: Iterable[Any]) -> dict[Any, Any]:
        asked = set(keys)
        found = self._get_many(asked)
        self._looked_up(kind, found=len(found), missing=len(asked) - len(found))
        return found


def _size(entry: bytes | Cut | None) -> int:
    """What an entry counts for, in bytes; a whole value also for its list of digests."""
    if entry is None:
        return 0
    if isinstance(entry, Cut):
        return len(entry.data) + ENTRY_OVERHEAD * (1 + len(entry.digests))
    return len(entry) + ENTRY_OVERHEAD


@dataclass(frozen=True, slots=True)
class LastCheckpoint:
    """What a process remembers of the last checkpoint that it put into a namespace or read there.

    Attributes:
        checkpoint_id: Its id.
        versions: The versions of its channels.
        channels: The value of each channel, and the digests of its chunks, nodes included.
        digests: All chunks that it names.
    """

    checkpoint_id: str
    versions: Mapping[str, Any]
    channels: Mapping[str, tuple[Value, frozenset[bytes]]]
    digests: frozenset[bytes]

    def unchanged(
        self, versions: Mapping[str, Any], new_versions: Collection[str]
    ) -> dict[str, tuple[Value, frozenset[bytes]]]:
        """The values of the channels that have the same versions in a child.

        Args:
            versions: The versions of the child's channels.
            new_versions: Channels that are new in the child for certain.
        """
        return {
            name: value
            for name, value in self.channels.items()
            if name not in new_versions and _same(self.versions.get(name), versions.get(name))
        }

    def trees(self) -> set[Tree]:
        """The trees of the channels whose values are long."""
        trees = (value.tree() for value, _ in self.channels.values())
        return {tree for tree in trees if tree is not None}


def _same(one: object, other: object) -> bool:
    """Whether two versions are equal; what no version is may answer that with anything."""
    return isinstance(one, _VERSION) and isinstance(other, _VERSION) and one == other


class LastCheckpoints:
    """The last checkpoint of each namespace, with the epoch under which it was stored.

    As long as the thread's row says the same epoch, all of its chunks are stored: everything that
    deletes chunks raises it.

    Args:
        max_digests: How many digests are remembered over all threads.
    """

    def __init__(self, max_digests: int = 1 << 17) -> None:
        self.max_digests = max_digests
        self._known: OrderedDict[Hashable, tuple[int, LastCheckpoint]] = OrderedDict()
        self._count = 0
        self._lock = Lock()

    def get(self, namespace: Hashable) -> tuple[int, LastCheckpoint] | None:
        """The namespace's last checkpoint, after the epoch under which it was learned."""
        with self._lock:
            return self._known.get(namespace)

    def stored(self, namespace: Hashable, epoch: int | None) -> frozenset[bytes]:
        """The digests known to be stored, if they were learned under `epoch`."""
        known = self.get(namespace)
        return known[1].digests if known and known[0] == epoch else frozenset()

    def learn(self, namespace: Hashable, epoch: int, last: LastCheckpoint) -> None:
        """Remember a checkpoint, in place of the namespace's one before.

        Chunks of older checkpoints are forgotten: the next put hardly ever names them again.
        """
        with self._lock:
            if namespace in self._known:
                self._drop(namespace)
            self._known[namespace] = (epoch, last)
            self._count += _weight(last)
            while self._count > self.max_digests:
                self._drop(next(iter(self._known)))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
            self._count = 0

    def _drop(self, namespace: Hashable) -> None:
        self._count -= _weight(self._known.pop(namespace)[1])


def _weight(last: LastCheckpoint) -> int:
    """What a checkpoint counts for, in digests: channels and the entry itself are bounded too."""
    return 1 + len(last.channels) + len(last.digests)
