"""What a saver has acknowledged, and whether that is what it gives back."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeAlias

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple

Namespace: TypeAlias = tuple[str, str]
"""A thread's id, and the namespace."""
Written: TypeAlias = dict[tuple[str, str], set[bytes]]
"""By task and channel, the digests of the values that were acknowledged."""


@dataclass(frozen=True, slots=True)
class Record:
    """The last checkpoint that was acknowledged in a namespace.

    Attributes:
        checkpoint_id: Its id.
        parts: A line with a digest for each part of it. One text, because there are many records.
        written: The writes to it that were acknowledged.
    """

    checkpoint_id: str
    parts: str
    written: Written

    def differs(self, found: CheckpointTuple | None) -> str | None:
        """How what was read differs from it; `None` if it does not."""
        if found is None:
            return f"found nothing, expected checkpoint {self.checkpoint_id}"
        if found.checkpoint["id"] != self.checkpoint_id:
            return f"found checkpoint {found.checkpoint['id']}, expected {self.checkpoint_id}"
        lines = set(self.parts.splitlines()) ^ set(parts_of(found.checkpoint).splitlines())
        altered = sorted({line.rpartition(" ")[0] for line in lines})
        pending = defaultdict[tuple[str, str], set[bytes]](set)
        for task_id, channel, value in found.pending_writes or ():
            pending[task_id, channel].add(digest_of(value))
        altered += sorted(
            f"write to {key[1]!r}" for key, told in self.written.items() if not told & pending[key]
        )
        if altered:
            return f"checkpoint {self.checkpoint_id}: other than acknowledged: {', '.join(altered)}"
        return None


@dataclass(slots=True)
class Ledger:
    """The last record of each namespace. Holds digests only, and none of what is older."""

    _records: dict[str, dict[str, Record]] = field(default_factory=dict)
    _early: dict[Namespace, dict[str, Written]] = field(default_factory=dict)

    def putting(self, config: RunnableConfig, checkpoint: Checkpoint) -> Callable[[], None]:
        """Look at a checkpoint before it is put; what is returned is called once it has been.

        LangGraph may change what a checkpoint holds while it is put.
        """
        thread_id, checkpoint_ns = namespace = _namespace_of(config)
        checkpoint_id, parts = checkpoint["id"], parts_of(checkpoint)

        def acknowledge() -> None:
            last = self.last(*namespace)
            if last is None or last.checkpoint_id < checkpoint_id:
                early = self._early.pop(namespace, {})
                record = Record(checkpoint_id, parts, early.pop(checkpoint_id, {}))
                self._records.setdefault(thread_id, {})[checkpoint_ns] = record
                if later := {key: some for key, some in early.items() if key > checkpoint_id}:
                    self._early[namespace] = later

        return acknowledge

    def writing(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str
    ) -> Callable[[], None]:
        """The same for writes, which may be put before their checkpoint is."""
        namespace = _namespace_of(config)
        checkpoint_id: str = config.get("configurable", {})["checkpoint_id"]
        told = [(channel, digest_of(value)) for channel, value in writes]

        def acknowledge() -> None:
            last = self.last(*namespace)
            if last is not None and checkpoint_id < last.checkpoint_id:
                return
            if last is not None and checkpoint_id == last.checkpoint_id:
                written = last.written
            else:
                written = self._early.setdefault(namespace, {}).setdefault(checkpoint_id, {})
            for channel, digest in told:
                written.setdefault((task_id, channel), set()).add(digest)

        return acknowledge

    def last(self, thread_id: str, checkpoint_ns: str = "") -> Record | None:
        """What was acknowledged last in a namespace."""
        return self._records.get(thread_id, {}).get(checkpoint_ns)

    def namespaces(self, thread_id: str) -> list[str]:
        """Those of a thread in which something was acknowledged."""
        return list(self._records.get(thread_id, ()))

    def copy(self, source: str, target: str) -> None:
        """A thread is copied into one that does not exist."""
        self._records[target] = {
            namespace: replace(record, written={k: set(v) for k, v in record.written.items()})
            for namespace, record in self._records[source].items()
        }

    def forget(self, thread_id: str) -> None:
        """A thread is deleted."""
        self._records.pop(thread_id, None)
        for namespace in [one for one in self._early if one[0] == thread_id]:
            del self._early[namespace]


def parts_of(checkpoint: Checkpoint) -> str:
    """A line with a digest for each part of a checkpoint."""
    parts = {f"channel {name!r}": value for name, value in checkpoint["channel_values"].items()}
    others = {name: value for name, value in checkpoint.items() if name != "channel_values"}
    return "\n".join(f"{name} {digest_of(value).hex()}" for name, value in (parts | others).items())


def digest_of(value: object) -> bytes:
    """A digest of a value as it shows itself, which is another way than a serializer's."""
    return blake2b(repr(_ordered(value)).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _ordered(value: Any) -> Any:
    """The value with an order where it has none, and in the form in which LangGraph stores it."""
    if isinstance(value, dict):
        return sorted((repr(key), _ordered(item)) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, BaseException):
        return repr(value)
    return list(value) if isinstance(value, tuple) else value


def _namespace_of(config: RunnableConfig) -> Namespace:
    configurable = config.get("configurable", {})
    return configurable["thread_id"], configurable.get("checkpoint_ns", "")
