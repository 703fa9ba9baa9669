"""What can be wrong with stored rows, and the outcome of looking for it, as values."""

from dataclasses import dataclass
from enum import StrEnum

from checkpointer.quoting import quoted


class ProblemKind(StrEnum):
    """What is wrong with stored rows."""

    MISSING_SEGMENT = "missing bytes"
    ALTERED_SEGMENT = "altered segment"
    CONTRADICTORY_VALUE = "contradictory value"
    """All bytes that it names are there, but they are not those that it had."""

    UNREFERENCED_SEGMENT = "unreferenced segment"
    """Nothing names it, or only a part of it. No damage: a checkpoint that was replaced leaves
    some."""

    UNDECIDED_SEGMENTS = "undecided segments"
    """Nothing that can be read names them, but what cannot be read may do so."""

    TOO_NEW = "too new"
    """Only a newer version of this package can read it. No damage."""

    UNDECODABLE_MANIFEST = "undecodable manifest"
    UNDECODABLE_METADATA = "undecodable metadata"
    """The projection that filters use; the manifest holds the metadata itself."""

    UNDECODABLE_WRITE = "undecodable write"
    MISPLACED_MANIFEST = "misplaced manifest"
    """It is whole, but another checkpoint's."""

    MISSING_THREAD = "missing thread"
    """Rows whose thread has no row: the next put to it makes one, and so does what deletes."""

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
        segment: The bytes that it is about, if any: "stream 123, bytes 0 to 50", for example.
        detail: What was found.
    """

    kind: ProblemKind
    thread_id: str
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    channel: str | None = None
    segment: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        named = {
            "thread": self.thread_id,
            "namespace": self.checkpoint_ns,
            "checkpoint": self.checkpoint_id,
            "channel": self.channel,
        }
        places = [f"{name} {quoted(value)}" for name, value in named.items() if value is not None]
        places += [self.segment] if self.segment else []
        return f"{self.kind}: {', '.join(places)}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was read, and what is wrong with it.

    Attributes:
        threads: How many threads were read; likewise checkpoints, writes and segments.
        bytes: The stored bytes of these segments.
        problems: In the order of threads, and of checkpoints and writes within each.
        removed: How many unreferenced segments were removed, or cut to what is named of them.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    segments: int = 0
    bytes: int = 0
    problems: tuple[Problem, ...] = ()
    removed: int = 0

    @property
    def whole(self) -> bool:
        """Whether all was read, and nothing is missing or altered; bytes too many are no matter."""
        return all(one.kind is ProblemKind.UNREFERENCED_SEGMENT for one in self.problems)

    @property
    def damaged(self) -> bool:
        """Whether something is missing, altered or unreadable, also to a newer version."""
        harmless = {
            ProblemKind.UNREFERENCED_SEGMENT,
            ProblemKind.UNDECIDED_SEGMENTS,
            ProblemKind.TOO_NEW,
        }
        return any(one.kind not in harmless for one in self.problems)

    def __add__(self, other: "Verification") -> "Verification":
        return Verification(
            self.threads + other.threads,
            self.checkpoints + other.checkpoints,
            self.writes + other.writes,
            self.segments + other.segments,
            self.bytes + other.bytes,
            self.problems + other.problems,
            self.removed + other.removed,
        )
