"""Checkpoints and writes that were dumped, and are laid out on what is stored already.

A draft no longer needs the caller's objects: if it is encoded again, it stores the same values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.basis import Basis, CheckpointKey, New
from checkpointer.manifest import Manifest, Value, encode_manifest, encode_value
from checkpointer.memory import Known, KnownCheckpoint
from checkpointer.records import Namespace, PutCheckpoint, PutWrites
from checkpointer.sharing import Source, Stream, lay_out
from checkpointer.slices import Layout

CHANNEL_INLINE: Final = 256
"""Bytes up to which a channel's value stays in the manifest: about what a segment's row costs."""

BODY_INLINE: Final = 4096
"""The same for the checkpoint without its values, for metadata and for pending writes. They hardly
ever repeat, so a segment of their bytes would not be shared."""

Dumped: TypeAlias = tuple[str, bytes]
"""What the serde made of a value: its type tag, and its bytes."""


class _Layouts:
    """Lays out the long values of one put, all new bytes in one stream."""

    def __init__(self, basis: Basis) -> None:
        self._basis = basis
        self.stream = Stream()
        self.values: list[Source] = []

    def value(self, dumped: Dumped, inline: int, name: str | None = None) -> Value:
        """A value as it is stored.

        Args:
            dumped: What the serde made of it.
            inline: Bytes up to which it stays inline.
            name: The channel that it belongs to.
        """
        tag, data = dumped
        if len(data) <= inline:
            return Value(tag, data)
        source = lay_out(data, [*self._basis.sources(name), *self.values], self.stream)
        self.values.append(source)
        return Value(tag, source[1])


@dataclass(slots=True)
class NewCheckpoint(New):
    """A checkpoint to store. It no longer needs the caller's objects.

    Attributes:
        namespace: Where it goes.
        parent: The id of its parent.
        size: How many bytes were dumped.
        known: What was known of the thread when it was dumped, if a value is kept.
        required: The checkpoints whose values it may share.
        serde: The serde that has dumped it.
        row: Its row without the manifest.
        version: The version of LangGraph's format.
        versions: The versions of its channels.
        new_versions: The channels that certainly have a new value.
        names: Its channels, in order.
        dumped: The values that were dumped.
        kept: The values that were not, as its parent has them.
        parts: The checkpoint without its values, and its metadata.
    """

    namespace: Namespace
    parent: str | None
    size: int
    known: Known | None
    required: list[CheckpointKey]
    serde: SerializerProtocol
    row: dict[str, Any]
    version: int
    versions: Mapping[str, Any]
    new_versions: Mapping[str, Any]
    names: list[str]
    dumped: dict[str, Dumped]
    kept: dict[str, Dumped]
    parts: list[Dumped]

    @property
    def checkpoint_id(self) -> str:
        """Its id."""
        return str(self.row["checkpoint_id"])

    @property
    def is_long(self) -> bool:
        """Whether it has a new value that is long."""
        return any(len(data) > CHANNEL_INLINE for _, data in self.dumped.values()) or any(
            len(data) > BODY_INLINE for _, data in self.parts
        )

    @property
    def builds_on_others(self) -> bool:
        """Whether it has a long value, or keeps one of its parent's."""
        return bool(self.kept) or self.is_long

    def versions_of(self, tag: str, data: bytes) -> Mapping[str, Any]:
        """The versions of a stored checkpoint's channels; none if they cannot be read."""
        try:
            found = self.serde.loads_typed((tag, data))["channel_versions"]
        except Exception:  # noqa: BLE001 - a serde may raise anything; then nothing is kept
            return {}
        return found if isinstance(found, Mapping) else {}

    def encode(self, basis: Basis) -> PutCheckpoint:
        """What is stored of it, on the basis of what is stored already."""
        basis.complete()
        layouts = _Layouts(basis)
        kept = basis.unchanged(self.versions, self.new_versions)
        values = self.dumped | self.kept
        channels = {
            name: kept[name] if name in kept else layouts.value(values[name], CHANNEL_INLINE, name)
            for name in self.names
        }
        relies = any(name in kept for name in self.names)
        about, described = (layouts.value(part, BODY_INLINE) for part in self.parts)
        manifest = Manifest(self.version, about, described, channels)
        self.row["manifest"] = encode_manifest(manifest)
        checkpoint_id = self.row["checkpoint_id"]
        return PutCheckpoint(
            self.namespace,
            layouts.stream.segments(),
            basis.known if relies or layouts.values else None,
            layouts.values,
            self.row,
            KnownCheckpoint(checkpoint_id, self.versions, channels),
        )


@dataclass(slots=True)
class NewWrites(New):
    """Pending writes to store. They no longer need the caller's objects.

    Attributes:
        namespace: Where they go.
        parent: The checkpoint that they belong to.
        size: How many bytes were dumped.
        required: The checkpoints whose values they may share.
        rows: For each write, its row without the value, and the dumped value.
        known: Always `None`: writes keep no value of a parent.
    """

    namespace: Namespace
    parent: str | None
    size: int
    required: list[CheckpointKey]
    rows: list[tuple[dict[str, Any], Dumped]]
    known: Known | None = None

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def is_long(self) -> bool:
        """Whether one of them is long."""
        return any(len(data) > BODY_INLINE for _, (_, data) in self.rows)

    @property
    def builds_on_others(self) -> bool:
        """The same as `is_long`: writes keep no value of a parent."""
        return self.is_long

    def versions_of(self, tag: str, data: bytes) -> Mapping[str, Any]:
        """None: writes keep no channel."""
        del tag, data
        return {}

    def encode(self, basis: Basis) -> PutWrites:
        """What is stored of them, on the basis of what is stored already."""
        basis.complete()
        layouts = _Layouts(basis)
        rows: list[dict[str, Any]] = []
        special: list[dict[str, Any]] = []
        for given, dumped in self.rows:
            value = layouts.value(dumped, BODY_INLINE)
            sliced = isinstance(value.content, Layout)
            row = {**given, "data": encode_value(value), "sliced": sliced}
            (special if row["idx"] < 0 else rows).append(row)
        return PutWrites(
            self.namespace,
            layouts.stream.segments(),
            basis.known if layouts.values else None,
            layouts.values,
            self.parent,
            rows,
            special,
        )
