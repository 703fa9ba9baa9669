"""What is put and what is read, as values: checkpoints, pending writes and the chunks they name."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from checkpointer.cache import LastCheckpoint
from checkpointer.chunking import ChunkError, Cut, Tree, assemble, join
from checkpointer.errors import DamagedDataError
from checkpointer.manifest import FormatError, Manifest, Value, decode_manifest, decode_value

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
    """One checkpoint to store.

    Attributes:
        row: Its row.
        chunks: The chunks that its manifest names, but for those of the namespace's last
            checkpoint's values, as far as these are reused.
        reused: The digests of the chunks that are left out.
        epoch: The epoch under which the last checkpoint was learned, if anything of it is reused.
        last: What the process remembers of it, once it has committed.
        cuts: The whole of its long values that are new.
    """

    namespace: Namespace
    row: dict[str, Any]
    chunks: Chunks
    reused: frozenset[bytes]
    epoch: int | None
    last: LastCheckpoint
    cuts: Sequence[Cut]


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


def size_of(put: Put) -> tuple[int, int]:
    """The rows that a put hands over, and the bytes of its manifest or writes and its chunks."""
    if isinstance(put, PutCheckpoint):
        rows, data = 1, len(put.row["manifest"])
    else:
        rows = len(put.rows) + len(put.special_rows)
        data = sum(len(row["data"]) for row in (*put.rows, *put.special_rows))
    return rows + len(put.chunks), data + sum(map(len, put.chunks.values()))


class ReuseError(Exception):
    """A put reuses values that may be gone; put it again with all values encoded."""


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
            if row.chunked != (value.tree() is not None):
                value = FormatError(f"found chunked = {row.chunked} beside a value that is not so")
        return cls(row.checkpoint_id, row.task_id, row.idx, row.task_path, row.channel, value)

    def tree(self) -> Tree | None:
        """The tree of its value, unless that is inline or unreadable."""
        return self.value.tree() if isinstance(self.value, Value) else None


@dataclass(slots=True)
class StoredCheckpoint:
    """One checkpoint as it stands in the database, with the chunks that it names.

    Attributes:
        manifest: The manifest, or why it cannot be read.
        writes: Its pending writes, in no order.
        sends: Its parent's writes to the channel of pending sends, for old formats.
        chunks: Those that were found whole, but for those of `cuts`.
        cuts: Values that are at hand as a whole.
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
    cuts: dict[Tree, Cut] = field(default_factory=dict)

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
            if (tree := write.tree()) is not None:
                yield tree

    @property
    def size(self) -> int:
        """The bytes of all its long values and writes."""
        return sum(tree.size for tree in self.trees())

    def assemble_channels(self) -> None:
        """Put the channels' long values together, so that `load` and `Store.learn_read` have them.

        What is missing or altered is left out: loading it raises the error.
        """
        if isinstance(self.manifest, Manifest):
            for value in self.manifest.channels.values():
                tree = value.tree()
                if tree is not None and tree not in self.cuts:
                    with suppress(ChunkError):
                        self.cuts[tree] = assemble(tree, self.chunks)

    def load(self, value: Value | FormatError, what: str) -> tuple[str, bytes]:
        """The type tag and the bytes of one of its values, verified.

        Args:
            value: The value.
            what: What it is, for the error: "channel 'messages'", for example.

        Raises:
            DamagedDataError: A chunk is missing or altered, or the value cannot be read.
        """
        try:
            if isinstance(value, FormatError):
                raise value
            data = value.content
            if isinstance(data, Tree):
                cut = self.cuts.get(data)
                data = cut.data if cut else join(data, self.chunks)
        except (ChunkError, FormatError) as exc:
            raise self.damage(f"{what}: {exc}") from exc
        return value.type, data

    def damage(self, reason: str) -> DamagedDataError:
        """The error that names this checkpoint."""
        return DamagedDataError(
            f"thread {self.thread_id!r}, namespace {self.checkpoint_ns!r}, checkpoint "
            f"{self.checkpoint_id!r}: {reason}; the stored rows do not hold what was written, "
            f"restore them from a backup, or delete the thread with adelete_thread"
        )
