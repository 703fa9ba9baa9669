"""The segments that one thread holds: where they stand, and their bytes, read some at a time.

All within one snapshot. What is kept of a segment is its place, and of the last few their bytes.
"""

from bisect import bisect_right
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.arrays import AnySelect, keys_wanted, segments_at_once
from checkpointer.execution import Connection
from checkpointer.problems import ProblemKind
from checkpointer.queries import Queries
from checkpointer.quoting import quoted
from checkpointer.sealing import FormatError, TooNewError
from checkpointer.slices import Segment, Slice, is_place
from checkpointer.store import Store, batched
from checkpointer.tables import segments

KEYS: Final = 1024
"""Segments that are listed at once, or read if they are short."""

BYTES: Final = 1 << 20
"""Bytes of segments that are read at once, or one segment."""

KEPT: Final = 2 << 20
"""Bytes of segments that are kept for the values that follow."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with bytes that a value names, or with the value that they make."""

    kind: ProblemKind
    segment: str | None
    detail: str


class Held(NamedTuple):
    """Where a segment stands, and how many bytes are stored of it."""

    stream: int
    start: int
    stop: int
    size: int

    @property
    def weight(self) -> int:
        """How many bytes reading it takes."""
        return max(self.size, self.stop - self.start)


class Stretch(NamedTuple):
    """Bytes `start` to `stop` of a stream, within one segment."""

    held: Held
    start: int
    stop: int


def named(stream: object, start: object, stop: object) -> str:
    """What bytes of a stream are called."""
    return f"stream {quoted(stream)}, bytes {quoted(start)} to {quoted(stop)}"


class Holdings:
    """The segments of a thread.

    Args:
        connection: Where to read.
        store: The statements.
        thread_id: The thread.

    Attributes:
        count: How many are stored.
        bytes: Their stored bytes.
        faults: What is wrong with those that were read.
        impossible: The same of those that stand nowhere in a stream.
    """

    def __init__(self, connection: Connection, store: Store, thread_id: str) -> None:
        self._connection, self._store, self._thread_id = connection, store, thread_id
        self.count, self.bytes = 0, 0
        self.faults: dict[Held, Fault] = {}
        self.impossible: list[Fault] = []
        self._by_stream = defaultdict[int, list[Held]](list)
        self._ways: dict[int, tuple[list[int], list[Held]]] = {}
        self._kept = OrderedDict[Held, bytes]()
        self._kept_bytes = 0
        self._read: set[Held] = set()
        self._coming = deque[Held]()
        for row in self._listed():
            self._add(row)
        self._compare()

    def _listed(self) -> Iterator[Any]:
        """The key of each, in order, and how many bytes it has."""
        given: dict[str, Any] = {"thread_id": self._thread_id, "limit": KEYS}
        while True:
            statement = _page_of_keys(self._store.queries, cursor="after_start" in given)
            rows = self._connection.fetch(statement, given)
            yield from rows
            if len(rows) < KEYS:
                return
            given |= {"after_stream": rows[-1].stream_id, "after_start": rows[-1].start}

    def _add(self, row: Any) -> None:
        self.count += 1
        self.bytes += row.bytes
        if is_place(row.stream_id, row.start, row.stop):
            self._by_stream[row.stream_id].append(Held(*row))
        else:
            detail = "found a segment in an impossible place"
            name = named(row.stream_id, row.start, row.stop)
            self.impossible.append(Fault(ProblemKind.ALTERED_SEGMENT, name, detail))

    def _compare(self) -> None:
        """See that segments which overlap hold the same bytes: readers take the one or the other.

        Each is compared with the one before that reaches furthest, which holds all that others
        before it have in common with it.
        """
        for stream, rows in self._by_stream.items():
            way = [rows[0]]
            if any(one.stop > other.start for one, other in pairwise(rows)):
                self.expect(rows)
            for one in rows[1:]:
                longest = way[-1]
                if one.start < longest.stop:
                    self._compare_two(longest, one)
                if one.stop > longest.stop:
                    way.append(one)
            self._ways[stream] = [one.start for one in way], way

    def _compare_two(self, one: Held, other: Held) -> None:
        start, stop = other.start, min(one.stop, other.stop)
        data = [self.bytes_of(Stretch(held, start, stop)) for held in (one, other)]
        if None not in data and data[0] != data[1]:
            for held, beside in ((one, other), (other, one)):
                detail = f"found other bytes than in the segment {beside.start} to {beside.stop}"
                fault = Fault(ProblemKind.ALTERED_SEGMENT, named(*held[:3]), detail)
                self.faults.setdefault(held, fault)

    def __iter__(self) -> Iterator[Held]:
        for rows in self._by_stream.values():
            yield from rows

    def way(self, wanted: Slice) -> tuple[list[Stretch], list[Fault]]:
        """Where the bytes of a slice stand, and what is missing of it."""
        starts, rows = self._ways.get(wanted.stream, ([], []))
        at, place = wanted.start, max(bisect_right(starts, wanted.start) - 1, 0)
        way: list[Stretch] = []
        missing: list[Fault] = []
        while at < wanted.stop:
            if place == len(rows) or rows[place].start > at:
                stop = min(rows[place].start, wanted.stop) if place < len(rows) else wanted.stop
                name = named(wanted.stream, at, stop)
                missing.append(Fault(ProblemKind.MISSING_SEGMENT, name, "no segment holds them"))
                at = stop
            elif rows[place].stop > at:
                stop = min(rows[place].stop, wanted.stop)
                way.append(Stretch(rows[place], at, stop))
                at = stop
            else:
                place += 1
        return way, missing

    def expect(self, rows: Iterable[Held]) -> None:
        """Say which segments will be asked for, in their order, so that some are read at once."""
        self._coming = deque(rows)

    def bytes_of(self, wanted: Stretch) -> bytes | None:
        """Some bytes; `None` where their segment cannot be read, as `faults` tells."""
        held = wanted.held
        if held in self.faults:
            return None
        body = self._kept.get(held)
        if body is None:
            body = self._fetch(held)
            if body is None:
                return None
        else:
            self._kept.move_to_end(held)
        return body[wanted.start - held.start : wanted.stop - held.start]

    def fault(self, held: Held) -> Fault | None:
        """What is wrong with a segment."""
        if held not in self._read:
            self._fetch(held)
        return self.faults.get(held)

    def read_all(self) -> None:
        """Read those that were not read so far."""
        self.expect(held for held in self if held not in self._read)
        while self._coming:
            self.fault(self._coming[0])
            while self._coming and self._coming[0] in self._read:
                self._coming.popleft()

    def _fetch(self, held: Held) -> bytes | None:
        """Read a segment, with some that are needed soon; its bytes."""
        wanted, size = {held: None}, held.weight
        while self._coming and len(wanted) < KEYS:
            following = self._coming[0]
            if following not in wanted and following not in self._kept:
                size += following.weight
                if size > BYTES:
                    break
                wanted[following] = None
            self._coming.popleft()
        body = None
        for one, data in self._rows(wanted):
            if (found := self._unpacked(one, data)) is not None:
                self._keep(one, found)
                body = found if one == held else body
        for one in wanted.keys() - self._read:  # an index of the database's is damaged
            self._read.add(one)
            name, detail = named(*one[:3]), "no row is found by its key"
            self.faults[one] = Fault(ProblemKind.MISSING_SEGMENT, name, detail)
        return body

    def _rows(self, wanted: Iterable[Held]) -> Iterator[tuple[Held, object]]:
        dialect = self._store.queries.dialect
        by_key = {held[:2]: held for held in wanted}
        for some in batched(by_key, dialect.max_list):
            given = keys_wanted(dialect, self._thread_id, some)
            for row in self._connection.fetch(segments_at_once(dialect), given):
                yield by_key[row.stream_id, row.start], row.data

    def _unpacked(self, held: Held, data: Any) -> bytes | None:
        self._read.add(held)
        try:
            return Segment(*held[:3], data).unpack()
        except FormatError as exc:
            is_new = isinstance(exc, TooNewError)
            kind = ProblemKind.TOO_NEW if is_new else ProblemKind.ALTERED_SEGMENT
            self.faults[held] = Fault(kind, named(*held[:3]), str(exc))
            return None

    def _keep(self, held: Held, body: bytes) -> None:
        if held not in self._kept:
            self._kept_bytes += len(body)
        self._kept[held] = body
        while self._kept_bytes > KEPT and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= len(gone)


@lru_cache
def _page_of_keys(queries: Queries, *, cursor: bool) -> AnySelect:
    """A page of the keys of a thread's segments, in order."""
    key = segments.c.stream_id, segments.c.start
    statement = queries.segment_keys.order_by(*key).limit(bindparam("limit", type_=sa.Integer))
    if not cursor:
        return statement
    after = (bindparam(name, type_=sa.BigInteger) for name in ("after_stream", "after_start"))
    return statement.where(sa.tuple_(*key) > sa.tuple_(*after))
