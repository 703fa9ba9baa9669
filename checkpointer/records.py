"""What is put and what is read, as values: checkpoints, pending writes and the bytes they name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from checkpointer.errors import DamagedDataError, SchemaTooNewError
from checkpointer.manifest import Manifest, Value, decode_manifest, decode_value
from checkpointer.memory import Known, KnownCheckpoint
from checkpointer.sealing import FORMAT, FormatError, TooNewError
from checkpointer.sharing import Source, Whole
from checkpointer.slices import Layout, Segment, Segments


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
    """One checkpoint to store.

    Attributes:
        segments: The bytes that it stores.
        relies_on: What the database has to confirm: all that it names and does not store.
        values: Its long values.
        row: Its row.
        checkpoint: What the process remembers of it, once it has committed.
    """

    namespace: Namespace
    segments: Sequence[Segment]
    relies_on: Known | None
    values: Sequence[Source]
    row: dict[str, Any]
    checkpoint: KnownCheckpoint


@dataclass(frozen=True, slots=True)
class PutWrites:
    """One task's pending writes to store.

    Attributes:
        segments: The bytes that they store.
        relies_on: What the database has to confirm: all that they name and do not store.
        values: Their long values.
        checkpoint_id: The checkpoint that they belong to.
        rows: Kept as they stand in the database, if they stand there already.
        special_rows: Take the place of those that stand there.
    """

    namespace: Namespace
    segments: Sequence[Segment]
    relies_on: Known | None
    values: Sequence[Source]
    checkpoint_id: str | None
    rows: list[dict[str, Any]]
    special_rows: list[dict[str, Any]]


Put = PutCheckpoint | PutWrites


def size_of(put: Put) -> tuple[int, int]:
    """The rows that a put hands over, and the bytes of its manifest or writes and its segments."""
    if isinstance(put, PutCheckpoint):
        rows, data = 1, len(put.row["manifest"])
    else:
        rows = len(put.rows) + len(put.special_rows)
        data = sum(len(row["data"]) for row in (*put.rows, *put.special_rows))
    return rows + len(put.segments), data + sum(len(one.data) for one in put.segments)


class RefusedError(Exception):
    """What a put relies on is not what the database holds. Nothing of it was stored."""


def too_new(found: str) -> SchemaTooNewError:
    """The error that only a newer version of this package can read what was found."""
    return SchemaTooNewError(found, found=None, expected=f"format {FORMAT}")


@dataclass(slots=True)
class StoredWrite:
    """One pending write as it stands in the database."""

    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    value: Value | FormatError

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """A row of the table."""
        value: Value | FormatError
        try:
            value = decode_value(row.data)
        except FormatError as exc:
            value = exc
        else:
            if row.sliced != (value.layout() is not None):
                value = FormatError(f"found sliced = {row.sliced} beside a value that is not so")
        return cls(row.checkpoint_id, row.task_id, row.idx, row.task_path, row.channel, value)

    def layout(self) -> Layout | None:
        """The layout of its value, unless that is inline or unreadable."""
        return self.value.layout() if isinstance(self.value, Value) else None


@dataclass(slots=True)
class StoredCheckpoint:
    """One checkpoint as it stands in the database, with the bytes that it names.

    Attributes:
        manifest: The manifest, or why it cannot be read.
        writes: Its pending writes, in no order.
        sends: Its parent's writes to the channel of pending sends, for old formats.
        segments: Those that hold its long values, but for those of `wholes`.
        wholes: Values that are at hand as a whole.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    state: int | None
    manifest: Manifest | FormatError
    writes: list[StoredWrite] = field(default_factory=list)
    sends: list[StoredWrite] = field(default_factory=list)
    segments: Segments = field(default_factory=Segments)
    wholes: dict[Layout, Whole] = field(default_factory=dict)

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
            row.state,
            manifest,
        )

    @property
    def namespace(self) -> Namespace:
        """The line of checkpoints that it stands in."""
        return Namespace(self.thread_id, self.checkpoint_ns)

    def layouts(self) -> Iterable[Layout]:
        """The layouts of all its long values and writes."""
        if isinstance(self.manifest, Manifest):
            yield from self.manifest.layouts()
        for write in (*self.writes, *self.sends):
            if (layout := write.layout()) is not None:
                yield layout

    @property
    def size(self) -> int:
        """The bytes of all its long values and writes."""
        return sum(layout.size for layout in self.layouts())

    def load(self, value: Value | FormatError, what: str) -> tuple[str, bytes]:
        """The type tag and the bytes of one of its values, verified.

        Args:
            value: The value.
            what: What it is, for the error: "channel 'messages'", for example.

        Raises:
            DamagedDataError: Bytes are missing or altered, or the value cannot be read.
            SchemaTooNewError: Only a newer version of this package can read it.
        """
        try:
            if isinstance(value, FormatError):
                raise value
            content = value.content
            return value.type, self._join(content) if isinstance(content, Layout) else content
        except FormatError as exc:
            raise self.damage(f"{what}: {exc}", exc) from exc

    def _join(self, layout: Layout) -> bytes:
        whole = self.wholes.get(layout)
        if whole is None:
            whole = self.wholes[layout] = Whole(*self.segments.join(layout))
        return whole.data

    def damage(self, reason: str, cause: Exception | None = None) -> Exception:
        """The error that names this checkpoint.

        Args:
            reason: What was found.
            cause: What was raised.
        """
        place = (
            f"thread {self.thread_id!r}, namespace {self.checkpoint_ns!r}, checkpoint "
            f"{self.checkpoint_id!r}: {reason}"
        )
        if isinstance(cause, TooNewError):
            return too_new(place)
        return DamagedDataError(
            f"{place}; the stored rows do not hold what was written, restore them from a backup, "
            f"or delete the thread with adelete_thread"
        )
