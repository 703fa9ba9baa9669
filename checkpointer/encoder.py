"""LangGraph's checkpoints and writes, to what is stored."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.cache import LastCheckpoint
from checkpointer.chunking import split
from checkpointer.configs import Key, identifier
from checkpointer.dialects import Dialect
from checkpointer.errors import SerializationError
from checkpointer.manifest import Manifest, Value, encode_manifest, encode_value
from checkpointer.projection import project
from checkpointer.records import PutCheckpoint, PutWrites

CHANNEL_INLINE: Final = 256
"""Bytes up to which a channel's value stays in the manifest: about what a chunk's row costs."""

BODY_INLINE: Final = 4096
"""The same for parts that hardly ever repeat, so that chunks of them would not be shared: the
checkpoint without its values, metadata, pending writes."""


MAX_VERSION: Final = 1 << 31


class Encoder:
    """Turns the values of one put into stored bytes, and gathers the chunks that they name."""

    def __init__(self, serde: SerializerProtocol, dialect: Dialect, key: Key) -> None:
        self._serde = serde
        self._dialect = dialect
        self._key = key
        self.chunks: dict[bytes, bytes | memoryview] = {}

    def value(self, value: Any, what: str, inline: int) -> tuple[Value, frozenset[bytes]]:
        """A value dumped, cut into chunks if it is longer than `inline` bytes, with their digests.

        Raises:
            SerializationError: The serde refused it.
        """
        try:
            type_, data = self._serde.dumps_typed(value)
            if not isinstance(type_, str) or not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(  # noqa: TRY301 - told as every fault of a serde is
                    f"found ({type(type_).__name__}, {type(data).__name__}), expected (str, bytes)"
                )
        except Exception as exc:
            raise SerializationError(
                f"thread {self._key.thread_id!r}: found {what} of type {type(value).__name__}, "
                f"expected a value that the serde can dump: {exc}; nothing was stored. Use another "
                f"value, or pass create_saver(serde=...) a serde that can dump it"
            ) from exc
        tag = self._identifier("type tag", type_)
        data = bytes(data)
        if len(data) <= inline:
            return Value(tag, data), frozenset()
        tree, chunks = split(data)
        self.chunks.update(chunks)
        return Value(tag, tree), frozenset(chunks)

    def checkpoint(
        self,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
        new_versions: Collection[str],
        known: tuple[int, LastCheckpoint] | None,
    ) -> PutCheckpoint:
        """A checkpoint to store; the encoder's key names its parent.

        Args:
            checkpoint: The checkpoint.
            metadata: Its whole metadata.
            new_versions: The channels that are new for certain.
            known: The namespace's last checkpoint, as `LastCheckpoints.get` gives it. Where that is
                the parent, channels whose version has not changed keep the parent's values: with
                `durability="async"`, a run may have changed the live objects in place by now.
        """
        checkpoint_id = self._identifier("checkpoint_id", checkpoint["id"])
        body = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        versions = dict(checkpoint.get("channel_versions", {}))
        epoch, parent = known or (None, None)
        reused: dict[str, tuple[Value, frozenset[bytes]]] = {}
        if parent is not None and parent.checkpoint_id == self._key.checkpoint_id:
            reused = parent.unchanged(versions, new_versions)
        channels = {
            name: reused.get(name) or self._channel(name, value)
            for name, value in checkpoint.get("channel_values", {}).items()
        }
        manifest = Manifest(
            _version(checkpoint),
            self.value(body, "the checkpoint", BODY_INLINE)[0],
            self.value(metadata, "the metadata", BODY_INLINE)[0],
            {name: value for name, (value, _) in channels.items()},
        )
        kept = reused.keys() & channels.keys()
        digests = frozenset(self.chunks).union(*(digests for _, digests in channels.values()))
        return PutCheckpoint(
            self._key.namespace,
            self._row(checkpoint_id, metadata, manifest),
            self.chunks,
            frozenset[bytes]().union(*(reused[name][1] for name in kept)),
            epoch if kept else None,
            LastCheckpoint(checkpoint_id, versions, channels, digests),
        )

    def _channel(self, name: str, value: Any) -> tuple[Value, frozenset[bytes]]:
        self._identifier("channel name", name)
        return self.value(value, f"channel {name!r}", CHANNEL_INLINE)

    def _row(
        self, checkpoint_id: str, metadata: Mapping[str, Any], manifest: Manifest
    ) -> dict[str, Any]:
        run_id = metadata.get("run_id")
        return {
            **self._key.namespace.parameters(),
            "checkpoint_id": checkpoint_id,
            "parent_checkpoint_id": self._key.checkpoint_id,
            "run_id": None if run_id is None else self._identifier("run_id", run_id),
            "metadata": project(metadata),
            "manifest": encode_manifest(manifest),
        }

    def writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> PutWrites:
        """Pending writes to store with the checkpoint that the encoder's key names.

        Special channels (errors, interrupts) take the place of what stands there; others do not.
        """
        rows: list[dict[str, Any]] = []
        special: list[dict[str, Any]] = []
        key = {
            **self._key.namespace.parameters(),
            "checkpoint_id": self._key.checkpoint_id,
            "task_id": self._identifier("task_id", task_id),
            "task_path": self._identifier("task_path", task_path),
        }
        for position, (channel, value) in enumerate(writes):
            dumped, _ = self.value(value, f"the write to {channel!r}", BODY_INLINE)
            idx = WRITES_IDX_MAP.get(channel, position)
            row = {
                **key,
                "idx": idx,
                "channel": self._identifier("channel name", channel),
                "data": encode_value(dumped),
                "chunked": dumped.tree() is not None,
            }
            (special if idx < 0 else rows).append(row)
        return PutWrites(self._key.namespace, rows, special, self.chunks)

    def _identifier(self, kind: str, value: object) -> str:
        return identifier(kind, value, self._dialect)


def _version(checkpoint: Checkpoint) -> int:
    """The version of LangGraph's format, or 0 where the checkpoint does not say."""
    version = checkpoint.get("v")
    return version if type(version) is int and 0 <= version < MAX_VERSION else 0
