"""Verifying finds all damage and nothing else, changes nothing, and repairs by removing garbage."""

import asyncio
import multiprocessing
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from damages import CHECKPOINTS, CHUNKS, DAMAGES, OF_SECOND, WRITES, Damage, Rows, noise
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
    soundness,
    tables,
    verification,
)
from checkpointer.chunking import DIGEST_SIZE, HEAD_SIZE, Tree, digest_of, split_digests
from checkpointer.execution import DriverConnection
from checkpointer.manifest import Manifest, Value, decode_manifest, encode_manifest

Saver = AsyncSQLAlchemySaver
Place = tuple[ProblemKind, str | None, str | None]

UNREFERENCED, UNDECIDED = ProblemKind.UNREFERENCED_CHUNK, ProblemKind.UNDECIDED_CHUNKS
MISSING, ALTERED = ProblemKind.MISSING_CHUNK, ProblemKind.ALTERED_CHUNK

THREAD = config()


def places(problems: Sequence[Problem]) -> list[Place]:
    """Kind, checkpoint and channel of each, all being of the one thread's root namespace."""
    assert {one.thread_id for one in problems} <= {"a thread"}
    assert {one.checkpoint_ns for one in problems} <= {"", None}
    return [(one.kind, one.checkpoint_id, one.channel) for one in problems]


def counts_of(found: Verification) -> dict[str, int]:
    """The counts, by the tables' names."""
    counts = (found.threads, found.checkpoints, found.writes, found.chunks)
    names = (tables.threads, tables.checkpoints, tables.writes, tables.chunks)
    return {table.name: count for table, count in zip(names, counts, strict=True)}


def chunk_bytes(url: str) -> int:
    [[total]] = query(url, f"SELECT COALESCE(SUM(LENGTH(data)), 0) FROM {CHUNKS}")
    return int(str(total))


async def test_a_store_that_was_used_in_all_ways_is_whole(saver: Saver, migrated_url: str) -> None:
    await operate(saver)
    before = stored_rows(migrated_url)

    found = await saver.averify()

    assert found.whole
    assert found.problems == ()
    assert counts_of(found) == row_counts(migrated_url)
    assert found.bytes == chunk_bytes(migrated_url)
    assert found.checkpoints > 5
    assert found.chunks > 50
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
async def test_a_chunk_is_told_with_each_checkpoint_that_names_it_and_others_stay_readable(
    migrated_url: str, kind: ProblemKind
) -> None:
    rows = Rows(migrated_url)
    async with create_saver(migrated_url) as saver:
        parent = await put(saver, THREAD, "1", a=noise(1), b=noise(2))
        shared = rows.digests()
        for number in ("2", "3"):
            parent = await put(saver, parent, number, a=noise(1), c=noise(number))
        shared -= _named(rows, "b")
        await put(saver, parent, "4", b=noise(2))
    digest = sorted(shared)[3]
    where = f"digest = {rows.literal(digest)}"
    if kind is MISSING:
        rows.lose({digest})
    else:
        rows.alter(CHUNKS, "data", where, lambda data: data[1:])

    async with create_saver(migrated_url) as saver:
        found = await saver.averify()
        for number in ("1", "2", "3"):
            with pytest.raises(DamagedDataError, match=f"'{number}': channel 'a'.*{digest.hex()}"):
                await saver.aget_tuple(config(checkpoint_id=number))
        assert await saver.aget_tuple(THREAD) is not None

    assert places(found.problems) == [(kind, number, "a") for number in ("1", "2", "3")]
    assert {one.digest for one in found.problems} == {digest.hex()}


def _named(rows: Rows, channel: str) -> set[bytes]:
    """The digests in the root of a channel's value in the first checkpoint."""
    manifest = decode_manifest(rows.one("manifest", CHECKPOINTS, "checkpoint_id = '1'"))
    tree = manifest.channels[channel].tree()
    return set(split_digests(tree.digests)) if tree else set()


async def test_every_missing_chunk_is_named_and_every_damaged_value(migrated_url: str) -> None:
    rows = Rows(migrated_url)
    async with create_saver(migrated_url) as saver:
        parent = THREAD
        for number in range(30):
            long = noise("long", 100_000 + number)
            parent = await put(saver, parent, f"{number:02}", messages=long, other=noise(number))
        named = await saver.averify()
    assert named.whole
    stored = _chunks(rows)
    lost = {digest for digest, data in stored.items() if data[:DIGEST_SIZE] not in stored}
    assert len(lost) < len(stored)  # the nodes stay
    rows.lose(lost)

    async with create_saver(migrated_url) as saver:
        found = await saver.averify()

    assert {one.digest for one in found.problems} == {digest.hex() for digest in lost}
    damaged = {(one.checkpoint_id, one.channel) for one in found.problems}
    names = ("messages", "other")
    assert damaged == {(f"{number:02}", name) for number in range(30) for name in names}
    # Of a value that shares its chunks with another, not each of them is told again.
    assert len(found.problems) < 2 * len(lost)


def _chunks(rows: Rows) -> dict[bytes, bytes]:
    found = query(rows.url, f"SELECT digest, data FROM {CHUNKS}")
    return {bytes(digest): bytes(data) for digest, data in found}  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]


async def put_twice(saver: Saver, rows: Rows, thread: str) -> set[bytes]:
    """Replace a thread's checkpoint; the digests that only the replaced one named."""
    before = rows.digests()
    await put(saver, config(thread), "1", messages=noise(f"first in {thread}"))
    replaced = rows.digests() - before
    await put(saver, config(thread), "1", messages=noise(f"second in {thread}"))
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
    assert {one.digest for one in found.problems} == {digest.hex() for digest in replaced}
    assert stored_rows(migrated_url) == before

    repaired = await saver.averify(repair=True)
    assert repaired.problems == found.problems
    assert repaired.removed == len(replaced) > 3
    checkpoints, writes, chunks, threads = before
    assert isinstance(chunks, list)
    left = [row for row in chunks if bytes(row[1]) not in replaced]
    assert stored_rows(migrated_url) == [checkpoints, writes, left, threads]
    again = await saver.averify(repair=True)
    assert (again.problems, again.removed, again.whole) == ((), 0, True)


async def test_repair_keeps_to_the_thread_that_is_named(saver: Saver, migrated_url: str) -> None:
    rows = Rows(migrated_url)
    for thread in ("a", "b"):
        await put_twice(saver, rows, thread)

    assert (await saver.averify("a", repair=True)).removed > 3

    found = await saver.averify()
    assert {one.thread_id for one in found.problems} == {"b"}


async def test_chunks_that_a_repair_removed_are_stored_again_when_they_are_put_again(
    saver: Saver, migrated_url: str
) -> None:
    first = await put(saver, THREAD, "1", messages=noise(1))
    async with create_saver(migrated_url) as other:
        await put(other, THREAD, "1", messages=noise(2))
        assert (await other.averify(repair=True)).removed > 3

        # This one has put them, and remembers that they are stored.
        again = checkpoint("2", {"messages": noise(1)})
        again["channel_versions"] = {"messages": "1.messages"}
        await saver.aput(first, again, {}, {})

        assert (await other.averify()).whole
        read = await other.aget_tuple(THREAD)
    assert read is not None
    assert read.checkpoint["channel_values"] == {"messages": noise(1)}


async def test_an_altered_chunk_that_nothing_names_is_damage_that_repair_removes(
    saver: Saver, migrated_url: str
) -> None:
    """Left in place, it would be taken for the chunk by the next put that has it."""
    rows = Rows(migrated_url)
    digest = min(await put_twice(saver, rows, "a thread"))
    rows.alter(CHUNKS, "data", f"digest = {rows.literal(digest)}", lambda data: data[1:])

    found = await saver.averify(repair=True)
    assert [one.digest for one in found.problems if one.kind is ALTERED] == [digest.hex()]
    assert not found.whole
    again = await saver.averify()
    assert (again.problems, again.whole) == ((), True)


async def test_where_damage_hides_what_is_live_repair_removes_nothing(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    for thread in ("another", "a thread"):
        await put_twice(saver, rows, thread)
        await put(saver, config(thread), "2", other=noise(2))
    rows.execute(f"UPDATE {CHECKPOINTS} SET manifest = {rows.literal(b'?')} WHERE {OF_SECOND}")
    chunks = _chunks_of(rows, "a thread")

    found = await saver.averify(repair=True)

    assert found.removed > 3
    of_damaged = [one for one in found.problems if one.thread_id == "a thread"]
    expected: list[Place] = [(ProblemKind.UNDECODABLE_MANIFEST, "2", None), (UNDECIDED, None, None)]
    assert places(of_damaged) == expected
    assert {one.kind for one in found.problems if one.thread_id == "another"} == {UNREFERENCED}
    assert _chunks_of(rows, "a thread") == chunks
    assert [one.thread_id for one in (await saver.averify()).problems] == ["a thread"] * 2


async def test_a_write_that_hides_its_chunks_keeps_them_whatever_else_is_removable(
    saver: Saver, migrated_url: str
) -> None:
    """A sweep by itself would take it for one that names no chunks."""
    rows = Rows(migrated_url)
    altered = min(await put_twice(saver, rows, "a thread"))
    await saver.aput_writes(config(checkpoint_id="1"), [("long", noise("write"))], "a task")
    rows.alter(CHUNKS, "data", f"digest = {rows.literal(altered)}", lambda data: data[1:])
    rows.execute(f"UPDATE {WRITES} SET chunked = {rows.truth(value=False)}")
    chunks = _chunks_of(rows, "a thread")

    found = await saver.averify(repair=True)

    kinds = [ProblemKind.UNDECODABLE_WRITE, ALTERED, UNDECIDED]
    assert [one.kind for one in found.problems] == kinds
    assert _chunks_of(rows, "a thread") == chunks


def _chunks_of(rows: Rows, thread: str) -> list[tuple[object, ...]]:
    return query(rows.url, f"SELECT * FROM {CHUNKS} WHERE thread_id = '{thread}' ORDER BY digest")


async def test_damage_that_comes_between_verifying_and_repairing_is_told(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put_twice(saver, rows, "a thread")
    chunks = _chunks_of(rows, "a thread")
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
    assert _chunks_of(rows, "a thread") == chunks


async def test_rows_whose_thread_has_no_row_are_told_and_left(
    saver: Saver, migrated_url: str
) -> None:
    rows = Rows(migrated_url)
    await put_twice(saver, rows, "a thread")
    await put(saver, config("another"), "1")
    rows.execute("DELETE FROM checkpointer_threads WHERE thread_id = 'a thread'")
    before = stored_rows(migrated_url)

    found = await saver.averify(repair=True)

    assert found.threads == 2
    assert found.problems[0].kind is ProblemKind.MISSING_THREAD
    assert "1 checkpoints, 0 writes" in found.problems[0].detail
    assert not found.whole
    assert stored_rows(migrated_url) == before
    await put(saver, THREAD, "2")
    assert (await saver.averify(repair=True)).removed > 3
    assert (await saver.averify()).problems == ()


@pytest.mark.parametrize("table", [CHECKPOINTS, WRITES, CHUNKS])
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
    assert found.chunks == row_counts(migrated_url)[CHUNKS] > 3


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
    rows.execute(f"DELETE FROM {CHUNKS}")

    found = await saver.averify()

    assert set(places(found.problems)) == {(MISSING, "1", None)}
    assert {one.detail.split(":")[0] for one in found.problems} == {part}


async def test_a_long_checkpoint_under_another_id_is_found(saver: Saver, migrated_url: str) -> None:
    """So long that its own dict is stored in chunks."""
    rows = Rows(migrated_url)
    names = {f"{n} {noise(1).hex()[:300]}": None for n in range(40)}
    await put(saver, THREAD, "1", **names)
    assert rows.digests()
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


def _add_chunk(rows: Rows, data: bytes) -> bytes:
    """Store a chunk of our own making; its digest."""
    digest = digest_of(data)
    values = f"'a thread', {rows.literal(digest)}, {rows.literal(data)}"
    rows.execute(f"INSERT INTO {CHUNKS} (thread_id, digest, data) VALUES ({values})")
    return digest


def _set_tree(rows: Rows, size: int, depth: int, digests: bytes) -> None:
    """Have the channel `a` of the one checkpoint name a tree of our own making."""

    def change(data: bytes) -> bytes:
        stored = decode_manifest(data)
        value = Value("bytes", Tree(bytes(HEAD_SIZE), size, depth, digests))
        channels = {**stored.channels, "a": value}
        changed = Manifest(stored.version, stored.checkpoint, stored.metadata, channels)
        return encode_manifest(changed)

    rows.alter(CHECKPOINTS, "manifest", "thread_id = 'a thread'", change)


@pytest.mark.parametrize("excess", [-1, 0, 1])
async def test_the_bytes_of_the_chunks_must_be_those_of_the_value(
    saver: Saver, migrated_url: str, excess: int
) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    leaves = b"".join(_add_chunk(rows, noise(n, 300)) for n in range(3))
    node = _add_chunk(rows, leaves)
    _set_tree(rows, HEAD_SIZE + 2 * 3 * 300 + excess, 1, node * 2)

    found = await saver.averify()

    expected: list[Place] = [(ProblemKind.CONTRADICTORY_TREE, "1", "a")] if excess else []
    assert places(found.problems) == expected
    assert all("the chunks hold 1816 bytes" in one.detail for one in found.problems)


@pytest.mark.parametrize(
    ("sizes", "whole"),
    [
        ([300, 300, 100], True),
        ([300, 100, 300], False),
        ([[300, 300], [300, 100]], True),
        ([[300, 100], [300, 300]], False),
        ([[300, 100, 300], [300, 300]], False),
        ([[300, 300], [300]], True),
        ([[300], [300, 300]], False),
    ],
)
async def test_a_tree_is_whole_if_it_can_be_read(
    saver: Saver, migrated_url: str, sizes: list[Any], *, whole: bool
) -> None:
    """No chunk may be shorter than a writer makes them, but for the last of each level."""
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    nodes = [part if isinstance(part, list) else [part] for part in sizes]
    names = count()
    lists = [b"".join(_add_chunk(rows, noise(next(names), n)) for n in node) for node in nodes]
    depth = int(isinstance(sizes[0], list))
    root = b"".join(_add_chunk(rows, digests) if depth else digests for digests in lists)
    _set_tree(rows, HEAD_SIZE + sum(map(sum, nodes)), depth, root)

    found = await saver.averify()

    expected: list[Place] = [] if whole else [(ProblemKind.CONTRADICTORY_TREE, "1", "a")]
    assert places(found.problems) == expected
    if whole:
        assert await saver.aget_tuple(THREAD) is not None
    else:
        with pytest.raises(DamagedDataError, match="channel 'a'"):
            await saver.aget_tuple(THREAD)


async def test_a_node_that_is_no_list_of_digests_is_found(saver: Saver, migrated_url: str) -> None:
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    node = _add_chunk(rows, bytes(DIGEST_SIZE + 1))
    _set_tree(rows, 1_000, 1, node)

    [problem] = (await saver.averify()).problems

    assert places([problem]) == [(ProblemKind.CONTRADICTORY_TREE, "1", "a")]
    assert problem.digest == node.hex()


async def test_a_tree_that_names_its_chunks_again_and_again_is_soon_seen_through(
    saver: Saver, migrated_url: str
) -> None:
    """Of 64 to the power of 16 chunks if each were followed."""
    rows = Rows(migrated_url)
    await put(saver, THREAD, "1", a=None)
    digest = _add_chunk(rows, b"x" * 300)
    for _ in range(16):
        digest = _add_chunk(rows, digest * 64)
    _set_tree(rows, 1_000, 16, digest)

    [problem] = (await saver.averify()).problems

    assert problem.kind is ProblemKind.CONTRADICTORY_TREE
    assert f"the chunks hold {HEAD_SIZE + 300 * 64**16} bytes" in problem.detail


async def test_no_more_than_a_page_of_rows_is_held_at_once(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(migrated_url)
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "00", messages=noise("long", 1_500_000))
        for number in range(1, 11):
            for namespace in ("", "inner"):
                where = config(checkpoint_ns=namespace)
                at = await put(saver, where, f"{number:02}", messages=noise(number))
                writes = [("long", noise(number + 100)), ("b", 1), ("c", 2)]
                await saver.aput_writes(at, writes, "a task")
        for number in range(5):
            await put(saver, config(f"thread {number}"), "1", messages=noise(number))
        whole = await saver.averify()
    lost = sorted(rows.digests())[::40]
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
        monkeypatch.setattr(soundness, "CHUNKS", 16)
        monkeypatch.setattr(verification, "PAGE", 2)
        monkeypatch.setattr(DriverConnection, "fetch", measured)
        in_pages = await saver.averify()

    assert whole.problems == ()
    assert counts_of(in_pages) == counts_of(found) == row_counts(migrated_url)
    assert in_pages.problems == found.problems
    assert len(found.problems) >= len(lost) > 10
    assert found.bytes == in_pages.bytes > 800_000
    # Ranges hold 16 as a rule; the long value's tree alone has about 100 nodes.
    assert max(lengths) < 50
    assert max(sizes) < 50_000


async def test_what_many_checkpoints_share_is_followed_once(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "PAGE", 2)
    parent, long = THREAD, noise(1, 100_000)
    for number in range(20):
        parent = await put(saver, parent, f"{number:02}", {}, messages=long)
    with statements() as seen:
        found = await saver.averify()
    reading = [one for one in seen if one.sql.startswith(f"SELECT {CHUNKS}.digest, {CHUNKS}.data")]
    assert (found.checkpoints, found.problems) == (20, ())
    assert len(reading) == 2  # all chunks, and the nodes among them


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
        f"DELETE FROM {CHUNKS} WHERE thread_id = 'c'",
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
        (f"{CHUNKS} SET data", ALTERED),
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
    assert found.removed == len(found.problems) - 1 > 3
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
