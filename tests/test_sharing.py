"""Laying values out: the bytes are the same whatever is shared, and only what is new is stored."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer import sharing
from checkpointer.sharing import (
    FAN,
    LEAST_SHARED,
    LITERAL,
    MANY,
    TIERS,
    Source,
    Stream,
    Whole,
    lay_out,
)
from checkpointer.slices import (
    HEAD_SIZE,
    MAX_STREAM,
    Layout,
    Part,
    Segment,
    Segments,
    Slice,
    hash_of,
    segments_of,
)

NOISE = random.Random(5).randbytes(4 << 20)  # noqa: S311 - a test's data, not a secret
HEAD = bytes(range(HEAD_SIZE))


def message(number: int, size: int = 1_000) -> bytes:
    """Bytes that no other message has."""
    return NOISE[number * size : (number + 1) * size]


def fresh(number: int, size: int) -> bytes:
    """Bytes that stand nowhere else."""
    return random.Random(1_000 + number).randbytes(size)  # noqa: S311 - a test's data, not a secret


@dataclass
class Thread:
    """A thread that values are put to.

    Attributes:
        segments: The rows of each stream.
        sizes: How many bytes each put has stored, before compression.
        parts: How many parts each layout has.
    """

    segments: dict[int, list[Segment]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def put(self, data: bytes, *sources: Source) -> Source:
        """Lay out a value, and see that it is joined again."""
        stream = Stream()
        whole, layout = lay_out(data, sources, stream)
        new = stream.segments()
        self.segments[stream.number] = new
        self.sizes.append(len(stream))
        self.parts.append(len(layout.parts))
        assert sum(one.stop - one.start for one in new) == len(stream) <= len(data)
        assert whole.data == data
        assert whole.checksum == layout.checksum == hash_of(data).checksum(data[:HEAD_SIZE])
        assert len(layout.parts) <= MANY + 1
        named = {one.stream for one in layout.slices()}
        found = Segments(one for number in named for one in self.segments[number])
        assert found.join(layout)[0] == data
        return whole, layout

    def put_all(self, values: Iterable[bytes]) -> Source:
        """Put each value on top of the one before; the last."""
        last: list[Source] = []
        for data in values:
            last = [self.put(data, *last)]
        return last[0]

    @property
    def stored(self) -> int:
        """How many bytes are stored."""
        return sum(self.sizes)


def growing(messages: Sequence[bytes], head: Callable[[int], bytes]) -> Iterator[bytes]:
    """A list after each append, with its length in front."""
    whole = b""
    for number, one in enumerate(messages, 1):
        whole += one
        yield head(number) + whole


def padded(length: int) -> bytes:
    """A length as a list that never grows beyond one header has it."""
    return length.to_bytes(HEAD_SIZE, "big")


def noise(start: int, size: int) -> bytes:
    return NOISE[start : start + size]


def zeros(start: int, size: int) -> bytes:
    del start
    return bytes(size)


def repeated(start: int, size: int) -> bytes:
    unit = NOISE[start : start + 1 + start % 3_000]
    return (unit * (size // len(unit) + 1))[:size]


def append(data: bytes, at: int, piece: bytes) -> bytes:
    del at
    return data + piece


def append_under_another_head(data: bytes, at: int, piece: bytes) -> bytes:
    return at.to_bytes(HEAD_SIZE, "big") + data[HEAD_SIZE:] + piece


def slide(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:HEAD_SIZE] + data[at // 4 :] + piece


def insert(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at:]


def replace(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def take_back(data: bytes, at: int, piece: bytes) -> bytes:
    del piece
    return data[:at]


def turn(data: bytes, at: int, piece: bytes) -> bytes:
    return data[at:] + piece + data[:at]


def double(data: bytes, at: int, piece: bytes) -> bytes:
    return data[: 1 << 17] + piece + data[at : at + (1 << 17)]


def nothing(data: bytes, at: int, piece: bytes) -> bytes:
    del at, piece
    return data


CHANGES: list[Any] = [
    append,
    append,
    append_under_another_head,
    append_under_another_head,
    slide,
    insert,
    replace,
    take_back,
    turn,
    double,
    nothing,
]
pieces = st.builds(
    lambda kind, start, size: kind(start, size),
    st.sampled_from([noise, noise, zeros, repeated]),
    st.integers(0, 100_000),
    st.sampled_from([0, 1, LITERAL, LITERAL + 1, LEAST_SHARED, 3_000, 30_000, 300_000])
    | st.integers(0, 9_000),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(CHANGES),
        st.integers(0, 1 << 20),
        pieces,
        st.lists(st.integers(0, 30), max_size=4),
    ),
    min_size=1,
    max_size=25,
)


@given(pieces, steps)
def test_a_value_is_joined_to_its_bytes_whatever_it_shares(
    first: bytes, changes: list[tuple[Any, int, bytes, list[int]]]
) -> None:
    thread = Thread()
    values = [thread.put(first + b"x")]
    for change, where, piece, chosen in changes:
        before = values[-1][0].data
        sources = [values[-1 - back] for back in chosen if back < len(values)]
        values.append(thread.put(change(before, where % len(before), piece) or b"x", *sources))
        for whole, layout in sources:
            if whole.data == values[-1][0].data:
                assert values[-1][1] == layout
                assert thread.sizes[-1] == 0


@given(st.lists(pieces, min_size=1, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_blocks_of_a_value_that_grew_are_those_of_the_whole(
    added: list[bytes], looked: list[bool]
) -> None:
    whole = Whole(NOISE[:5_000])
    for data, look in zip(accumulate([whole.data, *added]), [*looked, True], strict=False):
        whole = whole.longer(data)
        if look:
            right = {cut[:2] for cut in sharing._cut(data, HEAD_SIZE, len(data))}  # noqa: SLF001
            assert whole.blocks().items() <= right
        assert whole.checksum == Whole(data).checksum


@pytest.mark.parametrize("size", range(HEAD_SIZE * 2 + 2))
def test_a_value_goes_on_from_a_source_of_any_length(size: int) -> None:
    """This writer keeps short values inline, and another need not."""
    thread = Thread()
    short = Whole(NOISE[:size])
    source = short, Layout(short.checksum, (NOISE[:size],))
    thread.put(NOISE[:10_000], source)
    thread.put(NOISE[:size] + b"x" * 10_000, source)
    thread.put(NOISE[: size + 1], source)


some_parts = st.lists(
    st.tuples(st.integers(0, 20_000), st.integers(1, 3_000), st.booleans()), min_size=1, max_size=40
)


@given(some_parts, st.integers(0, 60_000), st.integers(0, 60_000), pieces)
def test_a_source_that_another_writer_has_laid_out_is_shared(
    parts: list[tuple[int, int, bool]], start: int, stop: int, piece: bytes
) -> None:
    """With literal bytes of any length, slices in any order, and no head apart."""
    thread = Thread({1: segments_of(1, 0, NOISE[:30_000])})
    laid_out: list[Part] = [
        NOISE[at : at + size] if literal else Slice(1, at, at + size) for at, size, literal in parts
    ]
    data = b"".join(NOISE[at : at + size] for at, size, _ in parts)
    source = Whole(data), Layout(Whole(data).checksum, tuple(laid_out))
    assert thread.put(data, source)[1] == source[1]
    thread.put(data[start:stop] + piece + b"x", source)
    thread.put(data + piece + b"x", source)


def test_a_value_equal_to_any_source_is_that_source() -> None:
    thread = Thread()
    values = [thread.put(message(number, 30_000)) for number in range(4)]
    for whole, layout in values:
        found = thread.put(bytes(bytearray(whole.data)), *values)
        assert found == (whole, layout)
    assert thread.sizes[4:] == [0, 0, 0, 0]


def test_a_value_that_shares_nothing_is_one_slice_behind_its_head() -> None:
    _, layout = Thread().put(NOISE[:3_000_000])
    [stored] = layout.slices()
    assert layout.parts == (NOISE[:HEAD_SIZE], stored)
    assert (stored.start, stored.stop) == (0, 3_000_000 - HEAD_SIZE)
    assert 0 <= stored.stream <= MAX_STREAM


def test_each_put_has_a_stream_of_its_own() -> None:
    assert len({Stream().number for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    ("size", "count", "most"), [(100, 2_000, 3.8), (1_000, 1_000, 3.4), (5_000, 200, 3.4)]
)
def test_appends_store_a_few_times_what_is_new(size: int, count: int, most: float) -> None:
    """Small slices at the end are stored again, 16 as one, and so a few times in all."""
    thread = Thread()
    last = thread.put_all(growing([message(n, size) for n in range(count)], padded))
    assert size * count <= thread.stored <= most * size * count
    assert max(thread.parts) <= 50
    assert len(last[0].data) == size * count + HEAD_SIZE


@pytest.mark.parametrize("size", [LITERAL + 1, 1_000, TIERS[0], 50_000, 1_000_000])
def test_an_append_costs_its_own_bytes_until_there_are_many(size: int) -> None:
    thread = Thread()
    added = [fresh(number, size) for number in range(FAN - 1)]
    thread.put_all(growing([NOISE[: TIERS[-1]], *added], padded))
    assert thread.sizes[1:] == [size] * (FAN - 1)
    assert thread.parts[-1] == FAN + 1


def test_many_small_slices_are_stored_as_one() -> None:
    thread = Thread()
    added = [fresh(number, 1_000) for number in range(FAN)]
    _, layout = thread.put_all(growing([NOISE[: TIERS[-1]], *added], padded))
    assert thread.sizes[-1] == FAN * 1_000
    assert [one.size for one in layout.slices()] == [TIERS[-1], FAN * 1_000]


def test_a_few_bytes_stand_in_the_layout_until_they_are_more() -> None:
    thread = Thread()
    base = thread.put(HEAD + NOISE[:10_000])
    one = thread.put(HEAD + NOISE[:10_000] + b"a" * LITERAL, base)
    two = thread.put(one[0].data + b"b", one)
    assert thread.sizes[1:] == [0, LITERAL + 1]
    assert one[1].parts[-1] == b"a" * LITERAL
    assert [part for part in two[1].parts if isinstance(part, bytes)] == [HEAD]


def test_a_window_that_slides_stores_about_what_comes_in() -> None:
    thread = Thread()
    messages = [message(number) for number in range(500)]
    windows = [padded(200) + b"".join(messages[n : n + 200]) for n in range(300)]
    thread.put_all(windows)
    assert thread.sizes[0] == 200_000
    assert thread.stored <= 3.4 * 500_000
    assert sorted(thread.sizes)[150] <= 1_100


@pytest.mark.parametrize("size", [1, 20, 40, 3_000, 30_000])
@pytest.mark.parametrize("removed", [0, 1, 999])
def test_an_edit_in_the_middle_stores_what_is_new(size: int, removed: int) -> None:
    thread = Thread()
    before = thread.put(HEAD + NOISE[:300_000])
    for at in (10_000, 150_000, 290_000):
        data = before[0].data
        new = NOISE[1_000_000 : 1_000_000 + size]
        thread.put(data[:at] + new + data[at + removed :], before)
        assert thread.sizes[-1] <= size
        assert thread.parts[-1] <= 4


def test_several_edits_at_once_store_what_is_new() -> None:
    thread = Thread()
    before = thread.put(HEAD + NOISE[:300_000])
    data = bytearray(before[0].data)
    for number, at in enumerate(range(20_000, 300_000, 20_000)):
        data[at : at + number] = message(2_000 + number, 500)
    thread.put(bytes(data), before)
    assert 14 * 500 <= thread.sizes[-1] <= 14 * 600


def test_edit_after_edit_stores_the_value_anew_only_now_and_then() -> None:
    numbers = random.Random(3)  # noqa: S311 - not a secret
    text = bytearray(NOISE[:100_000])
    values = []
    for number in range(300):
        at = numbers.randrange(len(text))
        text[at : at + numbers.randrange(100)] = message(10_000 + number, 60)
        values.append(HEAD + bytes(text))
    thread = Thread()
    thread.put_all(values)
    assert thread.stored <= 10 * 100_000  # 300 times as much, if each were stored as a whole
    assert max(thread.parts) <= MANY + 1


def test_what_moved_is_found_and_what_was_taken_back() -> None:
    thread = Thread()
    before = thread.put(HEAD + NOISE[:300_000])
    turned = HEAD + NOISE[200_000:300_000] + NOISE[:100_000] + NOISE[100_000:200_000]
    thread.put(turned, before)
    assert thread.sizes[-1] <= 100
    assert thread.parts[-1] <= 8
    thread.put(HEAD + NOISE[:123_456], before)
    assert thread.sizes[-1] == 0
    thread.put(HEAD + NOISE[200_000:300_000], before)
    assert thread.sizes[-1] <= 100


def test_a_value_is_found_in_any_source() -> None:
    """A tool's long answer was a pending write a moment ago, a subgraph has its parent's list."""
    thread = Thread()
    messages = thread.put(padded(50) + NOISE[:50_000])
    answer = thread.put(b"a tool's answer: " + NOISE[100_000:140_000])
    other = thread.put(NOISE[200_000:230_000])
    data = padded(51) + NOISE[:50_000] + b"a wrapper" * 4 + NOISE[100_000:140_000] + b"its end"
    for sources in ([messages, answer, other], [other, answer, messages]):
        thread.put(data, *sources)
        assert thread.sizes[-1] <= 100
    thread.put(padded(51) + NOISE[:50_000] + message(300), other, answer, messages)
    assert thread.sizes[-1] == 1_000


def test_two_values_of_one_put_share_one_stream() -> None:
    stream = Stream()
    one = lay_out(HEAD + NOISE[:50_000], [], stream)
    two = lay_out(padded(7) + NOISE[:50_000] + b"more" * 100, [one], stream)
    assert len(stream) == 50_400
    segments = Segments(stream.segments())
    for whole, layout in (one, two):
        assert segments.join(layout)[0] == whole.data
        assert {part.stream for part in layout.slices()} == {stream.number}


@pytest.mark.parametrize(("length", "size"), [(15, 1_000), (65_535, 20)])
def test_a_list_whose_header_grows_stores_little_more_than_its_new_item(
    length: int, size: int
) -> None:
    """Its length takes 1 byte up to 15 items, 3 up to 65,535, then 5: all others move along."""
    items = [message(number, size) for number in range(length + 1)]
    thread = Thread()
    before = thread.put(ormsgpack.packb(items[:-1]))
    data = ormsgpack.packb(items)
    assert len(data) == len(before[0].data) + size + 2 + (2 + (size > 255))
    after = thread.put(data, before)
    assert thread.sizes[-1] <= size + 100
    thread.put(ormsgpack.packb([*items, b"next" * 10]), after)
    assert thread.sizes[-1] <= 100


def test_a_list_of_small_items_costs_little_as_its_header_grows() -> None:
    items = [message(number, 300) for number in range(40)]
    thread = Thread()
    thread.put_all(ormsgpack.packb(items[:count]) for count in range(1, 41))
    assert thread.stored <= 3.4 * 40 * 300


def test_zeros_and_what_repeats_itself_take_few_parts() -> None:
    thread = Thread()
    for data in (bytes(1 << 20), repeated(2_000, 1 << 20), b"ab" * (1 << 19)):
        before = thread.put(HEAD + data)
        thread.put(HEAD + data[1 << 18 :] + message(9) + data, before)
        thread.put(HEAD + message(9) + data[5:], before)
        thread.put(HEAD + data + data, before)
    assert max(thread.parts) <= MANY + 1
