"""Slices and segments: what is laid out is joined again, wherever its rows begin and end."""

import math
import random
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer.sealing import FORMAT, RAW, FormatError, TooNewError, pack, seal
from checkpointer.slices import (
    CHECKSUM_SIZE,
    HEAD_SIZE,
    MAX_PARTS,
    MAX_SEGMENT,
    MAX_SIZE,
    MAX_STREAM,
    Coverage,
    Hash,
    Interval,
    Layout,
    Part,
    Segment,
    Segments,
    Slice,
    hash_of,
    pack_layout,
    segments_of,
    slices_of,
    unpack_layout,
)

NOISE = random.Random(8).randbytes(3 << 20)  # noqa: S311 - a test's data, not a secret
LENGTH = 600
"""Bytes of each stream of the tests."""

STREAMS = [NOISE[start : start + LENGTH] for start in (0, 1_000)]
CHECKSUM = bytes(CHECKSUM_SIZE)


def row(stream: int, start: int, stop: int) -> Segment:
    """A row of one of the streams."""
    return Segment(stream, start, stop, pack(STREAMS[stream][start:stop]))


def value_of(*parts: Part) -> tuple[bytes, Layout]:
    """The bytes of a value that consists of these parts, and its layout."""
    data = b"".join(
        part if isinstance(part, bytes) else STREAMS[part.stream][part.start : part.stop]
        for part in parts
    )
    return data, Layout(hash_of(data).checksum(data[:HEAD_SIZE]), parts)


def rows_of(places: Sequence[int], further: Sequence[Slice]) -> list[Segment]:
    """Rows that hold all bytes of the streams: cut at these places, and further ones over them."""
    found: dict[tuple[int, int], Segment] = {}
    ends = sorted({0, LENGTH, *places})
    whole = [Slice(stream, *pair) for stream in (0, 1) for pair in pairwise(ends)]
    for one in sorted([*whole, *further], key=lambda one: one.size):
        found[one.stream, one.start] = row(*one)  # of rows with the same key, the longer one
    return list(found.values())


cuts = st.lists(st.integers(0, LENGTH), max_size=8)
some_slices = st.builds(
    lambda stream, start, size: Slice(stream, start, min(start + size, LENGTH)),
    st.sampled_from([0, 1]),
    st.integers(0, LENGTH - 1),
    st.integers(1, LENGTH),
)
rows = st.builds(rows_of, cuts, st.lists(some_slices, max_size=6)).flatmap(st.permutations)
layouts = st.lists(some_slices | st.binary(max_size=40), min_size=1, max_size=8).map(
    lambda parts: value_of(*parts)
)


@given(rows, layouts)
def test_a_value_is_joined_wherever_its_rows_begin_and_end(
    found: list[Segment], value: tuple[bytes, Layout]
) -> None:
    data, layout = value
    assert layout.size == len(data)
    segments = Segments(found)
    assert all(segments.covers(one) for one in layout.slices())
    joined, hashed = segments.join(layout)
    assert joined == data
    assert hashed.checksum(data[:HEAD_SIZE]) == layout.checksum


@given(rows, some_slices, st.data())
def test_bytes_that_are_missing_are_told(
    found: list[Segment], wanted: Slice, chosen: st.DataObject
) -> None:
    left = chosen.draw(st.lists(st.sampled_from(found), unique=True))
    there = {at for one in left if one.stream == wanted.stream for at in range(one.start, one.stop)}
    segments = Segments(left)
    if there.issuperset(range(wanted.start, wanted.stop)):
        assert segments.covers(wanted)
        assert segments.bytes_of(wanted) == STREAMS[wanted.stream][wanted.start : wanted.stop]
    else:
        assert not segments.covers(wanted)
        missing = f"bytes {wanted.start} to {wanted.stop} of stream {wanted.stream} are missing"
        with pytest.raises(FormatError, match=missing):
            segments.bytes_of(wanted)
        with pytest.raises(FormatError, match=missing):
            segments.join(value_of(b"before", wanted)[1])


def test_no_segments_hold_nothing() -> None:
    segments = Segments()
    assert not segments
    assert Segments([row(0, 0, 10)])
    assert not segments.covers(Slice(0, 0, 1))
    data, layout = value_of(b"literal bytes, ", b"which need none")
    assert segments.join(layout)[0] == data


@given(st.data())
def test_altered_bytes_are_found(chosen: st.DataObject) -> None:
    whole = row(0, 100, 400)
    bit = chosen.draw(st.integers(0, 8 * len(whole.data) - 1))
    altered = bytearray(whole.data)
    altered[bit // 8] ^= 1 << bit % 8
    segments = Segments([row(0, 0, 100), Segment(0, 100, 400, bytes(altered)), row(0, 400, 600)])
    wanted = Slice(0, 50, 450)
    assert segments.covers(wanted)  # which tells nothing of their bytes
    with pytest.raises(FormatError, match="checksum"):
        segments.bytes_of(wanted)
    assert segments.bytes_of(Slice(0, 0, 100)) == STREAMS[0][:100]
    assert segments.bytes_of(Slice(0, 400, 600)) == STREAMS[0][400:]


WRONG = {
    "of another place": pack(STREAMS[0][300:500]),
    "of another stream": pack(STREAMS[1][100:300]),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_whole_bytes_in_the_wrong_place_are_found_by_the_checksum(data: bytes) -> None:
    _, layout = value_of(b"x" * HEAD_SIZE, Slice(0, 0, LENGTH))
    segments = Segments([row(0, 0, 100), Segment(0, 100, 300, data), row(0, 300, 600)])
    assert len(segments.bytes_of(Slice(0, 0, LENGTH))) == LENGTH
    with pytest.raises(FormatError, match="do not match their value's checksum"):
        segments.join(layout)


def test_another_head_is_found_by_the_checksum() -> None:
    _, layout = value_of(b"x" * HEAD_SIZE, Slice(0, 0, LENGTH))
    other = Layout(layout.checksum, (b"y" * HEAD_SIZE, *layout.parts[1:]))
    with pytest.raises(FormatError, match="do not match their value's checksum"):
        Segments([row(0, 0, LENGTH)]).join(other)


@pytest.mark.parametrize("size", [0, 199, 201])
def test_a_row_that_holds_more_or_less_than_it_says_is_refused(size: int) -> None:
    segments = Segments([Segment(0, 100, 300, pack(STREAMS[0][100 : 100 + size]))])
    with pytest.raises(FormatError, match=f"found {size} bytes in the segment 100 to 300"):
        segments.bytes_of(Slice(0, 100, 101))


def test_a_row_that_holds_more_than_a_row_may_is_refused() -> None:
    size = MAX_SEGMENT + 1
    for data in (pack(bytes(size)), seal(bytes([FORMAT, RAW]) + bytes(size))):
        with pytest.raises(FormatError, match=f"found {size} bytes, expected at most"):
            Segment(0, 0, size, data).unpack()


def test_a_segment_of_a_newer_format_is_no_damage() -> None:
    segments = Segments([Segment(0, 0, 10, seal(bytes([FORMAT + 1, RAW]) + bytes(10)))])
    with pytest.raises(TooNewError):
        segments.bytes_of(Slice(0, 0, 10))


def test_what_is_larger_than_a_value_may_be_is_refused_before_it_is_put_together() -> None:
    named = Slice(0, 0, MAX_SEGMENT)
    segments = Segments(segments_of(0, 0, bytes(MAX_SEGMENT)))
    layout = Layout(CHECKSUM, (named,) * 513)
    with pytest.raises(FormatError, match=f"a value of {layout.size} bytes, expected at most"):
        segments.join(layout)


def test_each_segment_is_unpacked_once_and_only_if_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unpacked: list[Segment] = []
    original = Segment.unpack

    def counted(self: Segment) -> bytes:
        unpacked.append(self)
        return original(self)

    monkeypatch.setattr(Segment, "unpack", counted)
    found = [row(0, start, start + 100) for start in range(0, LENGTH, 100)]
    segments = Segments(found)
    assert segments.covers(Slice(0, 0, LENGTH))
    assert unpacked == []
    for _ in range(3):
        segments.join(value_of(Slice(0, 150, 250), Slice(0, 199, 201))[1])
    assert unpacked == found[1:3]


@pytest.mark.parametrize("size", [0, 1, MAX_SEGMENT, MAX_SEGMENT + 1, len(NOISE)])
def test_a_stream_becomes_as_few_rows_as_can_be(size: int) -> None:
    data, start = NOISE[:size], 12_345
    found = segments_of(7, start, data)
    assert len(found) == -(-size // MAX_SEGMENT)
    at = start
    for one in found:
        assert (one.stream, one.start) == (7, at)
        assert one.interval == (one.start, one.stop)
        at = one.stop
    assert at == start + size
    if size:
        assert Segments(found).bytes_of(Slice(7, start, start + size)) == data


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_a_hash_that_goes_on_is_that_of_the_whole(data: bytes, places: list[int]) -> None:
    """The first bytes may be others each time, as the length of a list that grows is."""
    ends = sorted({HEAD_SIZE, *(place for place in places if place > HEAD_SIZE), 200})
    hashed = Hash()
    for start, stop in pairwise(ends):
        before = hashed.checksum(data[:HEAD_SIZE])
        longer = hashed.after(data[start:stop])
        assert hashed.checksum(data[:HEAD_SIZE]) == before  # its own, as before
        hashed = longer
    assert hashed.checksum(data[:HEAD_SIZE]) == hash_of(data).checksum(data[:HEAD_SIZE])
    rest = blake2b(data[HEAD_SIZE:], digest_size=32).digest()
    expected = blake2b(rest + data[:HEAD_SIZE], digest_size=CHECKSUM_SIZE).digest()
    assert hash_of(data).checksum(data[:HEAD_SIZE]) == expected


def test_a_checksum_tells_the_head_from_the_rest() -> None:
    """Of two values, the bytes of one must not be a head and a rest of the other."""
    values = [bytes(size) for size in range(40)]
    assert len({hash_of(data).checksum(data[:HEAD_SIZE]) for data in values}) == len(values)


intervals = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair)))
covered = st.lists(st.tuples(st.integers(0, 1), intervals), max_size=12)


def places_of(found: Sequence[Interval]) -> set[int]:
    return {at for start, stop in found for at in range(start, stop)}


@given(covered, intervals)
def test_coverage_is_what_a_set_of_places_says(
    added: list[tuple[int, Interval]], asked: Interval
) -> None:
    coverage = Coverage()
    model: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for stream, one in added:
        coverage.add([Slice(stream, *one)])
        model[stream] |= places_of([one])
        for number, places in model.items():
            merged = coverage.merged(number)
            assert places_of(merged) == places
            assert all(start < stop for start, stop in merged)
            assert all(one[1] < other[0] for one, other in pairwise(merged))
            within = coverage.within(number, *asked)
            assert places_of(within) == places & places_of([asked])
            assert within == sorted(within)
    assert set(coverage.intervals) <= {0, 1}


streams = st.sampled_from([0, MAX_STREAM]) | st.integers(0, MAX_STREAM)
starts = st.integers(0, MAX_SIZE) | st.integers(MAX_STREAM - MAX_SIZE, MAX_STREAM - 1)
any_slices = st.builds(
    lambda stream, start, size: Slice(stream, start, min(start + size, MAX_STREAM)),
    streams,
    starts,
    st.integers(1, 1 << 24),
)
any_layouts = st.builds(
    Layout,
    st.binary(min_size=CHECKSUM_SIZE, max_size=CHECKSUM_SIZE),
    st.lists(any_slices | st.binary(max_size=40), min_size=1, max_size=20).map(tuple),
)


@given(any_layouts)
def test_a_layout_comes_back(layout: Layout) -> None:
    assert unpack_layout(pack_layout(layout)) == layout


@given(st.lists(any_layouts, max_size=5))
def test_the_slices_of_some_layouts_are_each_named_once(found: list[Layout]) -> None:
    named = slices_of([*found, *found])
    assert len(named) == len(set(named))
    assert set(named) == {one for layout in found for one in layout.slices()}


def test_a_layout_may_be_as_large_as_a_value_may() -> None:
    for parts in ([[0, 0, MAX_SIZE]], [[0, 0, MAX_SIZE - 1], b"x"], [b"x"] * MAX_PARTS):
        assert len(unpack_layout([CHECKSUM, parts]).parts) == len(parts)


IMPOSSIBLE: dict[str, Any] = {
    "nothing": [],
    "no list": None,
    "a text": "ab",
    "a short checksum": [CHECKSUM[1:], [b"x"]],
    "a long checksum": [CHECKSUM + b"x", [b"x"]],
    "no checksum": [None, [b"x"]],
    "a text for a checksum": ["x" * CHECKSUM_SIZE, [b"x"]],
    "no parts": [CHECKSUM, []],
    "nothing for parts": [CHECKSUM, None],
    "a number for parts": [CHECKSUM, 7],
    "bytes for parts": [CHECKSUM, b"parts"],
    "a text for parts": [CHECKSUM, "parts"],
    "one thing more": [CHECKSUM, [b"x"], 1],
    "too many parts": [CHECKSUM, [b"x"] * (MAX_PARTS + 1)],
    "a part that is none": [CHECKSUM, [None]],
    "a part that is a text": [CHECKSUM, ["abc"]],
    "a part that is a number": [CHECKSUM, [7]],
    "half a slice": [CHECKSUM, [[1, 0]]],
    "a slice and a half": [CHECKSUM, [[1, 0, 10, 20]]],
    "an empty slice": [CHECKSUM, [[1, 10, 10]]],
    "a slice that goes backwards": [CHECKSUM, [[1, 10, 9]]],
    "a negative start": [CHECKSUM, [[1, -1, 10]]],
    "a negative stream": [CHECKSUM, [[-1, 0, 10]]],
    "a stream above all": [CHECKSUM, [[MAX_STREAM + 1, 0, 10]]],
    "a stop above all": [CHECKSUM, [[1, MAX_STREAM, MAX_STREAM + 1]]],
    "truths for numbers": [CHECKSUM, [[1, False, True]]],
    "a truth for a stream": [CHECKSUM, [[True, 0, 10]]],
    "half a stop": [CHECKSUM, [[1, 0, 10.5]]],
    "a whole number that is none": [CHECKSUM, [[1, 0, 10.0]]],
    "a stop that is no number": [CHECKSUM, [[1, 0, math.nan]]],
    "no stop": [CHECKSUM, [[1, 0, None]]],
    "texts for numbers": [CHECKSUM, [["1", "0", "9"]]],
    "a slice above a value's size": [CHECKSUM, [[1, 0, MAX_SIZE + 1]]],
    "slices above a value's size": [CHECKSUM, [[1, 0, 1 << 28], [1, 0, 1 << 28], [1, 0, 1]]],
    "a literal byte above a value's size": [CHECKSUM, [[1, 0, MAX_SIZE], b"x"]],
}


@pytest.mark.parametrize("packed", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_layout_is_refused(packed: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_layout(packed)
