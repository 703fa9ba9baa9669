"""What the process remembers of stored chunks, within bounds: their bytes, and where they stand.

Both memories are safe to use from several threads: SQLite's work runs in its connections' own.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from threading import Lock
from typing import Final

ENTRY_OVERHEAD: Final = 200
"""Bytes that one remembered chunk costs beside its data: two `bytes` objects and a dict entry."""


class ChunkCache:
    """Bytes of chunks by digest, the least recently used dropped first.

    It never goes stale, because a digest names its content.

    Args:
        max_bytes: What the cache may hold, overhead included; 0 turns it off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    def get_many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those of the chunks that are here."""
        found = {}
        with self._lock:
            for digest in digests:
                data = self._chunks.get(digest)
                if data is not None:
                    self._chunks.move_to_end(digest)
                    found[digest] = data
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
            while self.size > self.max_bytes:
                _, dropped = self._chunks.popitem(last=False)
                self.size -= len(dropped) + ENTRY_OVERHEAD


class StoredChunks:
    """Which chunks a thread is known to have stored, under which epoch.

    Knowledge under an epoch holds as long as the thread's row says the same epoch: everything that
    deletes chunks raises it.

    Args:
        max_digests: How many digests are remembered over all threads.
    """

    def __init__(self, max_digests: int = 1 << 17) -> None:
        self.max_digests = max_digests
        self._known: OrderedDict[Hashable, tuple[int, frozenset[bytes]]] = OrderedDict()
        self._count = 0
        self._lock = Lock()

    def get(self, namespace: Hashable, epoch: int) -> frozenset[bytes]:
        """The digests known to be stored, if `epoch` is still the one they were learned under."""
        with self._lock:
            known_epoch, digests = self._known.get(namespace, (epoch, frozenset()))
        return digests if known_epoch == epoch else frozenset()

    def learn(self, namespace: Hashable, epoch: int, digests: frozenset[bytes]) -> None:
        """Remember what the namespace's latest checkpoint consists of, in place of the one before.

        Chunks of older checkpoints are forgotten: the next put hardly ever names them again.
        """
        with self._lock:
            if namespace in self._known:
                self._drop(namespace)
            self._known[namespace] = (epoch, digests)
            self._count += 1 + len(digests)
            while self._count > self.max_digests:
                self._drop(next(iter(self._known)))

    def _drop(self, namespace: Hashable) -> None:
        # A namespace without chunks counts as one digest, so that any number of them is bounded.
        self._count -= 1 + len(self._known.pop(namespace)[1])
