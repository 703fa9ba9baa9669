"""What is stored, to LangGraph's checkpoints and writes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from langgraph.checkpoint.base import CheckpointTuple, PendingWrite, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS

from checkpointer.configs import config_for
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.identifiers import text_of
from checkpointer.manifest import Manifest, Value
from checkpointer.planning import Node
from checkpointer.projection import project
from checkpointer.quoting import quoted
from checkpointer.records import StoredCheckpoint, StoredWrite
from checkpointer.sealing import FormatError

COUNTERS: Final = "counters_since_delta_snapshot"
"""Metadata that names the delta channels that were not snapshotted in a checkpoint."""


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
        checkpoint = self._checkpoint(manifest)
        checkpoint["channel_values"] = {
            name: self.channel(manifest, name) for name in manifest.channels
        }
        if one.sends:
            versions = checkpoint.setdefault("channel_versions", {})
            versions[TASKS] = self._newest(versions) if versions else first_version
            checkpoint["channel_values"][TASKS] = [v for _, _, v in self.writes(one.sends)]
        namespace, parent = one.namespace, one.parent_checkpoint_id
        return CheckpointTuple(
            config=config_for(namespace, one.checkpoint_id),
            checkpoint=checkpoint,
            metadata=self._dict(manifest.metadata, "the metadata"),
            parent_config=None if parent is None else config_for(namespace, parent),
            pending_writes=self.writes(one.writes),
        )

    def manifest(self) -> Manifest:
        """The manifest itself.

        Raises:
            DamagedDataError: It cannot be read.
        """
        if isinstance(self.stored.manifest, FormatError):
            raise self.stored.damage(
                str(self.stored.manifest), self.stored.manifest
            ) from self.stored.manifest
        return self.stored.manifest

    def _checkpoint(self, manifest: Manifest) -> Any:
        """The checkpoint without its channel values."""
        found = self._dict(manifest.checkpoint, "the checkpoint")
        try:
            checkpoint_id = text_of("checkpoint_id", found.get("id"))
        except InvalidInputError as exc:
            raise self.stored.damage(str(exc)) from exc
        if checkpoint_id != self.stored.checkpoint_id:
            raise self.stored.damage(f"found the manifest of checkpoint {quoted(checkpoint_id)}")
        if not isinstance(versions := found.get("channel_versions", {}), dict):
            raise self.stored.damage(f"found {quoted(versions)} as channel_versions")
        return found

    def _newest(self, versions: Mapping[str, Any]) -> Any:
        try:
            return max(versions.values())
        except TypeError as exc:
            raise self.stored.damage(f"the channels' versions have no order: {exc}") from exc

    def _dict(self, value: Value, what: str) -> Any:
        found = self.value(value, what)
        if not isinstance(found, dict):
            raise self.stored.damage(f"found {quoted(found)} as {what}, expected a dict")
        return found

    def channel(self, manifest: Manifest, name: str) -> Any:
        """The value of one channel that the manifest holds."""
        return self.value(manifest.channels[name], f"channel {quoted(name)}")

    def writes(self, writes: Iterable[StoredWrite]) -> list[PendingWrite]:
        """Writes of one checkpoint, in the order in which a run applies them."""
        ordered = sorted(writes, key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
        return [(w.task_id, w.channel, self._write(w)) for w in ordered]

    def _write(self, write: StoredWrite) -> Any:
        named = f"the write of task {quoted(write.task_id)} to {quoted(write.channel)}"
        return self.value(write.value, named)

    def value(self, value: Value | FormatError, what: str) -> Any:
        """A value loaded.

        Args:
            value: The value, or why it cannot be read.
            what: What it is, for errors.

        Raises:
            DamagedDataError: Bytes are missing or altered, or the value cannot be read.
            SerializationError: The serde refused it.
        """
        type_, data = self.stored.load(value, what)
        try:
            return self.serde.loads_typed((type_, data))
        except Exception as exc:
            one = self.stored
            reason = f"{type(exc).__name__}: {exc}; use the serde that stored it"
            if isinstance(exc, SerializationError):  # of our own serde, which says what mends it
                reason = str(exc)
            raise SerializationError(
                f"thread {one.thread_id!r}, namespace {one.checkpoint_ns!r}, checkpoint "
                f"{one.checkpoint_id!r}: found {what} with the type tag {quoted(type_)}, expected "
                f"a value that the serde can load: {reason}"
            ) from exc


def node_of(metadata: Mapping[str, Any], manifest: Manifest, parent: str | None) -> Node:
    """What planning a prune needs to know of a checkpoint.

    Args:
        metadata: The projection of its metadata.
        manifest: Its manifest.
        parent: The id of its parent.
    """
    counters = metadata.get(COUNTERS)
    return Node(
        parent=parent,
        stored=frozenset(project(dict.fromkeys(manifest.channels))),
        replayed=frozenset(counters if isinstance(counters, Mapping) else ()),
        root=root_of(metadata),
        sends_parent=parent if manifest.version < 4 else None,  # noqa: PLR2004
        ends_step=metadata.get("source") == "loop",
    )


def root_of(metadata: Mapping[str, Any]) -> str | None:
    """The id of the root graph's checkpoint that a subgraph's started from.

    Args:
        metadata: The projection of its metadata.
    """
    parents = metadata.get("parents")
    root = parents.get("") if isinstance(parents, Mapping) else None
    return root if isinstance(root, str) else None


def time_in(checkpoint: object) -> datetime | None:
    """When a checkpoint was made, by its own `ts`; `None` where that cannot be told."""
    ts = checkpoint.get("ts") if isinstance(checkpoint, Mapping) else None
    try:
        made = datetime.fromisoformat(ts) if isinstance(ts, str) else None
    except ValueError:
        return None
    return made if made and made.tzinfo else None
