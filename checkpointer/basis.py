"""What a put builds on: the stored values whose bytes it may name instead of storing them again."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from checkpointer.manifest import Value
from checkpointer.memory import Known, KnownCheckpoint
from checkpointer.records import Namespace, Put
from checkpointer.sealing import FormatError
from checkpointer.sharing import Source, Whole
from checkpointer.slices import Layout, Segments

CheckpointKey: TypeAlias = tuple[str, str]
"""Namespace and id of a checkpoint."""


@dataclass(slots=True)
class Basis:
    """What is stored already of the values that a put may share.

    Attributes:
        known: What the database must confirm before a put names any of these bytes.
        state: The state of the thread's row, where it was read.
        parent: The put's parent.
        others: Further checkpoints whose values it may share.
        wholes: The bytes of their long values.
        segments: Where to find the bytes that are not in `wholes`.
    """

    known: Known | None = None
    parent: KnownCheckpoint | None = None
    others: list[KnownCheckpoint] = field(default_factory=list)
    wholes: dict[Layout, Whole] = field(default_factory=dict)
    segments: Segments = field(default_factory=Segments)
    state: int | None = None

    def complete(self) -> None:
        """Join the values that are not in `wholes`, except damaged ones."""
        for layout in self.layouts():
            if layout not in self.wholes and self.segments:
                try:
                    self.wholes[layout] = Whole(*self.segments.join(layout))
                except FormatError:
                    continue  # a read raises the error; here, its bytes are only stored again

    @property
    def size(self) -> int:
        """How many bytes the values have that are not in `wholes`."""
        return sum(one.size for one in self.layouts() if one not in self.wholes)

    def unchanged(
        self, versions: Mapping[str, Any], new_versions: Collection[str]
    ) -> dict[str, Value]:
        """The parent's values that a child keeps, except those that cannot be read."""
        if self.parent is None:
            return {}
        found = self.parent.unchanged(versions, new_versions)
        return {
            name: value
            for name, value in found.items()
            if (layout := value.layout()) is None or layout in self.wholes
        }

    def dumped(
        self, versions: Mapping[str, Any], new_versions: Collection[str]
    ) -> dict[str, tuple[str, bytes]]:
        """The type tags and the bytes of these values."""
        return {
            name: (value.type, self.wholes[one].data if isinstance(one, Layout) else one)
            for name, value in self.unchanged(versions, new_versions).items()
            for one in [value.content]
        }

    def sources(self, channel: str | None) -> list[Source]:
        """The long values that a new one may share, the likeliest first.

        Args:
            channel: The channel that the new one belongs to, if any.
        """
        layouts: dict[Layout, None] = {}
        for one in filter(None, [self.parent, *self.others]):
            value = one.channels.get(channel) if channel is not None else None
            if value is not None and (layout := value.layout()) is not None:
                layouts[layout] = None
        layouts |= dict.fromkeys(self.layouts())
        return [(self.wholes[one], one) for one in layouts if one in self.wholes]

    def layouts(self) -> list[Layout]:
        """The layouts of all these values."""
        return [
            layout for one in filter(None, [self.parent, *self.others]) for layout in one.layouts()
        ]


class New(ABC):
    """A checkpoint or writes that were dumped, and will be encoded on a basis."""

    __slots__ = ()

    namespace: Namespace
    """Where it goes."""

    parent: str | None
    """The checkpoint that it is a child of, or that the writes belong to."""

    size: int
    """How many bytes were dumped."""

    known: Known | None
    """What was known of the thread when this was dumped, if this keeps a value of its parent."""

    required: list[CheckpointKey]
    """The checkpoints whose values it may share."""

    @property
    @abstractmethod
    def builds_on_others(self) -> bool:
        """Whether it has a long value, or keeps any value of its parent."""

    @property
    @abstractmethod
    def is_long(self) -> bool:
        """Whether it has a long value of its own."""

    @abstractmethod
    def versions_of(self, tag: str, data: bytes) -> Mapping[str, Any]:
        """The versions of a stored checkpoint's channels."""

    @abstractmethod
    def encode(self, basis: Basis) -> Put:
        """What is stored of it, on the basis of what is stored already."""
