"""Verifying finds all damage and nothing else, changes nothing, and repairs by removing garbage."""

import asyncio
import multiprocessing
import random
import sys
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from damages import (
    CHECKPOINTS,
    DAMAGES,
    OF_SECOND,
    SEGMENTS,
    WRITES,
    Damage,
    Rows,
    SegmentKey,
    called,
    cut,
    noise,
    where,
)
from damages import store as store_to_damage
from intensity import INTENSITY
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from schemas import execute, query
from storing import Statement, checkpoint, config, operate, put, row_counts, statements, stored_rows

from checkpointer import (
    AsyncSQLAlchemySaver,
    DamagedDataError,
    InvalidInputError,
    Problem,
    ProblemKind,
    Verification,
    create_saver,
    holdings,
    soundness,
    tables,
    verification,
)
from checkpointer.execution import DriverConnection
from checkpointer.manifest import Value, decode_manifest, encode_manifest
from checkpointer.sealing import FORMAT, seal
from checkpointer.slices import (
    HEAD_SIZE,
    MAX_PARTS,
    MAX_SEGMENT,
    Hash,
    Layout,
    Part,
    Segment,
    Slice,
    hash_of,
    segments_of,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Saver = AsyncSQLAlchemySaver
Place = tuple[ProblemKind, str | None, str | None]

UNREFERENCED, UNDECIDED = ProblemKind.UNREFERENCED_SEGMENT, ProblemKind.UNDECIDED_SEGMENTS
MISSING, ALTERED = ProblemKind.MISSING_SEGMENT, ProblemKind.ALTERED_SEGMENT
CONTRADICTORY, TOO_NEW = ProblemKind.CONTRADICTORY_VALUE, ProblemKind.TOO_NEW

THREAD = config()


def places(problems: Sequence[Problem]) -> list[Place]:
    """Kind, checkpoint and channel of each, all being of the one thread's root namespace."""
    assert {one.thread_id for one in problems} <= {"a thread"}
    assert {one.checkpoint_ns for one in problems} <= {"", None}
    return [(one.kind, one.checkpoint_id, one.channel) for one in problems]


def counts_of(found: Verification) -> dict[str, int]:
    """The counts, by the tables' names."""
    counts = (found.threads, found.checkpoints, found.writes, found.segments)
    names = (tables.threads, tables.checkpoints, tables.writes, tables.segments)
    return {table.name: count for table, count in zip(names, counts, strict=True)}


def segment_bytes(url: str) -> int:
    [[total]] = query(url, f"SELECT COALESCE(SUM(LENGTH(data)), 0) FROM {SEGMENTS}")
    return int(str(total))


async def test_a_store_that_was_used_in_all_ways_is_whole(saver: Saver, migrated_url: str) -> None:
    await operate(saver)
    before = stored_rows(migrated_url)

    found = await saver.averify()

    assert found.whole
    assert found.problems == ()
    assert counts_of(found) == row_counts(migrated_url)
    assert found.bytes == segment_bytes(migrated_url)
    assert found.checkpoints > 5
    assert found.segments > 5
    assert stored_rows(migrated_url) == before


def test_the_sync_twin_verifies_too(migrated_url: str) -> None:
    seen: list[tuple[int, int]] = []
    with create_saver(migrated_url) as saver:
        saver.put(THREAD, checkpoint("1", {}), {}, {})
        found = saver.verify("a thread", repair=True, progress=lambda *done: seen.append(done))
    assert counts_of(found) == row_counts(migrated_url)
    assert (found.whole, found.removed, seen) == (True, 0, [(1, 1)])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_each_damage_is_found_and_no_repair_makes_it_worse(
    migrated_url: str, damage: Damage
) -> None:
    damage.make(await store_to_damage(migrated_url))
    before = stored_rows(migrated_url)

    async with create_saver(migrated_url) as saver:
        found = await saver.averify()
        repaired = await saver.averify(repair=True)

    expected: list[Place] = [(damage.kind, "2", damage.channel)]
    expected += [(UNDECIDED, None, None)] if damage.hides else []
    assert places(found.problems) == expected
    assert not found.whole
    assert found == repaired
    assert counts_of(found) == row_counts(migrated_url)
    assert stored_rows(migrated_url) == before


@pytest.mark.parametrize("kind", [MISSING, ALTERED])
async def test_a_segment_is_told_with_each_checkpoint_that_names_it_and_others_stay_readable(
    migrated_url: str, kind: ProblemKind
) -> None:
    rows = Rows(migrated_url)
    async with create_saver(migrated_url) as saver:
        parent = await put(saver, THREAD, "1", a=noise(1), b=noise(2))
        for number in ("2", "3"):
            parent = await put(saver, parent, number, a=noise(1), c=noise(number))
        await put(saver, parent, "4", b=noise(2))
    shared, *_ = rows.layout("1", "a").slices()
    old, *_ = [one for one in rows.segments() if one.stream == shared.stream]
    rows.lose([(old.stream, *old.interval)])
    key = shared.stream, *shared[1:]
    pieces = segments_of(old.stream, 0, old.unpack(), shared.stop)
    rows.insert(*pieces)
    if kind is MISSING:
        rows.lose([key])
    else:
        rows.alter(SEGMENTS, "data", where(key), lambda data: data[1:])

    async with create_saver(migrated_url) as saver:
        found = await saver.averify()
        for number in ("1", "2", "3"):
            with pytest.raises(DamagedDataError, match=f"'{number}': channel 'a'"):
                await saver.aget_tuple(config(checkpoint_id=number))
        assert await saver.aget_tuple(THREAD) is not None

    assert places(found.problems) == [(kind, number, "a") for number in ("1", "2", "3")]
    assert {one.segment for one in found.problems} == {called(key)}


async def test_all_missing_bytes_are_named_and_every_damaged_value(migrated_url: str) -> None:
    rows = Rows(migrated_url)
    text = noise("long", 200_000)
    async with create_saver(migrated_url) as saver:
        parent = THREAD
        for number in range(30):
            long = text[: 100_000 + number * 1000]
            parent = await put(saver, parent, f"{number:02}", messages=long, other=noise(number))
        named = await saver.averify()
    assert named.whole
    lost = rows.held()
    rows.lose(lost)

    async with create_saver(migrated_url) as saver:
        found = await saver.averify()

    assert {one.kind for one in found.problems} == {MISSING}
    damaged = {(one.checkpoint_id, one.channel) for one in found.problems}
    names = ("messages", "other")
    assert damaged == {(f"{number:02}", name) for number in range(30) for name in names}
    named_streams = {str(one.segment).split(",")[0] for one in found.problems}
    assert named_streams == {f"stream {stream}" for stream, *_ in lost}
    # Of a value that names the bytes of another, not all of them are told again.
    assert len(found.problems) < 3 * len(lost)


async def put_twice(saver: Saver, rows: Rows, thread: str) -> set[SegmentKey]:
    """Replace a thread's checkpoint; the segments that only the replaced one named."""
    before = rows.held(thread)
    for number in range(3):
        first = noise(f"{number} in {thread}")
        await put(saver, config(thread), "1", messages=first)
    replaced = rows.held(thread) - before
    await put(saver, config(thread), "1", messages=noise(f"last in {thread}"))
    return replaced


async def test_repair_removes_what_a_replaced_checkpoint_left_and_nothing_else(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await operate(saver)
    replaced = await put_twice(saver, rows, "a thread that was put twice")
    before = stored_rows(migrated_url)

    found = await saver.averify()
    assert found.whole
    assert {one.kind for one in found.problems} == {UNREFERENCED}
    assert {one.segment for one in found.problems} == set(map(called, replaced))
    assert stored_rows(migrated_url) == before

    repaired = await saver.averify(repair=True)
    assert repaired.problems == found.problems
    assert repaired.removed == len(replaced) > 2
    checkpoints, writes, segments, threads = before
    assert isinstance(segments, list)
    left = [row for row in segments if row[1:4] not in replaced]
    assert stored_rows(migrated_url) == [checkpoints, writes, left, threads]
    again = await saver.averify(repair=True)
    assert (again.problems, again.removed, again.whole) == ((), 0, True)


async def test_repair_keeps_to_the_thread_that_is_named(saver: Saver, migrated_url: str) -> None:
    rows = Rows(migrated_url)
    for thread in ("a", "b"):
        await put_twice(saver, rows, thread)

    assert (await saver.averify("a", repair=True)).removed > 2

    found = await saver.averify()
    assert {one.thread_id for one in found.problems} == {"b"}


async def test_bytes_that_a_repair_removed_are_stored_again_when_they_are_put_again(
    saver: Saver, migrated_url: str
) -> None:
    first = await put(saver, THREAD, "1", messages=noise(1))
    async with create_saver(migrated_url) as other:
        await put(other, THREAD, "1", messages=noise(2))
        assert (await other.averify(repair=True)).removed == 1

        # This one has put them, and remembers that they are stored.
        again = checkpoint("2", {"messages": noise(1)})
        await saver.aput(first, again, {}, {})

        assert (await other.averify()).whole
        read = await other.aget_tuple(THREAD)
    assert read is not None
    assert read.checkpoint["channel_values"] == {"messages": noise(1)}


async def test_an_altered_segment_that_nothing_names_is_damage_that_repair_removes(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    key = min(await put_twice(saver, rows, "a thread"))
    rows.alter(SEGMENTS, "data", where(key), lambda data: data[1:])

    found = await saver.averify(repair=True)
    assert [one.segment for one in found.problems if one.kind is ALTERED] == [called(key)]
    assert not found.whole
    again = await saver.averify()
    assert (again.problems, again.whole) == ((), True)


async def test_repair_cuts_away_what_nothing_names_of_a_segment(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    parent = await put(saver, THREAD, "1", messages=noise(1), other=noise(2))
    await put(saver, parent, "2", other=noise(2))
    await put(saver, THREAD, "1")
    [one] = rows.segments()

    found = await saver.averify(repair=True)

    assert places(found.problems) == [(UNREFERENCED, None, None)]
    assert found.problems[0].segment == called((one.stream, *one.interval))
    [kept] = rows.layout("2", "other").slices()
    assert found.problems[0].detail == f"nothing names more than {kept.start} to {kept.stop}"
    assert (found.removed, found.whole) == (1, True)
    [left] = rows.segments()
    assert (left.stream, *left.interval) == kept
    assert (await saver.averify()).problems == ()
    read = await saver.aget_tuple(THREAD)
    assert read is not None
    assert read.checkpoint["channel_values"] == {"other": noise(2)}


async def test_where_damage_hides_what_is_live_repair_removes_nothing(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    for thread in ("another", "a thread"):
        await put_twice(saver, rows, thread)
        await put(saver, config(thread), "2", other=noise(2))
    rows.execute(f"UPDATE {CHECKPOINTS} SET manifest = {rows.literal(b'?')} WHERE {OF_SECOND}")
    segments = _segments_of(rows, "a thread")

    found = await saver.averify(repair=True)

    assert found.removed > 2
    of_damaged = [one for one in found.problems if one.thread_id == "a thread"]
    expected: list[Place] = [(ProblemKind.UNDECODABLE_MANIFEST, "2", None), (UNDECIDED, None, None)]
    assert places(of_damaged) == expected
    assert {one.kind for one in found.problems if one.thread_id == "another"} == {UNREFERENCED}
    assert _segments_of(rows, "a thread") == segments
    assert [one.thread_id for one in (await saver.averify()).problems] == ["a thread"] * 2


async def test_a_write_that_hides_its_segments_keeps_them_whatever_else_is_removable(
    saver: Saver, migrated_url: str
) -> None:
    """A sweep by itself would take it for one that names nothing."""
    rows = Rows(migrated_url)
    altered = min(await put_twice(saver, rows, "a thread"))
    await saver.aput_writes(config(checkpoint_id="1"), [("long", noise("write"))], "a task")
    rows.alter(SEGMENTS, "data", where(altered), lambda data: data[1:])
    rows.execute(f"UPDATE {WRITES} SET sliced = {rows.truth(value=False)}")
    segments = _segments_of(rows, "a thread")

    found = await saver.averify(repair=True)

    kinds = [ProblemKind.UNDECODABLE_WRITE, ALTERED, UNDECIDED]
    assert [one.kind for one in found.problems] == kinds
    assert _segments_of(rows, "a thread") == segments


def _segments_of(rows: Rows, thread: str) -> list[tuple[object, ...]]:
    return query(rows.url, f"SELECT * FROM {SEGMENTS} WHERE thread_id = '{thread}' ORDER BY 2, 3")


async def test_damage_that_comes_between_verifying_and_repairing_is_told(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put_twice(saver, rows, "a thread")
    segments = _segments_of(rows, "a thread")
    damaged: list[str] = []

    def damage(statement: Statement) -> None:
        # The last statement of verifying a thread without writes.
        if statement.sql.startswith(f"SELECT DISTINCT {WRITES}") and not damaged:
            damaged.append(statement.sql)
            rows.execute(f"UPDATE {CHECKPOINTS} SET manifest = {rows.literal(b'?')}")

    with statements(before=damage):
        found = await saver.averify(repair=True)

    assert damaged
    assert places(found.problems)[-1] == (UNDECIDED, None, None)
    assert "nothing was deleted" in found.problems[-1].detail
    assert (found.removed, found.whole) == (0, False)
    assert _segments_of(rows, "a thread") == segments


async def test_rows_whose_thread_has_no_row_are_told_and_a_repair_makes_it(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put_twice(saver, rows, "a thread")
    await put(saver, config("another"), "1")
    rows.execute("DELETE FROM checkpointer_threads WHERE thread_id = 'a thread'")
    before = stored_rows(migrated_url)

    found = await saver.averify()

    assert found.threads == 2
    assert found.problems[0].kind is ProblemKind.MISSING_THREAD
    assert "1 checkpoints, 0 writes, 4 segments" in found.problems[0].detail
    assert not found.whole
    assert stored_rows(migrated_url) == before
    repaired = await saver.averify(repair=True)
    assert (repaired.problems, repaired.removed) == (found.problems, 3)
    assert (await saver.averify()).problems == ()


@pytest.mark.parametrize("table", [CHECKPOINTS, WRITES, SEGMENTS])
async def test_a_thread_is_found_by_any_of_its_rows(
    saver: Saver, migrated_url: str, table: str
) -> None:
    for thread in ("a", "b"):
        at = await put(saver, config(thread), "1", messages=noise(1))
        await saver.aput_writes(at, [("a", 1)], "a task")
    for other in {one.name for one in tables.metadata.sorted_tables} - {table}:
        execute(migrated_url, f"DELETE FROM {other} WHERE thread_id = 'b'")
    seen: list[tuple[int, int]] = []

    found = await saver.averify(progress=lambda *done: seen.append(done))

    assert seen == [(1, 1), (2, 2)]  # how many there are in all is told by their own rows
    assert found.threads == 2
    assert counts_of(found) | {"checkpointer_threads": 1} == row_counts(migrated_url)
    assert {one.thread_id for one in found.problems} == {"b"}
    assert ProblemKind.MISSING_THREAD in {one.kind for one in found.problems}


async def test_writes_before_their_checkpoint_are_no_problem(
    saver: Saver, migrated_url: str
) -> None:
    await saver.aput_writes(config(checkpoint_id="1"), [("a", noise(1)), ("b", 2)], "a task")
    found = await saver.averify()
    assert (found.problems, found.writes) == ((), 2)
    assert found.segments == row_counts(migrated_url)[SEGMENTS] == 1


async def test_progress_counts_the_threads(saver: Saver) -> None:
    for thread in ("a", "b", "c"):
        await put(saver, config(thread), "1")
    seen: list[tuple[int, int]] = []
    await saver.averify(progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


async def test_a_saver_that_is_closed_meanwhile_verifies_to_the_end(migrated_url: str) -> None:
    saver = create_saver(migrated_url)
    for thread in ("a", "b", "c"):
        await put(saver, config(thread), "1")
    closing: list[asyncio.Task[None]] = []

    def close(done: int, _: int) -> None:
        if done == 1:
            closing.append(asyncio.ensure_future(saver.aclose()))

    found = await saver.averify(progress=close)

    assert (found.threads, found.whole) == (3, True)
    await closing[0]


async def test_a_thread_that_is_not_there_has_nothing_to_verify(saver: Saver) -> None:
    await put(saver, THREAD, "1")
    assert await saver.averify("another") == Verification()
    with pytest.raises(InvalidInputError, match="surrogate"):
        await saver.averify("\ud800")


@pytest.mark.parametrize("part", ["the checkpoint", "the metadata"])
async def test_damage_of_the_checkpoint_itself_has_no_channel(
    saver: Saver, migrated_url: str, part: str
) -> None:
    rows = Rows(migrated_url)
    long = noise(1).hex()
    if part == "the metadata":
        await put(saver, THREAD, "1", {"note": long})
    else:
        await put(saver, THREAD, "1", **{f"{n} {long[:300]}{n}": None for n in range(40)})
    rows.execute(f"DELETE FROM {SEGMENTS}")

    found = await saver.averify()

    assert set(places(found.problems)) == {(MISSING, "1", None)}
    assert {one.detail.split(":")[0] for one in found.problems} == {part}


async def test_a_long_checkpoint_under_another_id_is_found(saver: Saver, migrated_url: str) -> None:
    """So long that its own dict is stored by reference."""
    rows = Rows(migrated_url)
    names = {f"{n} {noise(1).hex()[:300]}": None for n in range(40)}
    await put(saver, THREAD, "1", **names)
    assert rows.held()
    rows.execute(f"UPDATE {CHECKPOINTS} SET checkpoint_id = '2'")

    [problem] = (await saver.averify()).problems

    assert places([problem]) == [(ProblemKind.MISPLACED_MANIFEST, "2", None)]
    assert problem.detail == "found the manifest of checkpoint '1'"


async def test_a_store_that_the_serde_cannot_load_is_verified_all_the_same(
    saver: Saver, migrated_url: str
) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    async with create_saver(migrated_url, serde=serde) as encrypted:
        await put(encrypted, THREAD, "1", messages=noise(1))
        assert await saver.averify() == await encrypted.averify()
        assert (await saver.averify()).whole

        Rows(migrated_url).execute(f"UPDATE {CHECKPOINTS} SET checkpoint_id = '2'")
        kinds = [one.kind for one in (await encrypted.averify()).problems]
        assert kinds == [ProblemKind.MISPLACED_MANIFEST]
        assert (await saver.averify()).whole  # its id is known only to who has the key


def set_layout(rows: Rows, *parts: Part, data: bytes | None = None, at: str = "1") -> None:
    """Have the channel `a` of a checkpoint name a value of our own making.

    Args:
        rows: All rows.
        parts: The value's parts.
        data: The bytes that its checksum tells; without them, it tells those of no value.
        at: The checkpoint.
    """
    checksum = hash_of(data or b"").checksum((data or b"")[:HEAD_SIZE])

    def change(stored: bytes) -> bytes:
        manifest = decode_manifest(stored)
        value = Value("bytes", Layout(checksum, parts))
        return encode_manifest(replace(manifest, channels={**manifest.channels, "a": value}))

    rows.alter(
        CHECKPOINTS, "manifest", f"thread_id = 'a thread' AND checkpoint_id = '{at}'", change
    )


HEAD = bytes(range(HEAD_SIZE))
DATA = noise("stream", 3000)
VALUE = HEAD + DATA

LAYOUTS: dict[str, tuple[Sequence[Part], bytes]] = {
    "one slice": ([HEAD, Slice(1, 0, 3000)], VALUE),
    "slices": ([HEAD, Slice(1, 0, 999), Slice(1, 999, 3000)], VALUE),
    "slices and bytes": ([HEAD, Slice(1, 0, 999), DATA[999:1001], Slice(1, 1001, 3000)], VALUE),
    "the same again and again": (
        [HEAD, *[Slice(1, 10, 20)] * (MAX_PARTS - 1)],
        HEAD + DATA[10:20] * 4095,
    ),
    "no head": ([Slice(1, 0, 3000)], DATA),
    "a head of two": ([HEAD[:7], Slice(1, 0, 3000)], HEAD[:7] + DATA),
    "a head of slices": ([Slice(1, 0, 5), Slice(1, 5, 30)], DATA[:30]),
    "a long head": ([VALUE[:40], Slice(1, 24, 30)], VALUE[:46]),
    "little": ([Slice(1, 7, 9)], DATA[7:9]),
    "empty bytes": ([b"", HEAD, b"", Slice(1, 0, 9), b""], VALUE[:25]),
}


@pytest.mark.parametrize(("parts", "data"), LAYOUTS.values(), ids=LAYOUTS)
async def test_a_value_is_whole_if_it_can_be_read(
    saver: Saver, migrated_url: str, parts: Sequence[Part], data: bytes
) -> None:
    """However a writer lays it out, and wherever rows begin."""
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    rows.insert(*segments_of(1, 0, DATA, 700))
    set_layout(rows, *parts, data=data)

    kinds = {one.kind for one in (await saver.averify()).problems}
    assert kinds <= {UNREFERENCED}
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": data}

    set_layout(rows, *parts, data=data + b"x")
    [problem, *others] = (await saver.averify()).problems
    assert places([problem]) == [(CONTRADICTORY, "1", "a")]
    assert f"found {len(data)} bytes that do not match" in problem.detail
    assert {one.kind for one in others} <= {UNREFERENCED}
    with pytest.raises(DamagedDataError, match=r"channel 'a'.*checksum"):
        await saver.aget_tuple(THREAD)


async def test_bytes_that_no_segment_holds_are_named(saver: Saver, migrated_url: str) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    pieces = segments_of(1, 0, DATA, 500)
    rows.insert(*pieces[1:3], pieces[4])
    set_layout(rows, HEAD, Slice(1, 100, 2900), Slice(2, 5, 7), data=VALUE)

    found = await saver.averify()

    gaps = [(1, 100, 500), (1, 1500, 2000), (1, 2500, 2900), (2, 5, 7)]
    assert [one.segment for one in found.problems] == list(map(called, gaps))
    assert set(places(found.problems)) == {(MISSING, "1", "a")}


async def test_segments_may_overlap_where_their_bytes_agree(
    saver: Saver, migrated_url: str
) -> None:
    """As a copy, a move or a merge may leave them; no one of them is needed."""
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    for start, stop in [(0, 900), (300, 600), (500, 1700), (900, 901), (1650, 3000), (2000, 3000)]:
        rows.insert(*segments_of(1, start, DATA[start:stop]))
    set_layout(rows, HEAD, Slice(1, 0, 3000), data=VALUE)

    assert (await saver.averify()).problems == ()
    read = await saver.aget_tuple(THREAD)
    assert read is not None
    assert read.checkpoint["channel_values"] == {"a": VALUE}


@pytest.mark.parametrize(("start", "stop"), [(300, 600), (0, 3000), (2000, 4000)])
async def test_segments_that_contradict_each_other_are_both_told(
    saver: Saver, migrated_url: str, start: int, stop: int
) -> None:
    """Which of them a reader takes depends on what it reads."""
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    other = noise("other", 5000)
    rows.insert(*segments_of(1, 1, DATA[1:] + b"x"), *segments_of(1, start, other[start:stop]))
    set_layout(rows, HEAD, Slice(1, 1, 3000), data=HEAD + DATA[1:])

    found = await saver.averify(repair=True)

    told = {one.segment for one in found.problems if one.kind is ALTERED}
    assert told >= {called((1, 1, 3001))}
    assert places(found.problems)[0] == (ALTERED, "1", "a")
    assert "found other bytes than in the segment" in found.problems[0].detail
    assert not found.whole


def sealed(codec: int, data: bytes, version: int = FORMAT) -> bytes:
    """Bytes of our own making, under a seal that is right."""
    return seal(bytes([version, codec]) + data)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (sealed(0, DATA[:-1]), "found 2999 bytes in the segment"),
        (sealed(0, DATA + b"x"), "found 3001 bytes in the segment"),
        (sealed(0, bytes(MAX_SEGMENT + 1)), "expected at most 1048576"),
        (sealed(1, zstd.compress(bytes(200 << 20))), "expected at most 1048576"),
        (sealed(1, zstd.compress(DATA)[:-1]), "Zstandard"),
        (sealed(1, zstd.compress(DATA) * 2), "Zstandard"),
        (sealed(1, DATA), "Zstandard"),
    ],
    ids=["short", "long", "too long", "a bomb", "half a frame", "two frames", "no frame"],
)
async def test_a_segment_that_is_not_what_its_row_says_is_altered(
    saver: Saver, migrated_url: str, data: bytes, detail: str
) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    rows.insert(Segment(1, 0, 3000, data))
    set_layout(rows, HEAD, Slice(1, 0, 3000), data=VALUE)

    [problem] = (await saver.averify()).problems

    assert (problem.kind, problem.segment) == (ALTERED, called((1, 0, 3000)))
    assert detail in problem.detail


async def test_what_a_newer_version_has_written_is_no_damage(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    await put(saver, THREAD, "2", a=None)
    await saver.aput_writes(config(checkpoint_id="1"), [("b", 1)], "a task")
    rows.insert(Segment(1, 0, 3000, sealed(2, b"packed otherwise")))
    rows.insert(Segment(2, 0, 3000, sealed(0, b"of another format", FORMAT + 1)))
    set_layout(rows, HEAD, Slice(1, 0, 3000), data=VALUE)
    for table, column in ((CHECKPOINTS, "manifest"), (WRITES, "data")):
        of = "checkpoint_id = '2'" if table == CHECKPOINTS else "channel = 'b'"
        rows.alter(table, column, of, lambda _: sealed(2, b"packed otherwise"))

    found = await saver.averify(repair=True)

    assert places(found.problems) == [
        (TOO_NEW, "2", None),
        (TOO_NEW, "1", "a"),
        (TOO_NEW, "1", "b"),
        (TOO_NEW, None, None),
        (UNDECIDED, None, None),
    ]
    assert all("newer version" in one.detail for one in found.problems[:4])
    assert (found.whole, found.damaged, found.removed) == (False, False, 0)


async def test_a_layout_of_nearly_the_most_bytes_that_there_may_be_is_hashed_in_no_memory(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    rows.insert(*segments_of(1, 0, bytes(MAX_SEGMENT)))
    parts: list[Part] = [HEAD, *[Slice(1, 0, MAX_SEGMENT)] * 511]
    set_layout(rows, *parts)
    tracemalloc.start()
    try:
        [problem] = (await saver.averify()).problems
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert problem.kind is CONTRADICTORY
    assert peak < 32 << 20


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("change", ["stop = 'text'", "stop = 0", "stop = 1.5", "start = X'00'"])
async def test_a_segment_in_an_impossible_place_is_told(
    saver: Saver, migrated_url: str, change: str
) -> None:
    """SQLite stores anything in any column."""
    await put(saver, THREAD, "1", messages=noise(1))
    execute(migrated_url, f"UPDATE {SEGMENTS} SET {change}")

    missing, impossible = (await saver.averify()).problems

    assert places([missing, impossible]) == [(MISSING, "1", "messages"), (ALTERED, None, None)]
    assert impossible.detail == "found a segment in an impossible place"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes values are hashed of, one after the other."""
    sizes: list[int] = []
    after = Hash.after

    def counted(self: Hash, data: bytes) -> Hash:
        sizes.append(len(data))
        return after(self, data)

    monkeypatch.setattr(Hash, "after", counted)
    return sizes


async def test_a_value_that_goes_on_from_another_is_hashed_from_there(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    monkeypatch.setattr(verification, "PAGE", 7)
    parent, long = THREAD, noise(1, 200_000)
    for number in range(100):
        values = {"messages": long[: 1000 + number * 2000], "other": noise(2)}
        parent = await put(saver, parent, f"{number:03}", {}, **values)
    hashed.clear()

    found = await saver.averify()

    assert (found.checkpoints, found.problems) == (100, ())
    # About twice what is stored, as small slices are stored anew from time to time.
    assert 220_000 < sum(hashed) < 600_000


async def test_a_stream_that_grows_is_hashed_from_where_it_ended(
    saver: Saver, migrated_url: str, hashed: list[int]
) -> None:
    rows = Rows(migrated_url)
    long = noise(1, 50_000)
    for number in range(1, 6):
        await put(saver, THREAD, f"{number}", a=None)
        set_layout(
            rows,
            HEAD,
            Slice(1, 0, number * 10_000),
            data=HEAD + long[: number * 10_000],
            at=f"{number}",
        )
    pieces = segments_of(1, 0, long, 7_000)
    rows.insert(*pieces)
    hashed.clear()

    assert (await saver.averify()).problems == ()
    assert sum(hashed) == 50_000

    rows.lose([(1, *pieces[3].interval)])
    rows.alter(SEGMENTS, "data", "start = 35000", lambda data: data[1:])
    found = await saver.averify()
    assert places(found.problems) == [
        (MISSING, "3", "a"),
        (ALTERED, "4", "a"),
        (MISSING, "5", "a"),
    ]


async def test_hashes_that_are_no_longer_kept_are_made_again(
    saver: Saver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, long = THREAD, noise(1, 100_000)
    for number in range(40):
        parent = await put(saver, parent, f"{number:03}", a=long[: 1000 + number * 2000])
    rows = Rows(migrated_url)
    lost = sorted(rows.held())[::9]
    whole = await saver.averify()
    rows.lose(lost)
    found = await saver.averify()
    monkeypatch.setattr(soundness, "BEGINNINGS", 8)
    monkeypatch.setattr(soundness, "PLANNED", 100)
    monkeypatch.setattr(holdings, "KEPT", 100)
    monkeypatch.setattr(holdings, "BYTES", 100)
    monkeypatch.setattr(holdings, "KEYS", 2)

    assert whole.problems == ()
    assert len(found.problems) > 10
    assert await saver.averify() == found


async def test_no_more_than_a_page_of_rows_is_held_at_once(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(migrated_url)
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "00", messages=noise("long", 900_000))
        cut(rows, rows.layout("00", "messages"), 5_000)
        for number in range(1, 11):
            for namespace in ("", "inner"):
                at = config(checkpoint_ns=namespace)
                at = await put(saver, at, f"{number:02}", messages=noise(number))
                writes = [("long", noise(number + 100)), ("b", 1), ("c", 2)]
                await saver.aput_writes(at, writes, "a task")
        for number in range(5):
            await put(saver, config(f"thread {number}"), "1", messages=noise(number))
        whole = await saver.averify()
    lost = sorted(rows.held())[::10]
    rows.lose(lost)
    lengths: list[int] = []
    sizes: list[int] = []
    fetch = DriverConnection.fetch

    def measured(self: DriverConnection, statement: Any, parameters: Any = {}) -> Sequence[Any]:  # noqa: B006 - only read
        found = fetch(self, statement, parameters)
        lengths.append(len(found))
        sizes.append(sum(len(part) for row in found for part in row if isinstance(part, bytes)))
        return found

    async with create_saver(migrated_url, cache_bytes=0) as saver:
        found = await saver.averify()
        monkeypatch.setattr(holdings, "KEYS", 16)
        monkeypatch.setattr(holdings, "BYTES", 30_000)
        monkeypatch.setattr(verification, "PAGE", 2)
        monkeypatch.setattr(DriverConnection, "fetch", measured)
        in_pages = await saver.averify()

    assert whole.problems == ()
    assert counts_of(in_pages) == counts_of(found) == row_counts(migrated_url)
    assert in_pages.problems == found.problems
    assert len(found.problems) >= len(lost) > 10
    assert found.bytes == in_pages.bytes > 800_000
    assert max(lengths) < 50
    assert max(sizes) < 50_000


async def test_what_many_checkpoints_share_is_read_once(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    monkeypatch.setattr(verification, "PAGE", 2)
    parent, long = THREAD, noise(1, 100_000)
    for number in range(20):
        parent = await put(saver, parent, f"{number:02}", {}, messages=long)
    hashed.clear()
    with statements() as seen:
        found = await saver.averify()
    reading = [one for one in seen if f"{SEGMENTS}.data" in one.sql and "length" not in one.sql]
    assert (found.checkpoints, found.problems) == (20, ())
    assert len(reading) == 1
    assert 99_000 < sum(hashed) < 101_000


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("column", "kind", "detail"),
    [
        ("metadata", ProblemKind.UNDECODABLE_METADATA, "Expecting value"),
        ("checkpoint_id", ProblemKind.UNREADABLE_THREAD, r"\udcff"),
    ],
)
async def test_text_that_is_no_utf_8_is_told_and_other_threads_are_verified(
    saver: Saver, migrated_url: str, column: str, kind: ProblemKind, detail: str
) -> None:
    for thread in ("a", "b", "c"):
        await put(saver, config(thread), "1", messages=noise(1))
    execute(
        migrated_url,
        f"UPDATE {CHECKPOINTS} SET {column} = CAST(X'ff' AS TEXT) WHERE thread_id = 'b'",
        f"DELETE FROM {SEGMENTS} WHERE thread_id = 'c'",
    )

    found = await saver.averify()

    told = [(one.kind, one.thread_id) for one in found.problems]
    assert told[0] == (kind, "b")
    assert set(told[1:]) == {(MISSING, "c")}
    assert detail in found.problems[0].detail
    assert (found.threads, found.whole) == (3, False)


@pytest.mark.parametrize("database_kind", ["sqlite", "stepwise"], indirect=True)
async def test_a_key_that_is_no_utf_8_is_damage_to_a_list(saver: Saver, migrated_url: str) -> None:
    await put(saver, THREAD, "1")
    execute(migrated_url, f"UPDATE {CHECKPOINTS} SET checkpoint_id = CAST(X'ff' AS TEXT)")
    with pytest.raises(DamagedDataError, match=r"'\\udcff'.*adelete_thread"):
        [one async for one in saver.alist(THREAD)]


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("value", ["'text'", "7", "0.5"])
@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (f"{SEGMENTS} SET data", ALTERED),
        (f"{CHECKPOINTS} SET manifest", ProblemKind.UNDECODABLE_MANIFEST),
        (f"{WRITES} SET data", ProblemKind.UNDECODABLE_WRITE),
    ],
)
async def test_what_is_no_bytes_is_told(
    saver: Saver, migrated_url: str, column: str, kind: ProblemKind, value: str
) -> None:
    """SQLite stores anything in any column."""
    at = await put(saver, THREAD, "1", messages=noise(1, 300))
    await saver.aput_writes(at, [("messages", 1)], "a task")
    execute(migrated_url, f"UPDATE {column} = {value}")

    [first, *others] = (await saver.averify()).problems

    assert (first.kind, first.checkpoint_id) == (kind, "1")
    assert "expected bytes" in first.detail
    assert {one.kind for one in others} <= {UNDECIDED}


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("text", ['{"step"', "[1]"])
async def test_metadata_for_filters_that_is_no_object_is_told_and_ends_no_repair(
    saver: Saver, migrated_url: str, text: str
) -> None:
    """PostgreSQL's JSONB cannot be so; an array can, but no more than any other altered value."""
    await put_twice(saver, Rows(migrated_url), "a thread")
    execute(migrated_url, f"UPDATE {CHECKPOINTS} SET metadata = '{text}'")

    found = await saver.averify(repair=True)

    assert places(found.problems)[0] == (ProblemKind.UNDECODABLE_METADATA, "1", None)
    assert found.removed == len(found.problems) - 1 > 2
    assert await saver.aget_tuple(THREAD) is not None
    with pytest.raises(DamagedDataError, match=r"checkpoint '1'.*projection.*nothing was deleted"):
        await saver.aprune(["a thread"])


def write_on_and_on(url: str, begun: Event, ended: Event) -> None:
    """Put, replace, copy, prune and delete in the same threads until told to end."""
    chance = random.Random(1)  # noqa: S311 - a test's data, not a secret
    with create_saver(url) as saver:
        while not ended.is_set():
            thread, number = chance.choice("ab"), f"{chance.randrange(8)}"
            values = {"messages": noise(chance.randrange(5), 60_000), "other": noise(number)}
            at = saver.put(config(thread), checkpoint(number, values), {}, {})
            saver.put_writes(at, [("long", noise(number)), ("b", 1)], f"task {number}")
            match chance.randrange(6):
                case 0:
                    saver.prune([thread])
                case 1:
                    saver.delete_thread(thread)
                case 2:
                    saver.copy_thread(thread, chance.choice("ab"))
            begun.set()


@asynccontextmanager
async def another_process_writing(url: str) -> AsyncIterator[None]:
    context = multiprocessing.get_context("spawn")
    begun, ended = context.Event(), context.Event()
    process = context.Process(target=write_on_and_on, args=(url, begun, ended))
    process.start()
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        yield
    finally:
        ended.set()
        await asyncio.to_thread(process.join)
    assert process.exitcode == 0


async def test_what_another_process_writes_meanwhile_is_no_damage(
    saver: Saver, migrated_url: str
) -> None:
    loop = asyncio.get_running_loop()
    states: list[Verification] = []

    def enough() -> bool:
        return len(set(map(str, states))) > 10 and any(one.removed for one in states)

    async with another_process_writing(migrated_url):
        until = loop.time() + INTENSITY.verify_seconds
        # However slow the machine is, it goes on until enough has been seen.
        while loop.time() < until or not enough():
            assert loop.time() < until + 120, "hardly anything changes"
            states.append(await saver.averify(repair=len(states) % 4 == 3))
            assert states[-1].whole, states[-1].problems
    assert (await saver.averify()).whole
