"""Long values by reference: streams, slices, layouts (docs/format.md). Pure functions.

A stream is a sequence of bytes within a thread, written once. Its bytes are stored in segments, one
row each. A long value is a layout: slices of streams and literal bytes, one after the other, with a
checksum of the whole. The checksum is needed because positions do not tell which bytes they must
hold.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias

from checkpointer.sealing import FormatError, pack, unpack

HEAD_SIZE: Final = 16
"""Bytes at the front of a value that are hashed apart.

A serialized container has its length there, and every append changes the length. The hash of all
other bytes can be continued.
"""

CHECKSUM_SIZE: Final = 16
"""Bytes of a value's checksum: BLAKE2b-128."""

MAX_SIZE: Final = 512 << 20
"""The most bytes of a value. A put is one message, and PostgreSQL takes at most 1 GB in one."""

MAX_PARTS: Final = 4096
"""The most parts of a layout. The writer makes far fewer."""

MAX_SEGMENT: Final = 1 << 20
"""The most bytes of a stream in one row, before compression."""

MAX_STREAM: Final = (1 << 63) - 1

Interval: TypeAlias = tuple[int, int]


class Slice(NamedTuple):
    """Bytes `start` to `stop` of one stream of the thread."""

    stream: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.stop - self.start


Part: TypeAlias = bytes | Slice


@dataclass(frozen=True, slots=True)
class Layout:
    """A long value by reference.

    Attributes:
        checksum: The checksum of its bytes, see `Hash`.
        parts: What its bytes consist of, in order: literal bytes and slices.
    """

    checksum: bytes
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """How many bytes the value has."""
        return sum(map(size_of, self.parts))

    def slices(self) -> Iterator[Slice]:
        """The slices among its parts."""
        return (part for part in self.parts if isinstance(part, Slice))


def size_of(part: Part) -> int:
    """How many bytes a part stands for."""
    return part.size if isinstance(part, Slice) else len(part)


class Hash:
    """The checksum of a value: of its first bytes, and of the hash of all others.

    `BLAKE2b-128(BLAKE2b-256(bytes from HEAD_SIZE on) + the first HEAD_SIZE bytes)`. If bytes are
    added at the end, only they are hashed.
    """

    def __init__(self, rest: Any = None) -> None:
        self._rest = rest or blake2b(digest_size=32)

    def after(self, data: bytes | memoryview) -> "Hash":
        """The hash of more bytes; the first of them must stand at `HEAD_SIZE` or later."""
        rest = self._rest.copy()
        rest.update(data)
        return Hash(rest)

    def checksum(self, head: bytes) -> bytes:
        """The checksum of the value that begins with `head`."""
        return blake2b(self._rest.digest() + head, digest_size=CHECKSUM_SIZE).digest()


def hash_of(data: bytes) -> Hash:
    """The hash of a whole value."""
    return Hash().after(memoryview(data)[HEAD_SIZE:])


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of `checkpointer_segments`: bytes of one stream, sealed."""

    stream: int
    start: int
    stop: int
    data: bytes

    def unpack(self) -> bytes:
        """The bytes.

        Raises:
            FormatError: They are altered, or not as many as the row says.
        """
        body = unpack(self.data, MAX_SEGMENT)
        if len(body) != self.stop - self.start:
            found = f"found {len(body)} bytes in the segment {self.start} to {self.stop}"
            raise FormatError(f"{found} of stream {self.stream}")
        return body

    @property
    def interval(self) -> Interval:
        """Where it begins and ends."""
        return self.start, self.stop


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one stream that are in memory, as a part of a value.

    Attributes:
        data: The value.
        at: Where in the value the bytes begin.
    """

    stream: int
    start: int
    stop: int
    data: bytes
    at: int

    def unpack(self) -> bytes:
        """The bytes."""
        return self.data[self.at : self.at + self.stop - self.start]


def pieces_of(data: bytes, layout: Layout) -> Iterator[Piece]:
    """The bytes of streams that a value holds."""
    at = 0
    for part in layout.parts:
        if isinstance(part, Slice):
            yield Piece(*part, data, at)
        at += size_of(part)


def is_place(*numbers: object) -> bool:
    """Whether these can be the stream, the start and the stop of a row.

    SQLite stores anything in any column.
    """
    stream, start, stop = numbers
    if type(stream) is int and type(start) is int and type(stop) is int:
        return 0 <= start < stop
    return False


def segments_of(stream: int, start: int, data: bytes, size: int = MAX_SEGMENT) -> list[Segment]:
    """The rows for some bytes of a stream, which begin at `start`."""
    pieces = (data[i : i + size] for i in range(0, len(data), size))
    found = []
    for piece in pieces:
        found.append(Segment(stream, start, start + len(piece), pack(piece)))
        start += len(piece)
    return found


class Segments:
    """Segments that were read, by stream. Each is unpacked once, when it is first needed."""

    def __init__(self, found: Iterable[Segment | Piece] = ()) -> None:
        self._rows = defaultdict[int, list[Segment | Piece]](list)
        self._unpacked: dict[tuple[int, int, int], bytes] = {}
        self._indexes: dict[int, tuple[list[Segment | Piece], list[int], list[int]]] = {}
        rows = [row for row in found if is_place(row.stream, row.start, row.stop)]
        for one in sorted(rows, key=lambda row: (row.stream, row.start, -row.stop)):
            self._rows[one.stream].append(one)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def covers(self, wanted: Slice) -> bool:
        """Whether all bytes of a slice are here. Their checksums are not checked."""
        return self._way(wanted) is not None

    def bytes_of(self, wanted: Slice) -> bytes:
        """The bytes of a slice.

        Raises:
            FormatError: Some are missing or altered.
        """
        way = self._way(wanted)
        if way is None:
            raise FormatError(
                f"bytes {wanted.start} to {wanted.stop} of stream {wanted.stream} are missing"
            )
        pieces = [self._body(row)[start - row.start : stop - row.start] for row, start, stop in way]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def join(self, layout: Layout) -> tuple[bytes, Hash]:
        """The bytes of a value, and their hash.

        Raises:
            FormatError: Bytes are missing or altered, or are not those of the value.
        """
        if layout.size > MAX_SIZE:
            raise FormatError(f"found a value of {layout.size} bytes, expected at most {MAX_SIZE}")
        data = b"".join(
            self.bytes_of(part) if isinstance(part, Slice) else part for part in layout.parts
        )
        found = hash_of(data)
        if found.checksum(data[:HEAD_SIZE]) != layout.checksum:
            raise FormatError(f"found {len(data)} bytes that do not match their value's checksum")
        return data, found

    def _way(self, wanted: Slice) -> list[tuple[Segment | Piece, int, int]] | None:
        """The rows that hold a slice, and from where to where each holds it."""
        rows, starts, longest = self._index(wanted.stream)
        at, way = wanted.start, []
        while at < wanted.stop:
            # Rows may overlap: a cut and a copy may have divided them at different positions.
            before = bisect_right(starts, at)
            row = rows[longest[before - 1]] if before else None
            if row is None or row.stop <= at:
                return None
            stop = min(row.stop, wanted.stop)
            way.append((row, at, stop))
            at = stop
        return way

    def _index(self, stream: int) -> tuple[list[Segment | Piece], list[int], list[int]]:
        """A stream's rows, where each begins, and for each which row up to it ends last."""
        found = self._indexes.get(stream)
        if found is None:
            rows = self._rows.get(stream, [])
            longest: list[int] = []
            for index, row in enumerate(rows):
                last = longest[-1] if longest else index
                longest.append(index if row.stop > rows[last].stop else last)
            found = self._indexes[stream] = rows, [row.start for row in rows], longest
        return found

    def _body(self, row: Segment | Piece) -> bytes:
        key = (row.stream, row.start, row.stop)
        body = self._unpacked.get(key)
        if body is None:
            body = self._unpacked[key] = row.unpack()
        return body


@dataclass(slots=True)
class Coverage:
    """Which bytes of which streams something names or holds."""

    intervals: defaultdict[int, list[Interval]] = field(default_factory=lambda: defaultdict(list))
    _merged: dict[int, list[Interval]] = field(default_factory=dict)

    def add(self, slices: Iterable[Slice]) -> None:
        """Add some slices."""
        for stream, start, stop in slices:
            self.intervals[stream].append((start, stop))
        self._merged.clear()

    def compact(self) -> None:
        """Join the intervals that touch, so that slices that come again take no more memory."""
        for stream in self.intervals:
            self.intervals[stream] = self.merged(stream)

    def merged(self, stream: int) -> list[Interval]:
        """The intervals of a stream in order; those that touch are joined."""
        found = self._merged.get(stream)
        if found is not None:
            return found
        found = self._merged[stream] = []
        for start, stop in sorted(self.intervals.get(stream, ())):
            if found and start <= found[-1][1]:
                found[-1] = (found[-1][0], max(stop, found[-1][1]))
            else:
                found.append((start, stop))
        return found

    def within(self, stream: int, start: int, stop: int) -> list[Interval]:
        """The parts of an interval that are covered, in order."""
        return [
            (max(a, start), min(b, stop)) for a, b in self.merged(stream) if a < stop and b > start
        ]


def pack_layout(layout: Layout) -> list[Any]:
    """A layout, made of types that MessagePack has."""
    parts = [part if isinstance(part, bytes) else [*part] for part in layout.parts]
    return [layout.checksum, parts]


def unpack_layout(packed: Any) -> Layout:
    """A layout from bytes that may be hostile: everything is checked.

    Raises:
        ValueError: It is impossible.
    """
    checksum, parts = packed
    if type(checksum) is not bytes or len(checksum) != CHECKSUM_SIZE or not parts:
        raise ValueError("found a layout without a checksum or without parts")
    if len(parts) > MAX_PARTS:
        raise ValueError(f"found {len(parts)} parts in a layout, expected at most {MAX_PARTS}")
    layout = Layout(checksum, tuple(map(_part, parts)))
    if layout.size > MAX_SIZE:
        raise ValueError(f"found a layout of {layout.size} bytes, expected at most {MAX_SIZE}")
    return layout


def _part(packed: Any) -> Part:
    if type(packed) is bytes:
        return packed
    stream, start, stop = packed
    if not all(type(number) is int for number in packed):
        raise ValueError("found a slice of something else than numbers")
    if not (0 <= stream <= MAX_STREAM and 0 <= start < stop <= MAX_STREAM):
        raise ValueError(f"found the impossible slice {start} to {stop} of stream {stream}")
    return Slice(stream, start, stop)


def slices_of(layouts: Iterable[Layout]) -> list[Slice]:
    """The slices of some layouts, each once."""
    return list(dict.fromkeys(part for layout in layouts for part in layout.slices()))
