"""What is put and what is read, as values: checkpoints, pending writes and the chunks they name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from checkpointer.chunking import ChunkError, Tree, join
from checkpointer.errors import DamagedDataError
from checkpointer.manifest import FormatError, Manifest, decode_content, decode_manifest

Chunks = Mapping[bytes, bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A line of checkpoints within a thread: the root graph's, or a subgraph's."""

    thread_id: str
    checkpoint_ns: str

    def parameters(self) -> dict[str, Any]:
        """The parameters of statements about it."""
        return {"thread_id": self.thread_id, "checkpoint_ns": self.checkpoint_ns}


@dataclass(frozen=True, slots=True)
class PutCheckpoint:
    """One checkpoint to store: its row, and every chunk that its manifest names."""

    namespace: Namespace
    row: dict[str, Any]
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class PutWrites:
    """One task's pending writes to store: their rows, and every chunk that they name.

    Attributes:
        rows: Kept as they stand in the database, if they stand there already.
        special_rows: Take the place of those that stand there.
    """

    namespace: Namespace
    rows: list[dict[str, Any]]
    special_rows: list[dict[str, Any]]
    chunks: Chunks


Put = PutCheckpoint | PutWrites


@dataclass(slots=True)
class StoredWrite:
    """One pending write as it stands in the database."""

    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    type: str
    content: bytes | Tree | FormatError

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """A row of the table."""
        content: bytes | Tree | FormatError
        try:
            content = decode_content(row.data, chunked=row.chunked)
        except FormatError as exc:
            content = exc
        return cls(
            row.checkpoint_id,
            row.task_id,
            row.idx,
            row.task_path,
            row.channel,
            row.type,
            content,
        )


@dataclass(slots=True)
class StoredCheckpoint:
    """One checkpoint as it stands in the database, with the chunks that it names.

    Attributes:
        manifest: The manifest, or why it cannot be read.
        writes: Its pending writes, in no order.
        sends: Its parent's writes to the channel of pending sends, for old formats.
        chunks: Those that were found whole.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    epoch: int | None
    manifest: Manifest | FormatError
    writes: list[StoredWrite] = field(default_factory=list)
    sends: list[StoredWrite] = field(default_factory=list)
    chunks: Mapping[bytes, bytes] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """A row of `Queries.checkpoint`, `Queries.page` or `Queries.ancestors`."""
        manifest: Manifest | FormatError
        try:
            manifest = decode_manifest(row.manifest)
        except FormatError as exc:
            manifest = exc
        return cls(
            row.thread_id,
            row.checkpoint_ns,
            row.checkpoint_id,
            row.parent_checkpoint_id,
            row.epoch,
            manifest,
        )

    @property
    def namespace(self) -> Namespace:
        """The line of checkpoints that it stands in."""
        return Namespace(self.thread_id, self.checkpoint_ns)

    def trees(self) -> Iterable[Tree]:
        """The trees of all its values and writes."""
        if isinstance(self.manifest, Manifest):
            yield from self.manifest.trees()
        for write in (*self.writes, *self.sends):
            if isinstance(write.content, Tree):
                yield write.content

    def load(self, content: bytes | Tree | FormatError, what: str) -> bytes:
        """The bytes of one of its values, verified.

        Args:
            content: The value's content.
            what: What the value is, for the error: "channel 'messages'", for example.

        Raises:
            DamagedDataError: A chunk is missing or altered.
        """
        try:
            if isinstance(content, FormatError):
                raise content
            return content if isinstance(content, bytes) else join(content, self.chunks)
        except (ChunkError, FormatError) as exc:
            raise self.damage(f"{what}: {exc}") from exc

    def damage(self, reason: str) -> DamagedDataError:
        """The error that names this checkpoint."""
        return DamagedDataError(
            f"thread {self.thread_id!r}, namespace {self.checkpoint_ns!r}, checkpoint "
            f"{self.checkpoint_id!r}: {reason}; the stored rows do not hold what was written, "
            f"restore them from a backup or delete the checkpoint"
        )
