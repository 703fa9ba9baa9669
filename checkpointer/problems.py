"""What can be wrong with stored rows, and the outcome of looking for it, as values."""

from dataclasses import dataclass
from enum import StrEnum

from checkpointer.quoting import quoted


class ProblemKind(StrEnum):
    """What is wrong with stored rows."""

    MISSING_CHUNK = "missing chunk"
    ALTERED_CHUNK = "altered chunk"
    CONTRADICTORY_TREE = "contradictory tree"
    """The chunks that a value names are whole, but do not add up to it."""

    UNREFERENCED_CHUNK = "unreferenced chunk"
    """Nothing names it. No damage: a checkpoint that was replaced leaves some."""

    UNDECIDED_CHUNKS = "undecided chunks"
    """Nothing that can be read names them, but what is damaged may do so."""

    UNDECODABLE_MANIFEST = "undecodable manifest"
    UNDECODABLE_METADATA = "undecodable metadata"
    """The projection that filters use; the manifest holds the metadata itself."""

    UNDECODABLE_WRITE = "undecodable write"
    MISPLACED_MANIFEST = "misplaced manifest"
    """It is whole, but another checkpoint's."""

    MISSING_THREAD = "missing thread"
    """Rows whose thread has no row: the thread can be read, but not deleted or pruned."""

    UNREADABLE_THREAD = "unreadable thread"
    """The database itself fails on its rows."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where.

    Attributes:
        kind: What it is.
        thread_id: The thread.
        checkpoint_ns: The namespace; `None` where the thread as a whole is concerned.
        checkpoint_id: The checkpoint; `None` likewise.
        channel: The channel; `None` also for the checkpoint itself and its metadata.
        digest: The digest of the chunk in hexadecimal, if it is about one.
        detail: What was found.
    """

    kind: ProblemKind
    thread_id: str
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    channel: str | None = None
    digest: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        named = {
            "thread": self.thread_id,
            "namespace": self.checkpoint_ns,
            "checkpoint": self.checkpoint_id,
            "channel": self.channel,
        }
        places = [f"{name} {quoted(value)}" for name, value in named.items() if value is not None]
        places += [f"chunk {self.digest}"] if self.digest else []
        return f"{self.kind}: {', '.join(places)}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was read, and what is wrong with it.

    Attributes:
        threads: How many threads were read; likewise checkpoints, writes and chunks.
        bytes: The stored bytes of these chunks.
        problems: In the order of threads, and of checkpoints and writes within each.
        removed: How many unreferenced chunks were removed.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    chunks: int = 0
    bytes: int = 0
    problems: tuple[Problem, ...] = ()
    removed: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, altered or unreadable; chunks too many are no matter."""
        return all(one.kind is ProblemKind.UNREFERENCED_CHUNK for one in self.problems)

    def __add__(self, other: "Verification") -> "Verification":
        return Verification(
            self.threads + other.threads,
            self.checkpoints + other.checkpoints,
            self.writes + other.writes,
            self.chunks + other.chunks,
            self.bytes + other.bytes,
            self.problems + other.problems,
            self.removed + other.removed,
        )
