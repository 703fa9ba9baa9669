"""LangGraph's checkpoints and writes, to what is stored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.cache import ChunkCache, LastCheckpoint
from checkpointer.chunking import MAX_SIZE, Cut, cut, union
from checkpointer.configs import Key, mapping
from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.identifiers import channel_name, check_key, identifier
from checkpointer.manifest import Manifest, Value, encode_manifest, encode_value
from checkpointer.projection import project
from checkpointer.quoting import quoted
from checkpointer.records import PutCheckpoint, PutWrites

CHANNEL_INLINE: Final = 256
"""Bytes up to which a channel's value stays in the manifest: about what a chunk's row costs."""

BODY_INLINE: Final = 4096
"""The same for parts that hardly ever repeat, so that chunks of them would not be shared: the
checkpoint without its values, metadata, pending writes."""


MAX_VERSION: Final = 1 << 31

Dumped: TypeAlias = tuple[str, bytes]
"""What the serde made of a value: its type tag, and its bytes."""

Known: TypeAlias = tuple[Value, frozenset[bytes]]
"""A value as it is stored, and the digests of its chunks if it is long."""

_NOTHING: Final = LastCheckpoint("", {}, {}, frozenset())


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
    """Turns the values of one put into stored bytes, and gathers the chunks that they name.

    Args:
        serde: Dumps the values.
        dialect: Says which identifiers the database can hold.
        key: What the put's config names.
        cache: Holds the whole of what long values were before.

    Attributes:
        size: How many bytes were dumped.
    """

    def __init__(
        self, serde: SerializerProtocol, dialect: Dialect, key: Key, cache: ChunkCache
    ) -> None:
        self._serde = serde
        self._dialect = dialect
        self._key = key
        self._cache = cache
        self._chunks: dict[bytes, bytes] = {}
        self._cuts: list[Cut] = []
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

    def _body(self, dumped: Dumped) -> Known:
        """A part that hardly ever repeats."""
        tag, data = dumped
        if len(data) <= BODY_INLINE:
            return Value(tag, data), frozenset()
        whole = self._cut(data, None)
        return Value(tag, whole.tree), whole.digests

    def _channel(self, dumped: Dumped, before: Known | None) -> Known:
        """A channel's value, of which `before` is the last one."""
        tag, data = dumped
        if len(data) <= CHANNEL_INLINE:
            return Value(tag, data), frozenset()
        tree = before[0].tree() if before else None
        whole = self._cut(data, self._cache.get_cut(tree) if tree else None)
        self._cuts.append(whole)
        return Value(tag, whole.tree), whole.digests

    def _cut(self, data: bytes, before: Cut | None) -> Cut:
        whole, chunks = cut(data, before)
        self._chunks |= chunks
        return whole

    def checkpoint(
        self,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
        new_versions: Mapping[str, Any],
        last: tuple[int, LastCheckpoint] | None,
    ) -> Callable[[], PutCheckpoint]:
        """Dump a checkpoint; the encoder's key names its parent.

        Args:
            checkpoint: The checkpoint.
            metadata: Its whole metadata.
            new_versions: The channels that are new for certain.
            last: The namespace's last checkpoint, as `LastCheckpoints.get` gives it. Where that is
                the parent, channels whose version has not changed keep the parent's values: with
                `durability="async"`, a run may have changed the live objects in place by now. A
                long value is cut only where it differs from the last checkpoint's.

        Returns:
            What makes of it a checkpoint to store. It needs no object of the caller's any more, and
            may be called in another thread.

        Raises:
            InvalidInputError: It is no checkpoint, or an identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        versions = _copy_of(mapping("the checkpoint", checkpoint), "channel_versions")
        mapping("new_versions", new_versions)
        row = self._row(checkpoint, metadata)
        epoch, known = last or (None, _NOTHING)
        is_parent = last is not None and known.checkpoint_id == self._key.checkpoint_id
        kept = known.unchanged(versions, new_versions) if is_parent else {}
        values = self._values(checkpoint)
        names = list(values)
        changed = [one for one in names if one not in kept]
        new = {name: self._dump(values[name], "channel", name) for name in changed}
        body = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        parts = [self._dump(body, "the checkpoint"), self._dump(metadata, "the metadata")]
        version = _version(checkpoint)

        def put() -> PutCheckpoint:
            fresh = {name: self._channel(new[name], known.channels.get(name)) for name in new}
            channels = {name: fresh.get(name) or kept[name] for name in names}
            (about, _), (described, _) = bodies = [self._body(part) for part in parts]
            stored = {name: value for name, (value, _) in channels.items()}
            row["manifest"] = encode_manifest(Manifest(version, about, described, stored))
            digests = union(digests for _, digests in (*bodies, *channels.values()))
            reused = digests.difference(self._chunks)
            return PutCheckpoint(
                self._key.namespace,
                row,
                self._chunks,
                reused,
                epoch if reused or len(new) < len(names) else None,
                LastCheckpoint(row["checkpoint_id"], versions, channels, digests),
                self._cuts,
            )

        return put

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

    def writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> PutWrites:
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

    def numbered_writes(self, writes: Iterable[NewWrite]) -> PutWrites:
        """The same for writes of any tasks, whose positions are known.

        Raises:
            InvalidInputError: An identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        rows: list[dict[str, Any]] = []
        special: list[dict[str, Any]] = []
        for one in writes:
            dumped, _ = self._body(self._dump(one.value, "the write to", one.channel))
            row = {
                **self._write_key(one.task_id, one.task_path),
                "idx": one.idx,
                "channel": one.channel,
                "data": encode_value(dumped),
                "chunked": dumped.tree() is not None,
            }
            (special if one.idx < 0 else rows).append(row)
        return PutWrites(self._key.namespace, rows, special, self._chunks)

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
