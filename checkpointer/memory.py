"""What a process remembers: bytes of long values, and what it has found in the database.

Bytes are found by their checksum, and so are never wrong. What the database holds is a guess: each
put that builds on it has the database confirm it (docs/format.md, "The witness"). Both memories are
bounded, and safe to use from several threads.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

from checkpointer.manifest import Value
from checkpointer.sharing import Source, Whole
from checkpointer.slices import Layout

_VERSION: Final = (str, int, float)

OVERHEAD: Final = 1000
"""Bytes that a remembered value costs in addition to its data: objects, hash, dict entries."""

PAST_STATES: Final = 64
"""How many replaced states of a thread are kept: a late answer may still show one of them."""

MOST_VALUES: Final = 1 << 16
"""How many values, over all threads, the process remembers the places of."""

MOST_STALE: Final = 1024
"""The most threads that others have changed, and whose old values are still to be forgotten."""

MOST_NAMESPACES: Final = 32
"""The most namespaces of a thread that are remembered: its root, and the last put to or read."""

Key = tuple[str, bytes]


class Contents:
    """Bytes of long values by thread and checksum, the least recently used dropped first.

    Args:
        max_bytes: How many bytes to keep, overhead included; 0 turns it off.
        looked_up: Called after each look, with how many values were found, and how many not.
    """

    def __init__(self, max_bytes: int, looked_up: Callable[..., None] | None = None) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._looked_up = looked_up
        self._wholes: OrderedDict[Key, Whole] = OrderedDict()
        self._lock = Lock()

    def get(
        self, thread_id: str, layouts: Iterable[Layout], *, counted: bool = True
    ) -> dict[Layout, Whole]:
        """Those of some values that are here. With `counted`, `looked_up` is called."""
        asked = set(layouts)
        found = {}
        with self._lock:
            for layout in asked:
                key = (thread_id, layout.checksum)
                whole = self._wholes.get(key)
                if whole is not None and len(whole.data) == layout.size:
                    self._wholes.move_to_end(key)
                    found[layout] = whole
        if self._looked_up is not None and counted and asked:
            self._looked_up("value", found=len(found), missing=len(asked) - len(found))
        return found

    def put(
        self, thread_id: str, values: Iterable[Source], replaced: Iterable[Layout] = ()
    ) -> None:
        """Remember values, and forget those that they replace.

        A value that is larger than the whole memory is not remembered.
        """
        with self._lock:
            for layout in replaced:
                self._drop((thread_id, layout.checksum))
            for whole, layout in values:
                key = (thread_id, layout.checksum)
                self._drop(key)
                if _size(whole) <= self.max_bytes:
                    self._wholes[key] = whole
                    self.size += _size(whole)
            while self.size > self.max_bytes:
                self._drop(next(iter(self._wholes)))

    def _drop(self, key: Key) -> None:
        if (whole := self._wholes.pop(key, None)) is not None:
            self.size -= _size(whole)


def _size(whole: Whole) -> int:
    return len(whole.data) + OVERHEAD


@dataclass(slots=True)
class KnownCheckpoint:
    """A checkpoint that this process has put or read.

    Attributes:
        checkpoint_id: Its id.
        versions: The versions of its channels.
        channels: The value of each channel.
        writes: Its long pending writes, as far as they are known.
    """

    checkpoint_id: str
    versions: Mapping[str, Any]
    channels: Mapping[str, Value]
    writes: list[Layout] = field(default_factory=list)

    def unchanged(
        self, versions: Mapping[str, Any], new_versions: Collection[str]
    ) -> dict[str, Value]:
        """The values of the channels that have the same versions in a child.

        Args:
            versions: The versions of the child's channels.
            new_versions: Channels that certainly have a new value in the child.
        """
        return {
            name: value
            for name, value in self.channels.items()
            if name not in new_versions and _same(self.versions.get(name), versions.get(name))
        }

    def layouts(self) -> list[Layout]:
        """The layouts of its long values."""
        found = (value.layout() for value in self.channels.values())
        return [*(layout for layout in found if layout is not None), *self.writes]


def _same(one: object, other: object) -> bool:
    """Whether two versions are equal. Other types never are: their `==` may do anything."""
    return isinstance(one, _VERSION) and isinstance(other, _VERSION) and one == other


@dataclass(slots=True, eq=False)
class Known:
    """What this process has found in one thread, or put there, since it first read it.

    As long as the thread's row shows `state`, the database holds all of it. If somebody else has
    changed the thread, the whole object is replaced.

    Attributes:
        state: The state of the thread's row.
        coming: The state that a put under way is about to set.
        past: States that this process has replaced itself; nothing was deleted since.
        checkpoints: The last checkpoint of each namespace.
    """

    state: int
    coming: int | None = None
    past: deque[int] = field(default_factory=lambda: deque(maxlen=PAST_STATES))
    checkpoints: dict[str, KnownCheckpoint] = field(default_factory=dict)

    def covers(self, state: int) -> bool:
        """Whether what was found under that state is still true."""
        return state in {self.state, self.coming} or state in self.past


class Memory:
    """What is known of each thread, the least recently used dropped first.

    Args:
        max_values: Values of channels that are remembered over all threads; 0 for none.
    """

    def __init__(self, max_values: int = MOST_VALUES) -> None:
        self.max_values = max_values
        self._known: OrderedDict[Hashable, Known] = OrderedDict()
        self._weights: dict[Hashable, int] = {}
        self._stale: OrderedDict[Hashable, list[Layout]] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def get(self, thread_id: str) -> Known | None:
        """What is known of a thread."""
        with self._lock:
            known = self._known.get(thread_id)
            if known is not None:
                self._known.move_to_end(thread_id)
            return known

    def advance(self, thread_id: str, before: Known, state: int) -> Known | None:
        """Note that this process has changed a thread, and that what it knew is still true.

        Args:
            thread_id: The thread.
            before: What was known of it; the database has confirmed it.
            state: The state of its row now.

        Returns:
            What is known of it; `None` if that was replaced meanwhile.
        """
        with self._lock:
            if self._known.get(thread_id) is not before:
                return None
            if before.state != state:
                before.past.append(before.state)
                before.state = state
            return before

    def found(self, thread_id: str, state: int) -> Known:
        """What is known of a thread whose row was read: nothing, if its state is another one."""
        with self._lock:
            known = self._known.get(thread_id)
            if known is None or not known.covers(state):
                if known is not None:
                    self._replaced(thread_id, known)
                known = Known(state)
                self._drop(thread_id)
                self._known[thread_id] = known
                self._weigh(thread_id, known)
            return known

    def learn(
        self, thread_id: str, known: Known, namespace: str, checkpoint: KnownCheckpoint
    ) -> list[Layout]:
        """Remember a namespace's last checkpoint; return the layouts that are needed no more."""
        with self._lock:
            if self._known.get(thread_id) is not known:
                return []
            before = known.checkpoints.pop(namespace, None)
            known.checkpoints[namespace] = checkpoint
            if len(known.checkpoints) > MOST_NAMESPACES:
                del known.checkpoints[next(ns for ns in known.checkpoints if ns)]
            self._weigh(thread_id, known)
            stale = self._stale.pop(thread_id, [])
            if before is not None:
                stale += before.layouts()
            if not stale:
                return []
            kept = {
                layout.checksum for one in known.checkpoints.values() for layout in one.layouts()
            }
            return [layout for layout in stale if layout.checksum not in kept]

    def learn_writes(
        self,
        thread_id: str,
        known: Known,
        namespace: str,
        checkpoint_id: str | None,
        layouts: Iterable[Layout],
    ) -> None:
        """Remember long writes of a namespace's last checkpoint."""
        with self._lock:
            found = known.checkpoints.get(namespace)
            if found is not None and found.checkpoint_id == checkpoint_id:
                found.writes += layouts
                if self._known.get(thread_id) is known:
                    self._weigh(thread_id, known)

    def forget(self, thread_id: str, known: Known) -> None:
        """Forget a thread, because the database holds something else."""
        with self._lock:
            if self._known.get(thread_id) is known:
                self._replaced(thread_id, known)
                self._drop(thread_id)

    def _replaced(self, thread_id: str, known: Known) -> None:
        """Note the values that may be forgotten once other values of the thread come."""
        stale = self._stale.setdefault(thread_id, [])
        stale += [layout for one in known.checkpoints.values() for layout in one.layouts()]
        if len(self._stale) > MOST_STALE:
            self._stale.popitem(last=False)

    def _weigh(self, thread_id: str, known: Known) -> None:
        weight = 1 + sum(
            1 + len(one.channels) + len(one.writes) for one in known.checkpoints.values()
        )
        self._weight += weight - self._weights.get(thread_id, 0)
        self._weights[thread_id] = weight
        if weight > self.max_values:  # or it would push out all others first
            self._drop(thread_id)
        while self._weight > self.max_values and self._known:
            self._drop(next(iter(self._known)))

    def _drop(self, thread_id: Hashable) -> None:
        if self._known.pop(thread_id, None) is not None:
            self._weight -= self._weights.pop(thread_id)
