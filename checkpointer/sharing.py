"""Which bytes of a new value are stored already: what a writer may choose. Pure functions.

Nothing here is part of the format (docs/format.md): two writers that choose differently can read
each other's values.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from secrets import randbits
from typing import Final, TypeAlias

from pyfastcdc import FastCDC

from checkpointer.slices import (
    HEAD_SIZE,
    Hash,
    Layout,
    Part,
    Segment,
    Slice,
    hash_of,
    segments_of,
    size_of,
)

AVERAGE_BLOCK: Final = 1024
"""The average size of blocks in bytes. Blocks find bytes that were moved."""

LEAST_SHARED: Final = 512
"""The least equal bytes that are named instead of stored: a slice takes about 15 bytes in each
manifest."""

SEARCHED: Final = 4096
"""The least new bytes in a row that are looked for in other values."""

LITERAL: Final = 32
"""The most bytes of a change that stays in the layout itself: a row would take more."""

TIERS: Final = (4 << 10, 64 << 10, 1 << 20)
"""Sizes of slices. 16 slices of one tier at a value's end are stored again as one slice."""

FAN: Final = 16

MANY: Final = 64
"""If a layout has more parts than this, its small ones are stored again, wherever they are."""

Blocks: TypeAlias = dict[bytes, int]
"""Where each block of a value begins, by its digest."""

Range: TypeAlias = tuple[int, int]


class Whole:
    """A long value whose bytes are at hand.

    Args:
        data: The bytes.
        hashed: Their hash.
    """

    __slots__ = ("_blocks", "data", "hashed")

    def __init__(self, data: bytes, hashed: Hash | None = None) -> None:
        self.data = data
        self.hashed = hashed or hash_of(data)
        self._blocks: tuple[Blocks, int] | None = None

    @property
    def checksum(self) -> bytes:
        """Its checksum."""
        return self.hashed.checksum(self.data[:HEAD_SIZE])

    def blocks(self) -> Blocks:
        """Its blocks without the last one: in a longer value, that one would end elsewhere."""
        known, start = self._blocks or ({}, HEAD_SIZE)
        if len(self.data) - start >= SEARCHED:
            pieces = [(digest, at) for digest, at, _ in _cut(self.data, start, len(self.data))]
            for digest, at in pieces[:-1]:
                known.setdefault(digest, at)  # the first: repeats follow it
            self._blocks = known, pieces[-1][1]
        return known

    def longer(self, data: bytes) -> "Whole":
        """A value that begins with all of this one; the first `HEAD_SIZE` bytes may differ."""
        whole = Whole(data, self.hashed.after(memoryview(data)[max(len(self.data), HEAD_SIZE) :]))
        if self._blocks is not None:
            known, start = self._blocks
            whole._blocks = known.copy(), start
        return whole


Source: TypeAlias = tuple[Whole, Layout]


@dataclass(frozen=True, slots=True)
class _Shared:
    """Equal bytes: a range of the new value, and where they stand in a source."""

    start: int
    stop: int
    source: Source
    at: int


class Stream:
    """The new bytes of one put: one stream, written once.

    Attributes:
        number: Its number: 63 random bits, so that no other writer chooses the same.
    """

    def __init__(self) -> None:
        self.number = randbits(63)
        self._size = 0
        self._data: list[bytes | memoryview] = []

    def __len__(self) -> int:
        return self._size

    def add(self, data: bytes | memoryview) -> Slice:
        """Put bytes at the end, and return where they are."""
        start = self._size
        self._data.append(data)
        self._size += len(data)
        return Slice(self.number, start, self._size)

    def segments(self) -> list[Segment]:
        """Its rows."""
        return segments_of(self.number, 0, b"".join(self._data))


def lay_out(data: bytes, sources: Sequence[Source], stream: Stream) -> Source:
    """Lay out a long value: stored bytes are named, and new bytes go into the stream.

    Args:
        data: Its bytes.
        sources: Values of the same thread that are stored; the likeliest first.
        stream: Where new bytes go.

    Returns:
        The value and its layout.
    """
    for whole, layout in sources:
        if whole.data == data:
            return whole, layout
    base = _continued(data, sources)
    new = Whole(data) if base is None else base[0].longer(data)
    found = _shared(new, sources, base)
    parts = _tidied(_parts(data, found), data, stream)
    return new, Layout(new.checksum, parts)


def _continued(data: bytes, sources: Iterable[Source]) -> Source | None:
    """The longest source that the value begins with; the first `HEAD_SIZE` bytes may differ."""
    fitting = [
        source
        for source in sources
        if len(source[0].data) < len(data)
        and data.startswith(source[0].data[HEAD_SIZE : HEAD_SIZE + 64], HEAD_SIZE)
        and data.startswith(source[0].data[HEAD_SIZE:], HEAD_SIZE)
    ]
    return max(fitting, key=lambda source: len(source[0].data), default=None)


def _shared(new: Whole, sources: Sequence[Source], base: Source | None) -> list[_Shared]:
    """The ranges of a value that are in the sources, in order, without overlaps."""
    data = new.data
    start, stop, found, ending = HEAD_SIZE, len(data), [], []
    if base is None and sources:
        base = sources[0]
    if base is not None:
        before = base[0].data
        most = min(len(data), len(before))
        length = _equal(data, start, before, start, most - start)
        if length >= LEAST_SHARED:
            found.append(_Shared(start, start + length, base, HEAD_SIZE))
            start += length
        length = _equal_before(data, stop, before, len(before), most - start)
        if length >= LEAST_SHARED:
            ending.append(_Shared(stop - length, stop, base, len(before) - length))
            stop -= length
    if sources and stop - start >= SEARCHED:
        found += _moved(data, start, stop, sources)
    return found + ending


def _moved(data: bytes, start: int, stop: int, sources: Sequence[Source]) -> list[_Shared]:
    """The parts of a range that are anywhere in the sources, found by blocks."""
    found: list[_Shared] = []
    indexes = [(source, source[0].blocks()) for source in sources]
    done = start
    for digest, at, end in _cut(data, start, stop):
        if at < done:  # the last match includes the start of this block
            continue
        for source, blocks in indexes:
            where = blocks.get(digest)
            before = source[0].data
            if where is not None and before[where : where + end - at] == data[at:end]:
                most = min(at - done, where - HEAD_SIZE)
                back = _equal_before(data, at, before, where, most)
                after = where + end - at
                most = min(stop - end, len(before) - after)
                more = _equal(data, end, before, after, most)
                if back + end - at + more >= LEAST_SHARED:
                    found.append(_Shared(at - back, end + more, source, where - back))
                    done = end + more
                break
    return found


def _equal(data: bytes, at: int, before: bytes, where: int, most: int) -> int:
    """How many bytes from these positions on are equal in both, at most `most`."""
    return _longest(
        lambda low, stop: data[at + low : at + stop] == before[where + low : where + stop], most
    )


def _equal_before(data: bytes, at: int, before: bytes, where: int, most: int) -> int:
    """How many bytes before these positions are equal in both, at most `most`."""
    return _longest(
        lambda low, stop: data[at - stop : at - low] == before[where - stop : where - low], most
    )


def _longest(are_equal: Callable[[int, int], bool], most: int) -> int:
    """The greatest length, at most `most`, up to which all is equal.

    Args:
        are_equal: Whether what is between two lengths is equal.
        most: The limit.
    """
    low, high, step = 0, max(most, 0), 64
    while low < high:  # in growing steps, then in smaller ones
        stop = min(low + step, high)
        if are_equal(low, stop):
            low, step = stop, step * 2
        elif stop - low == 1:
            break
        else:
            high, step = stop, max((stop - low) // 2, 1)
    return low


def _cut(data: bytes, start: int, stop: int) -> Iterable[tuple[bytes, int, int]]:
    """The blocks of a range: digest, beginning and end of each. Their content decides the ends."""
    # A chunker is cheap to make, and is not safe to share between threads.
    chunker = FastCDC(AVERAGE_BLOCK, min_size=AVERAGE_BLOCK // 4, max_size=AVERAGE_BLOCK * 8)
    for piece in chunker.cut_buf(memoryview(data)[start:stop]):
        end = start + piece.length
        yield blake2b(data[start:end], digest_size=8).digest(), start, end
        start = end


def _parts(data: bytes, found: Iterable[_Shared]) -> list[Part]:
    """A layout's parts. New bytes are still literal."""
    parts: list[Part] = [data[:HEAD_SIZE]]
    at = HEAD_SIZE
    for shared in found:
        parts.append(data[at : shared.start])
        parts += _named(shared.source[1], shared.at, shared.at + shared.stop - shared.start)
        at = shared.stop
    parts.append(data[at:])
    return [part for part in parts if size_of(part)]


def _named(layout: Layout, start: int, stop: int) -> list[Part]:
    """A range of a stored value, as parts."""
    found: list[Part] = []
    at = 0
    for part in layout.parts:
        size = size_of(part)
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            if isinstance(part, Slice):
                found.append(Slice(part.stream, part.start + low, part.start + high))
            else:
                found.append(part[low:high])
        at += size
    return found


def _tidied(parts: Sequence[Part], data: bytes, stream: Stream) -> tuple[Part, ...]:
    """The parts, after new bytes were stored, and small slices again if there are many."""
    # The head stays in the layout, because every append changes it.
    first, *others = _joined(parts)
    again = _to_store_again(others)
    done: list[Part] = [first]
    at = size_of(first)
    run = at
    for part, anew in [*zip(others, again, strict=True), (b"", False)]:
        if anew:
            at += size_of(part)
            continue
        if at > run:
            _append(done, stream.add(memoryview(data)[run:at]))
        if part:
            _append(done, part)
        at += size_of(part)
        run = at
    return tuple(done)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts, with neighbours joined where possible. Nothing is joined to the head."""
    done: list[Part] = [parts[0]]
    for part in parts[1:]:
        last = done[-1]
        if isinstance(part, bytes) and isinstance(last, bytes) and len(done) > 1:
            done[-1] = last + part
        else:
            _append(done, part)
    return done


def _append(parts: list[Part], part: Part) -> None:
    last = parts[-1]
    if (
        isinstance(part, Slice)
        and isinstance(last, Slice)
        and (last.stream, last.stop) == (part.stream, part.start)
    ):
        parts[-1] = Slice(part.stream, last.start, part.stop)
    else:
        parts.append(part)


def _to_store_again(parts: Sequence[Part]) -> list[bool]:
    """Which parts to store: new bytes, and small slices if there are many."""
    again = [isinstance(part, bytes) and len(part) > LITERAL for part in parts]
    for tier, most in enumerate(TIERS):
        least = TIERS[tier - 1] if tier else 0
        count, start = 0, len(parts)
        while start and size_of(parts[start - 1]) < most:
            start -= 1
            count += size_of(parts[start]) >= least
        if count >= FAN:
            again[start:] = [True] * (len(parts) - start)
    if len(parts) > MANY:
        large = sorted(range(len(parts)), key=lambda i: size_of(parts[i]))[-MANY // 4 :]
        again = [i not in large or anew for i, anew in enumerate(again)]
    return again
