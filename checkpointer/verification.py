"""Whether the rows still hold what was written: all are read, and every value is hashed again.

Each function is a unit of work on a given connection. A thread is verified within one snapshot, so
that what others write meanwhile is no matter, and page by page, so that it may be of any size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from checkpointer.arrays import AnySelect
from checkpointer.errors import DamagedDataError, SchemaTooNewError
from checkpointer.execution import Connection
from checkpointer.holdings import Fault, Holdings, named
from checkpointer.manifest import Manifest, Value, decode_manifest, decode_projection
from checkpointer.predicates import keys
from checkpointer.problems import Problem, ProblemKind, Verification
from checkpointer.quoting import quoted
from checkpointer.records import StoredWrite
from checkpointer.sealing import FormatError, TooNewError
from checkpointer.slices import Layout
from checkpointer.soundness import Values
from checkpointer.store import Store, batched

IdOf: TypeAlias = Callable[[str, bytes], str | None]
"""Tells a checkpoint's id from its type tag and its bytes, `None` where that cannot be told."""

PAGE: Final = 64
"""Threads listed at once, and checkpoints read: so many manifests take a few ms to decode."""


def count_threads(connection: Connection, store: Store) -> int:
    """How many threads have a row."""
    [row] = connection.fetch(store.queries.thread_count)
    return int(row.threads)


def threads_after(connection: Connection, store: Store, thread_id: str | None) -> list[str]:
    """A page of the ids of threads, in order: also of those that have rows, but none themselves.

    Args:
        connection: Where to read.
        store: The statements.
        thread_id: The last of the page before.
    """
    after = {} if thread_id is None else {"after_thread_id": thread_id}
    statement = store.queries.threads_after(cursor=bool(after))
    return [row.thread_id for row in connection.fetch(statement, {"limit": PAGE, **after})]


def verify_thread(
    connection: Connection, store: Store, thread_id: str, id_of: IdOf
) -> Verification:
    """Read all rows of a thread, from one snapshot, and tell what is wrong with them.

    A segment that many values name is named with the first; each other value that is damaged by
    what was told already is told with one of its segments.
    """
    return _Thread(connection, store, thread_id, id_of).verify()


def has_garbage(found: Verification) -> bool:
    """Whether a verified thread has segments that may be swept away, or cut."""
    undecided = any(one.kind is ProblemKind.UNDECIDED_SEGMENTS for one in found.problems)
    garbage = {ProblemKind.UNREFERENCED_SEGMENT, ProblemKind.ALTERED_SEGMENT}
    unnamed = (one.kind in garbage and one.checkpoint_id is None for one in found.problems)
    return not undecided and any(unnamed)


def check_whole(thread_id: str, found: Verification) -> None:
    """Refuse what would be stored, unless all of its thread is whole.

    Raises:
        DamagedDataError: Something is missing, altered or unreadable.
        SchemaTooNewError: Only a newer version of this package can tell.
    """
    if found.whole:
        return
    place = f"thread {thread_id!r}: found {len(found.problems)} problems"
    rest = f"nothing of it was stored. The first: {found.problems[0]}"
    if found.damaged:
        raise DamagedDataError(f"{place}, expected that all of the thread is whole; {rest}")
    raise SchemaTooNewError(
        f"{place}, expected that this version can read all of the thread; use a newer one; {rest}",
        found=None,
        expected="format 1",
    )


class _Thread:
    """One thread under verification."""

    def __init__(self, connection: Connection, store: Store, thread_id: str, id_of: IdOf) -> None:
        self._connection, self._store, self._thread_id = connection, store, thread_id
        self._id_of = id_of
        self._problems: list[Problem] = []
        [found] = connection.fetch(store.queries.thread_summary, {"thread_id": thread_id})
        self._has_row = bool(found.has_row)
        self._holdings = Holdings(connection, store, thread_id)
        self._values = Values(self._holdings)
        self._certain = True  # that every layout can be read

    def verify(self) -> Verification:
        """Read everything; to be called once."""
        queries, stored = self._store.queries, self._holdings
        rows = self._read(
            queries.checkpoint_keys, queries.manifests_of_many, self._check_checkpoints
        )
        writes = self._read(queries.write_keys, queries.writes_of_many, self._check_writes)
        is_there = bool(self._has_row or rows or writes or stored.count)
        if is_there and not self._has_row:
            found = f"{rows} checkpoints, {writes} writes, {stored.count} segments"
            detail = f"found {found} of a thread without a row; the next put makes one"
            self._add(ProblemKind.MISSING_THREAD, (None, None), detail=detail)
        self._check_unnamed()
        problems = tuple(self._problems)
        return Verification(int(is_there), rows, writes, stored.count, stored.bytes, problems)

    def _read(
        self, keys_statement: AnySelect, statement: AnySelect, check: Callable[[list[Any]], None]
    ) -> int:
        """Check rows, of some checkpoints at a time, in the order of these; how many there are."""
        count = 0
        found = self._connection.fetch(keys_statement, {"thread_id": self._thread_id})
        for some in batched(sorted(map(tuple, found)), PAGE):
            wanted = set(some)
            rows = self._connection.fetch(statement, keys(some))
            rows = sorted((row for row in rows if row[:3] in wanted), key=lambda row: row[:3])
            check(rows)
            count += len(rows)
        return count

    def _check_checkpoints(self, rows: list[Any]) -> None:
        found: dict[tuple[str, str], Manifest] = {}
        for row in rows:
            key = (row.checkpoint_ns, row.checkpoint_id)
            try:
                found[key] = decode_manifest(row.manifest)
            except FormatError as exc:
                self._add_hiding(ProblemKind.UNDECODABLE_MANIFEST, key, None, exc)
            try:
                decode_projection(row.metadata)
            except FormatError as exc:
                self._add(ProblemKind.UNDECODABLE_METADATA, key, detail=str(exc))
        faults = self._values.check(
            layout for manifest in found.values() for layout in manifest.layouts()
        )
        for key, manifest in found.items():
            if self._check_value(manifest.checkpoint, faults, key, None, "the checkpoint"):
                self._check_id(manifest.checkpoint, key)
            self._check_value(manifest.metadata, faults, key, None, "the metadata")
            for channel, value in manifest.channels.items():
                self._check_value(value, faults, key, channel, "the channel's value")

    def _check_id(self, value: Value, key: tuple[str, str]) -> None:
        """Whether a checkpoint stands under its own id."""
        content = value.content
        data = self._values.bytes_of(content) if isinstance(content, Layout) else content
        stored = self._id_of(value.type, data) if data is not None else None
        if stored not in {None, key[1]}:
            self._certain = False  # its own may come back from a backup
            detail = f"found the manifest of checkpoint {quoted(stored)}"
            self._add(ProblemKind.MISPLACED_MANIFEST, key, detail=detail)

    def _check_writes(self, rows: list[Any]) -> None:
        found = [(row.checkpoint_ns, StoredWrite.from_row(row)) for row in rows]
        layouts = (write.layout() for _, write in found)
        faults = self._values.check(layout for layout in layouts if layout is not None)
        for namespace, write in found:
            key = namespace, write.checkpoint_id
            what = f"the write of task {quoted(write.task_id)}"
            if isinstance(write.value, Value):
                self._check_value(write.value, faults, key, write.channel, what)
            else:
                kind = ProblemKind.UNDECODABLE_WRITE
                self._add_hiding(kind, key, write.channel, write.value, f"{what}: ")

    def _check_value(
        self,
        value: Value,
        faults: Mapping[Layout, Sequence[Fault]],
        key: tuple[str, str],
        channel: str | None,
        what: str,
    ) -> bool:
        """Tell what is wrong with a value; whether that is nothing."""
        layout = value.layout()
        found = faults[layout] if layout is not None else ()
        for fault in self._values.news(found):
            self._add(fault.kind, key, channel, fault.segment, f"{what}: {fault.detail}")
        return not found

    def _check_unnamed(self) -> None:
        """Tell of the segments that nothing names, and read what was not read so far."""
        self._holdings.read_all()
        for one in self._holdings.impossible:
            self._add(one.kind, (None, None), None, one.segment, one.detail)
        undecided = 0
        for held, live in self._values.unnamed():
            fault = self._holdings.faults.get(held)
            if fault is not None and not live:
                detail = f"{fault.detail}, and nothing that names it"
                self._add(fault.kind, (None, None), None, fault.segment, detail)
            elif fault is None and self._certain:
                parts = " and ".join(f"{start} to {stop}" for start, stop in live)
                detail = f"nothing names more than {parts}" if parts else "nothing names it"
                kind = ProblemKind.UNREFERENCED_SEGMENT
                self._add(kind, (None, None), None, named(*held[:3]), detail)
            undecided += 1
        if undecided and not self._certain:
            detail = f"found {undecided} that only a row that cannot be read may name"
            self._add(ProblemKind.UNDECIDED_SEGMENTS, (None, None), detail=detail)

    def _add_hiding(
        self,
        kind: ProblemKind,
        key: tuple[str, str],
        channel: str | None,
        found: FormatError,
        what: str = "",
    ) -> None:
        """Tell of a row that may name segments, and cannot be read."""
        self._certain = False
        kind = ProblemKind.TOO_NEW if isinstance(found, TooNewError) else kind
        self._add(kind, key, channel, detail=f"{what}{found}")

    def _add(
        self,
        kind: ProblemKind,
        key: tuple[str | None, str | None],
        channel: str | None = None,
        segment: str | None = None,
        detail: str = "",
    ) -> None:
        self._problems.append(Problem(kind, self._thread_id, *key, channel, segment, detail))
