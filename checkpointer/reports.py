"""Threads as they are listed, what they take, and what pruning removes, as values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from checkpointer.errors import InvalidInputError
from checkpointer.quoting import quoted


@dataclass(frozen=True, slots=True)
class ThreadInfo:
    """One thread, without what its checkpoints hold.

    Attributes:
        thread_id: Its id.
        created_at: When it was first put to.
        updated_at: When it was last put to; on SQLite up to a second earlier.
        checkpoints: How many it has, over all namespaces.
        stored_bytes: Manifests, metadata's projections, writes and segments; without keys, indexes
            and what the database adds to each row.
    """

    thread_id: str
    created_at: datetime
    updated_at: datetime
    checkpoints: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class ThreadPage:
    """Some threads.

    Attributes:
        threads: The threads, in the order asked for.
        after: What to pass for the page that follows; `None` at the end.
    """

    threads: Sequence[ThreadInfo]
    after: str | None


@dataclass(frozen=True, slots=True)
class TableStats:
    """How much stands in one table: rows, and bytes as in `ThreadInfo.stored_bytes`."""

    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What is stored.

    Attributes:
        threads: How many threads.
        tables: Rows and bytes of `threads`, `checkpoints`, `writes` and `segments`; a thread's own
            row counts as no bytes.
        logical_bytes: What the values of all checkpoints and writes would take, were each stored
            whole.
        stored_bytes: What they take.
        largest: The threads that take most, the largest first.
    """

    threads: int
    tables: Mapping[str, TableStats]
    logical_bytes: int
    stored_bytes: int
    largest: Sequence[ThreadInfo]

    @property
    def saving(self) -> float:
        """The part of the logical bytes that is not stored: 0 for none, close to 1 for most."""
        if not self.logical_bytes:
            return 0.0
        return max(0.0, 1 - self.stored_bytes / self.logical_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What is deleted over all threads, and what never.

    A checkpoint goes only if every limit given lets it go: with `max_age` and `keep_last`, if it is
    older than the one and not among the other. Never does the latest of a namespace, one that waits
    for the answer to an interrupt, or what one that stays is read from. One waits until a run has
    gone on from it: an update or a new input beside the question does not answer it.

    Attributes:
        max_age: Checkpoints that are older may go, by the time in their id (a UUIDv6, as LangGraph
            makes them; by their own `ts` where it is none). One whose age cannot be told stays.
        keep_last: Checkpoints that are not among the latest so many of their namespace may go.
        idle_for: Threads that were last put to longer ago go as a whole, unless they hold a
            protected checkpoint. It must exceed the longest that a node takes: a run puts nothing
            meanwhile, and goes on without its history once its thread is gone.
        protected_threads: Ids of threads that are left as they are.
        protected_checkpoints: Ids of checkpoints, of any thread and namespace, that stay.

    Raises:
        InvalidInputError: A limit is of a wrong type or out of range, or there is none.
    """

    max_age: timedelta | None = None
    keep_last: int | None = None
    idle_for: timedelta | None = None
    protected_threads: Collection[str] = ()
    protected_checkpoints: Collection[str] = ()

    def __post_init__(self) -> None:
        for name in ("max_age", "idle_for"):
            _check_duration(name, getattr(self, name))
        check_keep_last(self.keep_last)
        for name in ("protected_threads", "protected_checkpoints"):
            _check_ids(name, getattr(self, name))
        if self.max_age is None and self.keep_last is None and self.idle_for is None:
            raise InvalidInputError(
                "found a retention policy without a limit, expected max_age, keep_last or idle_for"
            )


def check_keep_last(value: object) -> None:
    """Refuse what is no number of checkpoints to keep.

    Raises:
        InvalidInputError: It is neither `None` nor an int of 1 or more.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInputError(
            f"found keep_last {quoted(value)}, expected an int of 1 or more; to delete whole "
            f'threads, use strategy="delete" or idle_for'
        )


def _check_duration(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta):
        raise InvalidInputError(
            f"found {name} {quoted(value)}, expected a timedelta; pass timedelta(days=...)"
        )
    if value < timedelta():
        raise InvalidInputError(f"found {name} of {value}, expected a timedelta of 0 or more")


def _check_ids(name: str, value: object) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise InvalidInputError(
            f"found {name} {quoted(value)}, expected a list, tuple or set of ids; pass [...]"
        )


@dataclass(frozen=True, slots=True)
class ThreadPrune:
    """What goes of one thread.

    Attributes:
        thread_id: The thread.
        deleted: Whether it goes as a whole.
        checkpoints: The ids that go, by namespace, in order.
        writes: How many pending writes go with them.
        segments: How many segments go, or are cut: all bytes that nothing names afterwards.
        bytes: What is freed, counted as in `ThreadInfo.stored_bytes`.
    """

    thread_id: str
    deleted: bool
    checkpoints: Mapping[str, Sequence[str]]
    writes: int
    segments: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What pruning has removed, or would remove.

    Attributes:
        dry_run: Whether nothing was changed.
        examined: How many threads were looked at.
        threads: Those that lose something.
        damaged: Threads of which it is unknown what is needed, and why; they are left as they are.
        skipped: Threads that could not be had in time, and why; likewise. The next run takes them.
    """

    dry_run: bool
    examined: int
    threads: Sequence[ThreadPrune]
    damaged: Mapping[str, str] = field(default_factory=dict[str, str])
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def checkpoints(self) -> int:
        """How many checkpoints, over all threads."""
        return sum(len(ids) for one in self.threads for ids in one.checkpoints.values())

    @property
    def writes(self) -> int:
        """How many pending writes, over all threads."""
        return sum(one.writes for one in self.threads)

    @property
    def segments(self) -> int:
        """How many segments, over all threads."""
        return sum(one.segments for one in self.threads)

    @property
    def bytes(self) -> int:
        """What is freed, over all threads."""
        return sum(one.bytes for one in self.threads)

    @property
    def deleted_threads(self) -> int:
        """How many threads go as a whole."""
        return sum(one.deleted for one in self.threads)


@dataclass(slots=True)
class Retained:
    """What `aretain` has done so far; see `PruneReport`."""

    gone: list[ThreadPrune] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def report(self, examined: int, *, dry_run: bool) -> PruneReport:
        """The same, once it has ended."""
        return PruneReport(dry_run, examined, tuple(self.gone), self.damaged, self.skipped)
