"""The segments that hold some slices: those that are at hand, and the others from the database."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from checkpointer.arrays import segments_at_once, slices_wanted
from checkpointer.execution import Connection
from checkpointer.queries import Queries
from checkpointer.slices import Piece, Segment, Segments, Slice

Wanted: TypeAlias = Mapping[str, Iterable[Slice]]
"""Slices, by thread."""

Place: TypeAlias = tuple[str, int, int, int]
"""A slice, after its thread."""


def gather(
    connection: Connection,
    queries: Queries,
    wanted: Wanted,
    at_hand: Mapping[str, Iterable[Segment | Piece]],
) -> Mapping[str, Segments]:
    """The segments that hold some slices, by thread.

    Args:
        connection: Where to read.
        queries: The statements.
        wanted: The slices.
        at_hand: The bytes that are in memory already, by thread.
    """
    dialect = queries.dialect
    rows = {thread_id: list(at_hand.get(thread_id, ())) for thread_id in wanted}
    found = {thread_id: Segments(some) for thread_id, some in rows.items()}
    missing = list(_missing(found, wanted))
    for asked in _groups(missing, dialect.max_list, together=dialect.has_arrays):
        for row in connection.fetch(segments_at_once(dialect), slices_wanted(dialect, asked)):
            rows[row.thread_id].append(Segment(*row[1:]))
    # Where rows overlap, the last one that begins no later than a slice may end within it, and an
    # earlier one may hold all of it.
    found |= {name: Segments(rows[name]) for name in {one[0] for one in missing}}
    passed_over = {one[:2] for one in _missing(found, wanted)} if missing else set()
    for thread_id, stream in sorted(passed_over):
        given = {"thread_id": thread_id, "stream_id": stream}
        for row in connection.fetch(queries.stream, given):
            rows[thread_id].append(Segment(*row[1:]))
    return found | {name: Segments(rows[name]) for name in {one[0] for one in passed_over}}


def _missing(found: Mapping[str, Segments], wanted: Wanted) -> Iterator[Place]:
    """The slices that are not covered."""
    for thread_id, some in wanted.items():
        for one in some:
            if not found[thread_id].covers(one):
                yield thread_id, one.stream, one.start, one.stop


def _groups(places: Iterable[Place], most: int, *, together: bool) -> Iterator[Sequence[Place]]:
    """Slices in order, at most `most` in a group. `together`: a group may have several threads."""
    of_threads = defaultdict[str, list[Place]](list)
    for one in _spanned(places):
        of_threads["" if together else one[0]].append(one)
    for some in of_threads.values():
        yield from (some[i : i + most] for i in range(0, len(some), most))


def _spanned(places: Iterable[Place]) -> Iterator[Place]:
    """The slices, with those joined that touch or overlap."""
    last: Place | None = None
    for one in sorted(places):
        if last is not None and one[:2] == last[:2] and one[2] <= last[3]:
            last = (*last[:3], max(last[3], one[3]))
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last
