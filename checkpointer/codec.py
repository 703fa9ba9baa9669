"""LangGraph's checkpoints and writes, to what is stored and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    EXCLUDED_METADATA_KEYS,
    WRITES_IDX_MAP,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS

from checkpointer.chunking import Tree, split
from checkpointer.dialects import Dialect
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.manifest import (
    FormatError,
    Manifest,
    Value,
    encode_content,
    encode_manifest,
)
from checkpointer.projection import project, project_filter
from checkpointer.records import (
    Namespace,
    PutCheckpoint,
    PutWrites,
    StoredCheckpoint,
    StoredWrite,
)
from checkpointer.threads import Node

CHANNEL_INLINE: Final = 256
"""Bytes up to which a channel's value stays in the manifest: about what a chunk's row costs."""

BODY_INLINE: Final = 4096
"""The same for parts that hardly ever repeat, so that chunks of them would not be shared: the
checkpoint without its values, metadata, pending writes."""

COUNTERS: Final = "counters_since_delta_snapshot"
"""Metadata that names the delta channels that were not snapshotted in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which checkpoint a config names.

    Attributes:
        checkpoint_ns: `None` where the config does not say.
        checkpoint_id: `None` where the config does not say: the latest.
    """

    thread_id: str
    checkpoint_ns: str | None
    checkpoint_id: str | None

    @property
    def namespace(self) -> Namespace:
        """The namespace, the root graph's where the config does not say."""
        return Namespace(self.thread_id, self.checkpoint_ns or "")


def key_of(config: RunnableConfig, dialect: Dialect) -> Key:
    """Which checkpoint a config names.

    Raises:
        InvalidInputError: It names no thread, or the database cannot hold an identifier.
    """
    configurable = config.get("configurable") or {}
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidInputError(
            "found a config without a thread_id, expected one; pass "
            '{"configurable": {"thread_id": "..."}}'
        )
    parts: list[str | None] = []
    for kind, value in (
        ("thread_id", thread_id),
        ("checkpoint_ns", configurable.get("checkpoint_ns")),
        ("checkpoint_id", configurable.get("checkpoint_id") or None),
    ):
        parts.append(None if value is None else identifier(kind, value, dialect))
    return Key(cast("str", parts[0]), parts[1], parts[2])


def conditions_of(
    config: RunnableConfig | None,
    filter_: dict[str, Any] | None,
    before: RunnableConfig | None,
    dialect: Dialect,
) -> dict[str, Any]:
    """The parameters of a list; which of them are there says which conditions hold.

    Raises:
        InvalidInputError: The config names no thread, or the database cannot hold an identifier.
        InvalidFilterError: The filter is not a JSON object.
    """
    conditions: dict[str, Any] = {}
    if config is not None:
        named = asdict(key_of(config, dialect))
        conditions = {name: value for name, value in named.items() if value is not None}
    if filter_ is not None and (projected := project_filter(filter_)):
        conditions["filter"] = projected
    before_id = (before or {}).get("configurable", {}).get("checkpoint_id")
    if before_id:
        conditions["before"] = identifier("checkpoint_id", before_id, dialect)
    return conditions


def identifier(kind: str, value: object, dialect: Dialect) -> str:
    """`value` as the text that is stored: the `str` of an int or a UUID, for example.

    Raises:
        InvalidInputError: The database cannot hold it.
    """
    text = str(value)
    dialect.check_identifier(kind, text)
    return text


def config_for(namespace: Namespace, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {"configurable": {**namespace.parameters(), "checkpoint_id": checkpoint_id}}


def full_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """The metadata, with what the config adds to it.

    As langgraph-checkpoint's `get_checkpoint_metadata`, but NUL characters stay in strings.
    """
    merged: dict[str, Any] = dict(metadata)
    for source in (config.get("metadata"), config.get("configurable")):
        for name, value in (source or {}).items():
            if name in merged or name in EXCLUDED_METADATA_KEYS or name.startswith("__"):
                continue
            if isinstance(value, str | int | float):
                merged[name] = value
    return merged


class Encoder:
    """Turns the values of one put into stored bytes, and gathers the chunks that they name."""

    def __init__(self, serde: SerializerProtocol, dialect: Dialect, key: Key) -> None:
        self._serde = serde
        self._dialect = dialect
        self._key = key
        self.chunks: dict[bytes, bytes | memoryview] = {}

    def value(self, value: Any, what: str, inline: int) -> Value:
        """A value dumped, and cut into chunks if it is longer than `inline` bytes.

        Raises:
            SerializationError: The serde refused it.
        """
        try:
            type_, data = self._serde.dumps_typed(value)
        except Exception as exc:
            raise SerializationError(
                f"thread {self._key.thread_id!r}: the serde cannot dump {what}, found "
                f"{type(value).__name__}: {exc}; nothing was stored. Use a value that it can dump, "
                f"or pass create_saver(serde=...) one that can"
            ) from exc
        data = bytes(data)
        if len(data) <= inline:
            return Value(type_, data)
        tree, chunks = split(data)
        self.chunks.update(chunks)
        return Value(type_, tree)

    def checkpoint(
        self,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
    ) -> PutCheckpoint:
        """A checkpoint to store; the encoder's key names its parent."""
        body = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        manifest = Manifest(
            checkpoint.get("v", 0),
            self.value(body, "the checkpoint", BODY_INLINE),
            self.value(metadata, "the metadata", BODY_INLINE),
            {
                self._identifier("channel name", name): self.value(
                    value, f"channel {name!r}", CHANNEL_INLINE
                )
                for name, value in checkpoint.get("channel_values", {}).items()
            },
        )
        run_id = metadata.get("run_id")
        if run_id is not None:
            run_id = self._identifier("run_id", run_id)
        row = {
            **self._key.namespace.parameters(),
            "checkpoint_id": self._identifier("checkpoint_id", checkpoint["id"]),
            "parent_checkpoint_id": self._key.checkpoint_id,
            "run_id": run_id,
            "metadata": project(metadata),
            "manifest": encode_manifest(manifest),
        }
        return PutCheckpoint(self._key.namespace, row, self.chunks)

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
            dumped = self.value(value, f"the write to {channel!r}", BODY_INLINE)
            idx = WRITES_IDX_MAP.get(channel, position)
            row = {
                **key,
                "idx": idx,
                "channel": self._identifier("channel name", channel),
                "type": self._identifier("type tag", dumped.type),
                "data": encode_content(dumped.content),
                "chunked": isinstance(dumped.content, Tree),
            }
            (special if idx < 0 else rows).append(row)
        return PutWrites(self._key.namespace, rows, special, self.chunks)

    def _identifier(self, kind: str, value: object) -> str:
        return identifier(kind, value, self._dialect)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Turns a stored checkpoint back into LangGraph's values."""

    serde: SerializerProtocol
    stored: StoredCheckpoint

    def tuple_(self, first_version: str) -> CheckpointTuple:
        """The checkpoint as LangGraph takes it.

        Args:
            first_version: What a channel's first version is, for pending sends of an old format.

        Raises:
            DamagedDataError: A stored row does not hold what was written.
            SerializationError: The serde refused a value.
        """
        one = self.stored
        manifest = self.manifest()
        checkpoint = self.value(manifest.checkpoint, "the checkpoint")
        checkpoint["channel_values"] = {
            name: self.channel(manifest, name) for name in manifest.channels
        }
        if one.sends:
            versions = checkpoint["channel_versions"]
            versions[TASKS] = max(versions.values()) if versions else first_version
            checkpoint["channel_values"][TASKS] = [v for _, _, v in self.writes(one.sends)]
        namespace, parent = one.namespace, one.parent_checkpoint_id
        return CheckpointTuple(
            config=config_for(namespace, one.checkpoint_id),
            checkpoint=checkpoint,
            metadata=self.value(manifest.metadata, "the metadata"),
            parent_config=None if parent is None else config_for(namespace, parent),
            pending_writes=self.writes(one.writes),
        )

    def manifest(self) -> Manifest:
        """The manifest itself.

        Raises:
            DamagedDataError: It cannot be read.
        """
        if isinstance(self.stored.manifest, FormatError):
            raise self.stored.damage(str(self.stored.manifest)) from self.stored.manifest
        return self.stored.manifest

    def channel(self, manifest: Manifest, name: str) -> Any:
        """The value of one channel that the manifest holds."""
        return self.value(manifest.channels[name], f"channel {name!r}")

    def writes(self, writes: Iterable[StoredWrite]) -> list[PendingWrite]:
        """Writes of one checkpoint, in the order in which a run applies them."""
        ordered = sorted(writes, key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
        return [(w.task_id, w.channel, self._write(w)) for w in ordered]

    def _write(self, write: StoredWrite) -> Any:
        what = f"the write of task {write.task_id!r} to {write.channel!r}"
        data = self.stored.load(write.content, what)
        return self._loads(write.type, data, what)

    def value(self, value: Value, what: str) -> Any:
        """A value loaded.

        Raises:
            DamagedDataError: A chunk is missing or altered.
            SerializationError: The serde refused it.
        """
        return self._loads(value.type, self.stored.load(value.content, what), what)

    def _loads(self, type_: str, data: bytes, what: str) -> Any:
        try:
            return self.serde.loads_typed((type_, data))
        except Exception as exc:
            one = self.stored
            raise SerializationError(
                f"thread {one.thread_id!r}, namespace {one.checkpoint_ns!r}, checkpoint "
                f"{one.checkpoint_id!r}: the serde cannot load {what}, stored with the type tag "
                f"{type_!r}: {type(exc).__name__}: {exc}; use the serde that stored it"
            ) from exc


def node_of(metadata: Mapping[str, Any], manifest: Manifest, parent: str | None) -> Node:
    """What planning a prune needs to know of a checkpoint.

    Args:
        metadata: The projection of its metadata.
        manifest: Its manifest.
        parent: The id of its parent.
    """
    counters = metadata.get(COUNTERS)
    parents = metadata.get("parents")
    root = parents.get("") if isinstance(parents, Mapping) else None
    return Node(
        parent=parent,
        stored=frozenset(project(dict.fromkeys(manifest.channels))),
        replayed=frozenset(counters if isinstance(counters, Mapping) else ()),
        root=root if isinstance(root, str) else None,
        sends_parent=parent if manifest.version < 4 else None,  # noqa: PLR2004
    )
