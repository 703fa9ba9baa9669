"""Whether the values of one thread, put together of its segments, are what they were.

A value is hashed from where it goes on from one that was hashed before: what is appended costs only
its own bytes. Where it begins like another is told by its parts, which name the same bytes within
one snapshot.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from checkpointer.holdings import Fault, Held, Holdings, Stretch
from checkpointer.problems import ProblemKind
from checkpointer.slices import HEAD_SIZE, Coverage, Hash, Interval, Layout, Part, Slice, size_of

PLANNED: Final = 1 << 20
"""Bytes that are looked up before they are read and hashed, about."""

BEGINNINGS: Final = 4096
"""Beginnings of values whose hash is kept, about 1 KB each."""

Piece: TypeAlias = bytes | Stretch


@dataclass(slots=True, eq=False)
class _Beginning:
    """The bytes of a value up to the end of one of its parts, its head aside.

    Attributes:
        hashed: Their hash, unless something is wrong with them.
        faults: What is wrong with the last part.
        longer: What goes on from it, by its next part.
        longest: Where that part is a slice: the longest of those that begin in the same place.
    """

    hashed: Hash | None = None
    faults: tuple[Fault, ...] = ()
    longer: "dict[Part, _Beginning]" = field(default_factory=dict)
    longest: dict[tuple[int, int], Slice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a beginning adds to another.

    Attributes:
        end: The beginning.
        start: The other.
        pieces: The bytes between both, as far as they are there.
        missing: Those that are not.
        inherits: Whether both end in the same part of a value.
    """

    end: _Beginning
    start: _Beginning
    pieces: Sequence[Piece]
    missing: Sequence[Fault] = ()
    inherits: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """A value that is about to be hashed."""

    layout: Layout
    head: Sequence[Part]
    beginnings: Sequence[_Beginning]


class Values:
    """The values of a thread that name segments.

    Args:
        holdings: The segments.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._root = _Beginning(Hash())
        self._count = 0
        self._steps: list[_Step] = []
        self._planned = 0
        self._coverage = Coverage()
        self._told: set[Fault] = set()

    def check(self, layouts: Iterable[Layout]) -> dict[Layout, list[Fault]]:
        """What is wrong with some values; the fewer are given at once, the more is read at once."""
        found: dict[Layout, list[Fault]] = {}
        plans: list[_Plan] = []
        for layout in dict.fromkeys(layouts):
            plans.append(self._plan(layout))
            if self._planned >= PLANNED or len(self._steps) >= BEGINNINGS // 4:
                found |= self._carry_out(plans)
                plans = []
        return found | self._carry_out(plans)

    def news(self, faults: Sequence[Fault]) -> Sequence[Fault]:
        """Those faults that were not told yet; if all were, one stands for all."""
        new = [one for one in faults if one not in self._told]
        self._told.update(new)
        return new or faults[:1]

    def bytes_of(self, layout: Layout) -> bytes | None:
        """The bytes of a value; `None` where some cannot be read."""
        pieces = [data for part in layout.parts for data in self._bytes(part)]
        return None if None in pieces else b"".join(filter(None, pieces))

    def unnamed(self) -> Iterator[tuple[Held, Sequence[Interval]]]:
        """The segments of which not all is named by the values so far; what is named of them."""
        self._coverage.compact()
        for held in self._holdings:
            named = self._coverage.within(*held[:3])
            if named != [(held.start, held.stop)]:
                yield held, named

    def _plan(self, layout: Layout) -> _Plan:
        head, rest = _divided(layout.parts)
        self._coverage.add(part for part in head if isinstance(part, Slice))
        found = self._root
        beginnings = [found]
        for part in rest:
            found = found.longer.get(part) or self._begin(found, part)
            beginnings.append(found)
        return _Plan(layout, head, beginnings)

    def _begin(self, start: _Beginning, part: Part) -> _Beginning:
        """Plan to hash a part after a beginning."""
        end = start.longer[part] = _Beginning()
        self._count += 1
        if isinstance(part, bytes):
            self._steps.append(_Step(end, start, [part]))
            return end
        shorter = start.longest.get(part[:2])
        # Of a stream that has grown, go on from where the slice ended before.
        grown = shorter is not None and shorter.stop < part.stop
        if shorter is None or grown:
            start.longest[part[:2]] = part
        if shorter is not None and grown:
            start, part = start.longer[shorter], part._replace(start=shorter.stop)
        self._coverage.add([part])
        way, missing = self._holdings.way(part)
        self._planned += sum(one.stop - one.start for one in way)
        self._steps.append(_Step(end, start, way, missing, grown))
        return end

    def _carry_out(self, plans: Sequence[_Plan]) -> dict[Layout, list[Fault]]:
        pieces = (piece for step in self._steps for piece in step.pieces)
        self._holdings.expect(one.held for one in pieces if isinstance(one, Stretch))
        for step in self._steps:
            self._hash(step)
        found = {plan.layout: self._verdict(plan) for plan in plans}
        self._steps, self._planned = [], 0
        if self._count > BEGINNINGS:
            self._root, self._count = _Beginning(Hash()), 0
            self._coverage.compact()
        return found

    def _hash(self, step: _Step) -> None:
        faults = dict.fromkeys(step.start.faults if step.inherits else ())
        faults |= dict.fromkeys(step.missing)
        hashed = step.start.hashed
        for piece in step.pieces:
            fault = self._holdings.fault(piece.held) if isinstance(piece, Stretch) else None
            if fault is not None:
                faults[fault] = None
            elif hashed is not None:
                data = self._holdings.bytes_of(piece) if isinstance(piece, Stretch) else piece
                hashed = data if data is None else hashed.after(data)
        step.end.hashed = None if faults else hashed
        step.end.faults = tuple(faults)

    def _verdict(self, plan: _Plan) -> list[Fault]:
        faults = dict.fromkeys(fault for one in plan.beginnings for fault in one.faults)
        for part in plan.head:
            faults |= dict.fromkeys(self._faults(part))
        hashed = plan.beginnings[-1].hashed
        if faults or hashed is None:
            return list(faults)
        head = b"".join(data for part in plan.head for data in self._bytes(part) if data)
        if hashed.checksum(head) == plan.layout.checksum:
            return []
        detail = f"found {plan.layout.size} bytes that do not match their value's checksum"
        return [Fault(ProblemKind.CONTRADICTORY_VALUE, None, detail)]

    def _faults(self, part: Part) -> Iterator[Fault]:
        if isinstance(part, Slice):
            way, missing = self._holdings.way(part)
            yield from missing
            yield from filter(None, (self._holdings.fault(one.held) for one in way))

    def _bytes(self, part: Part) -> Iterator[bytes | None]:
        if isinstance(part, bytes):
            yield part
            return
        way, missing = self._holdings.way(part)
        yield from (None for _ in missing)
        yield from map(self._holdings.bytes_of, way)


def _divided(parts: Sequence[Part]) -> tuple[Sequence[Part], Sequence[Part]]:
    """The parts of a value's head, and those of all else."""
    if size_of(parts[0]) == HEAD_SIZE:  # as the writer has it
        return parts[:1], parts[1:]
    head: list[Part] = []
    rest: list[Part] = []
    left = HEAD_SIZE
    for part in parts:
        size = min(size_of(part), left)
        first, second = _cut(part, size)
        head += [first] if size else []
        rest += [second] if size < size_of(part) else []
        left -= size
    return head, rest


def _cut(part: Part, size: int) -> tuple[Part, Part]:
    if isinstance(part, bytes):
        return part[:size], part[size:]
    middle = part.start + size
    return part._replace(stop=middle), part._replace(start=middle)
