"""LangGraph's checkpoints and writes, to what is stored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.basis import Basis, CheckpointKey
from checkpointer.configs import Key, mapping
from checkpointer.dialect import Dialect
from checkpointer.drafts import Dumped, NewCheckpoint, NewWrites
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.identifiers import channel_name, check_key, identifier
from checkpointer.projection import project
from checkpointer.quoting import quoted
from checkpointer.slices import MAX_SIZE

MAX_VERSION: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class NewWrite:
    """One pending write to store.

    Attributes:
        idx: Its position among its task's writes, or LangGraph's number of a special channel.
    """

    task_id: str
    task_path: str
    idx: int
    channel: str
    value: Any


class Encoder:
    """Dumps the values of one put.

    Args:
        serde: Dumps the values.
        dialect: Says which identifiers the database can hold.
        key: What the put's config names.

    Attributes:
        size: How many bytes were dumped.
    """

    def __init__(self, serde: SerializerProtocol, dialect: Dialect, key: Key) -> None:
        self._serde = serde
        self._dialect = dialect
        self._key = key
        self.size = 0

    def _dump(self, value: Any, what: str, name: str | None = None) -> Dumped:
        """Dump a value, which errors call by what it is, and by its name if it has one."""
        try:
            type_, data = self._serde.dumps_typed(value)
            if not isinstance(type_, str) or not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(  # noqa: TRY301 - told as every fault of a serde is
                    f"found ({type(type_).__name__}, {type(data).__name__}), expected (str, bytes)"
                )
        except Exception as exc:
            found = _named(what, name)
            raise SerializationError(
                f"thread {self._key.thread_id!r}: found {found} of type {type(value).__name__}, "
                f"expected a value that the serde can dump: {exc}; nothing was stored. Use another "
                f"value, or pass create_saver(serde=...) a serde that can dump it"
            ) from exc
        if len(data) > MAX_SIZE:
            raise InvalidInputError(
                f"thread {self._key.thread_id!r}: found {_named(what, name)} of {len(data)} bytes, "
                f"expected at most {MAX_SIZE}; nothing was stored. Store it elsewhere, and its "
                f"place here"
            )
        self.size += len(data)
        return identifier("type tag", type_, self._dialect), bytes(data)

    def checkpoint(
        self,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
        new_versions: Mapping[str, Any],
        basis: Basis | None = None,
    ) -> NewCheckpoint:
        """Dump a checkpoint; the encoder's key names its parent.

        Args:
            checkpoint: The checkpoint.
            metadata: Its whole metadata.
            new_versions: The channels that are new for certain.
            basis: What is known of its parent. Channels whose version has not changed keep the
                parent's values: with `durability="async"`, a run may have changed the live objects
                in place by now.

        Raises:
            InvalidInputError: It is no checkpoint, or an identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        versions = _copy_of(mapping("the checkpoint", checkpoint), "channel_versions")
        mapping("new_versions", new_versions)
        row = self._row(checkpoint, metadata)
        values = self._values(checkpoint)
        unchanged = basis.dumped(versions, new_versions) if basis is not None else {}
        kept = {name: one for name, one in unchanged.items() if name in values}
        dumped = {
            name: self._dump(value, "channel", name)
            for name, value in values.items()
            if name not in kept
        }
        body = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        parts = [self._dump(body, "the checkpoint"), self._dump(metadata, "the metadata")]
        return NewCheckpoint(
            self._key.namespace,
            self._key.checkpoint_id,
            self.size,
            basis.known if basis is not None and kept else None,
            self._required(metadata, row["checkpoint_id"]),
            self._serde,
            row,
            _version(checkpoint),
            versions,
            new_versions,
            list(values),
            dumped,
            kept,
            parts,
        )

    def _required(self, metadata: Mapping[str, Any], checkpoint_id: str) -> list[CheckpointKey]:
        """The checkpoints whose values a checkpoint may share: its parent, and its parents' own."""
        found = []
        if self._key.checkpoint_id is not None:
            found.append((self._key.namespace.checkpoint_ns, self._key.checkpoint_id))
        parents = metadata.get("parents")
        if isinstance(parents, Mapping):
            found += [
                (ns, parent)
                for ns, parent in parents.items()
                if isinstance(ns, str) and isinstance(parent, str) and f"{ns}{parent}".isprintable()
            ]
        return [key for key in dict.fromkeys(found) if key[1] != checkpoint_id]

    def _values(self, checkpoint: Checkpoint) -> dict[str, Any]:
        given = _copy_of(checkpoint, "channel_values")
        return {channel_name(name, self._dialect): value for name, value in given.items()}

    def _row(self, checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The checkpoint's row but for its manifest."""
        run_id, namespace = metadata.get("run_id"), self._key.namespace
        checkpoint_id = self._identifier("checkpoint_id", checkpoint.get("id"))
        check_key(namespace.checkpoint_ns, checkpoint_id)
        return {
            **namespace.parameters(),
            "checkpoint_id": checkpoint_id,
            "parent_checkpoint_id": self._key.checkpoint_id,
            "run_id": None if run_id is None else self._identifier("run_id", run_id),
            "metadata": project(metadata),
        }

    def writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> NewWrites:
        """Pending writes to store with the checkpoint that the encoder's key names.

        Special channels (errors, interrupts) take the place of what stands there; others do not.

        Raises:
            InvalidInputError: These are no writes, or an identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        task = self._identifier("task_id", task_id), self._identifier("task_path", task_path)
        self._write_key(*task)
        numbered = []
        for position, (given, value) in enumerate(_pairs(writes)):
            channel = channel_name(given, self._dialect)
            idx = WRITES_IDX_MAP.get(channel, position)
            numbered.append(NewWrite(*task, idx, channel, value))
        return self.numbered_writes(numbered)

    def numbered_writes(self, writes: Iterable[NewWrite]) -> NewWrites:
        """The same for writes of any tasks, whose positions are known.

        Raises:
            InvalidInputError: An identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        rows = []
        for one in writes:
            dumped = self._dump(one.value, "the write to", one.channel)
            key = self._write_key(one.task_id, one.task_path)
            rows.append(({**key, "idx": one.idx, "channel": one.channel}, dumped))
        checkpoint_id = self._key.checkpoint_id
        required = [(self._key.namespace.checkpoint_ns, str(checkpoint_id))]
        return NewWrites(self._key.namespace, checkpoint_id, self.size, required, rows)

    def _write_key(self, task_id: str, task_path: str) -> dict[str, Any]:
        """What all writes of a task have in common."""
        namespace = self._key.namespace.parameters()
        key = {**namespace, "checkpoint_id": self._key.checkpoint_id, "task_id": task_id}
        check_key(key["checkpoint_ns"], key["checkpoint_id"], task_id)
        return {**key, "task_path": task_path}

    def _identifier(self, kind: str, value: object) -> str:
        return identifier(kind, value, self._dialect)


def _named(what: str, name: str | None) -> str:
    return what if name is None else f"{what} {quoted(name)}"


def _copy_of(checkpoint: Mapping[str, Any], part: str) -> dict[Any, Any]:
    """A mapping of a checkpoint's, empty where it has none."""
    return dict(mapping(part, checkpoint.get(part, {})))


def _pairs(writes: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What was written, and where.

    Raises:
        InvalidInputError: It consists of other things than pairs.
    """
    try:
        return [(channel, value) for channel, value in writes]
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(
            f"found {quoted(writes)} as the writes, expected pairs of channel and value: {exc}"
        ) from exc


def _version(checkpoint: Checkpoint) -> int:
    """The version of LangGraph's format, or 0 where the checkpoint does not say."""
    version = checkpoint.get("v")
    return version if type(version) is int and 0 <= version < MAX_VERSION else 0
