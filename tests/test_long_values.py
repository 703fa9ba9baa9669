"""Long values: what stays the same is neither cut nor sent again, and nobody can tell.

A value cut with the help of the one before has the chunks that it has without; whatever is not
known to be stored is sent.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from model import digests, rows_of
from storing import config, put

from checkpointer import AsyncSQLAlchemySaver, backend, chunking, create_saver
from checkpointer.cache import ENTRY_OVERHEAD, ChunkCache
from checkpointer.chunking import HEAD_SIZE, Cut, Tree, assemble, cut, split
from checkpointer.records import Namespace, Put
from checkpointer.store import Store
from checkpointer.tables import checkpoints, chunks

NOISE = random.Random(31).randbytes(400_000)  # noqa: S311 - a test's data, not a secret
THREAD = config()


def text(number: int) -> str:
    """A message of about 1 KB."""
    return f"{number}: {NOISE[number * 500 : number * 500 + 500].hex()}"


def noise(start: int, size: int) -> bytes:
    return NOISE[start : start + size]


def zeros(start: int, size: int) -> bytes:
    del start
    return bytes(size)


def repeated(start: int, size: int) -> bytes:
    unit = NOISE[start : start + 1 + start % 3_000]
    return (unit * (size // len(unit) + 1))[:size]


pieces = st.builds(
    lambda kind, start, size: kind(start, size),
    st.sampled_from([noise, noise, zeros, repeated]),
    st.integers(0, 100_000),
    st.sampled_from([0, 1, 2, 40, 700, 3_000, 30_000]) | st.integers(0, 9_000),
)


def edited(before: Cut, edit: tuple[int, int | None, bytes, int]) -> bytes:
    """Other bytes made of some that were cut.

    Args:
        before: The bytes.
        edit: The place, or a chunk and how far before its end; what is inserted there; and how many
            bytes are removed there, 0 for all.
    """
    where, before_end, inserted, removed = edit
    data, ends = before.data, before.levels[0].ends
    at = where % (len(data) + 1)
    if before_end is not None:
        at = ends[where % len(ends)] - before_end
    rest = data[at + removed :] if removed else b""
    return (data[:at] + inserted + rest).ljust(HEAD_SIZE + 1, b"x")


edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.none() | st.integers(-1, 1),
        pieces,
        st.sampled_from([0, 0, 1, 999]),
    ),
    min_size=1,
    max_size=6,
)


def content(one: Cut) -> tuple[Any, ...]:
    levels = [(level.digests, level.ends) for level in one.levels]
    return (one.data, one.tree, levels, one.digests)


@given(pieces, edits)
def test_cutting_with_the_value_before_is_cutting_in_full(start: bytes, steps: Any) -> None:
    one, known = cut(start.ljust(HEAD_SIZE + 1, b"x"))
    for step in steps:
        data = edited(one, step)
        full, all_chunks = cut(data)
        one_more, new = cut(data, one)
        assert content(one_more) == content(full)
        assert new.items() <= all_chunks.items()
        assert all_chunks.keys() - new.keys() <= one.digests
        assert split(data) == (full.tree, all_chunks)
        known |= new
        one = assemble(one_more.tree, known)
        assert content(one) == content(full)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all chunks that are hashed from here on."""
    sizes: list[int] = []
    original = chunking.digest_of

    def count(data: bytes | memoryview) -> bytes:
        sizes.append(len(data))
        return original(data)

    monkeypatch.setattr(chunking, "digest_of", count)
    return sizes


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda data: data, 12),
        (lambda data: data + b"one more", 12),
        (lambda data: data[:-5_000], 12),
        (lambda data: b"another length.." + data[HEAD_SIZE:], 12),
        (lambda data: data[:200_000] + b"a word" + data[200_000:], 250),
    ],
)
def test_only_what_follows_the_first_difference_is_hashed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], most: int
) -> None:
    before, known = cut(NOISE)
    sizes = hashed(monkeypatch)
    after, new = cut(change(NOISE), before)
    assert 0 < len(sizes) <= most < len(known)
    assert len(new) <= len(sizes)
    assert after.digests <= known.keys() | new.keys()


def test_a_tree_can_become_as_small_as_it_likes_and_as_large() -> None:
    before: Cut | None = None
    depths = []
    for size in (400_000, 100_000, 10_000, 17, 10_000, 100_000, 400_000, 30_000):
        before = cut(NOISE[:size], before)[0]
        assert before.tree == split(NOISE[:size])[0]
        depths.append(before.tree.depth)
    assert set(depths) == {0, 1, 2}


def whole(number: int, size: int) -> Cut:
    return cut(NOISE[number : number + size])[0]


def cost(one: Cut) -> int:
    return len(one.data) + ENTRY_OVERHEAD * (1 + len(one.digests))


def test_a_cache_holds_whole_values_beside_chunks() -> None:
    one, other = whole(0, 5_000), whole(1, 5_000)
    cache = ChunkCache(1 << 20)
    cache.put_cuts([one], [])
    cache.put_many([(b"digest", b"data")])
    assert cache.get_cut(one.tree) is one
    assert cache.get_cut(other.tree) is None
    assert cache.size == cost(one) + len(b"data") + ENTRY_OVERHEAD
    cache.put_cuts([other], [one.tree, whole(2, 5_000).tree])
    assert cache.get_cuts([one.tree, other.tree]) == {other.tree: other}
    cache.put_cuts([other], [])
    assert cache.size == cost(other) + len(b"data") + ENTRY_OVERHEAD


def test_a_value_that_would_fill_the_cache_alone_is_not_kept() -> None:
    cache = ChunkCache(4_000)
    cache.put_many([(b"digest", b"data")])
    cache.put_cuts([whole(0, 5_000)], [])
    assert cache.get_many([b"digest"]) == {b"digest": b"data"}
    assert cache.size == len(b"data") + ENTRY_OVERHEAD


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=2),
        st.lists(st.integers(0, 9), max_size=2),
        st.lists(st.integers(0, 9), max_size=4),
    ),
    max_size=30,
)


@given(st.integers(0, 40_000), steps)
def test_a_cache_keeps_its_bound_with_whole_values_in_it(
    max_bytes: int, actions: list[tuple[list[int], list[int], list[int]]]
) -> None:
    cache = ChunkCache(max_bytes)
    values = [whole(n, 500 + 2_000 * n) for n in range(10)]
    for putting, replaced, numbers in actions:
        cache.put_cuts((values[n] for n in putting), (values[n].tree for n in replaced))
        cache.put_many((bytes([n]) * 20, bytes(n * 300)) for n in numbers)
        assert 0 <= cache.size <= max_bytes
    trees: list[Tree] = [value.tree for value in values]
    left = cache.get_many(bytes([n]) * 20 for n in range(10))
    expected = sum(cost(one) for one in cache.get_cuts(trees).values())
    assert cache.size == expected + sum(len(data) + ENTRY_OVERHEAD for data in left.values())


def longer(messages: list[str], count: int) -> list[str]:
    return messages + [text(len(messages) + n) for n in range(count)]


def change(messages: list[str], how: str, number: int) -> list[str]:
    """The next state of a conversation."""
    at = number % (len(messages) + 1)
    if how == "append":
        return longer(messages, 1 + number % 30)
    if how == "edit":
        return [*messages[:at], "edited", *messages[at + 1 :]]
    if how == "forget the oldest":
        return messages[at:]
    if how == "take back":
        return messages[:at]
    return messages


histories = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "edit", "forget the oldest", "take back", "nothing"]),
        st.integers(0, 1 << 20),
        st.sampled_from(["", "", "chunks", "values", "some", "last"]),
    ),
    min_size=1,
    max_size=8,
)


def forget(saver: AsyncSQLAlchemySaver, what: str) -> None:
    """Take from a saver's memory, as a full cache would."""
    store = saver._backend.store  # noqa: SLF001
    entries = store.cache._chunks  # noqa: SLF001
    for n, key in enumerate(list(entries)):
        if (what == "some" and n % 3) or what == ("values" if isinstance(key, Tree) else "chunks"):
            entries.move_to_end(key, last=False)
            store.cache.max_bytes = store.cache.size - 1
            store.cache.put_many([])
    store.cache.max_bytes = 1 << 26
    if what == "last":
        store.last.clear()


async def history(
    saver: AsyncSQLAlchemySaver, thread: str, changes: list[tuple[str, int, str]]
) -> list[list[str]]:
    """Put the states of a conversation, one on top of the other, and return them."""
    at, states = config(thread), [longer([], 40)]
    for how, number, _ in changes:
        states.append(change(states[-1], how, number))
    for n, (state, (_, _, forgotten)) in enumerate(
        zip(states, [("", 0, ""), *changes], strict=True)
    ):
        forget(saver, forgotten)
        at = await put(saver, at, f"{n}", messages=state, noise=NOISE[: 9_000 + n])
    return states


@pytest.fixture
def run() -> Any:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner.run


def test_a_saver_that_remembers_stores_the_same_as_one_that_does_not(
    migrated_url: str, run: Callable[[Awaitable[Any]], Any]
) -> None:
    saver, cold = create_saver(migrated_url), create_saver(migrated_url, cache_bytes=0)

    @given(histories)
    def agree(changes: list[tuple[str, int, str]]) -> None:
        async def compare() -> None:
            states = await history(saver, "warm", changes)
            cold._backend.store.last.clear()  # noqa: SLF001
            await history(cold, "cold", changes)
            rows = sa.select(checkpoints.c["manifest"]).order_by("checkpoint_id")
            named = sa.select(chunks.c["digest"]).order_by("digest")
            for stored in (rows, named):
                warm, plain = [
                    await rows_of(saver, stored.where(sa.column("thread_id") == thread))
                    for thread in ("warm", "cold")
                ]
                assert warm == plain
            for reader in (saver, cold):
                found = [one async for one in reader.alist(config("warm"))]
                values = [one.checkpoint["channel_values"]["messages"] for one in found]
                assert values[::-1] == states
                latest = await reader.aget_tuple(config("warm"))
                assert latest is not None
                assert latest.checkpoint["channel_values"]["messages"] == states[-1]
            for thread in ("warm", "cold"):
                await cold.adelete_thread(thread)

        run(compare())

    try:
        agree()
    finally:
        run(saver.aclose())
        run(cold.aclose())


async def stored_messages(saver: AsyncSQLAlchemySaver) -> Any:
    """What another process reads."""
    found = await create_saver(saver.engine).aget_tuple(THREAD)
    assert found is not None
    return found.checkpoint["channel_values"]["messages"]


async def delete(saver: AsyncSQLAlchemySaver) -> None:
    await saver.adelete_thread("a thread")


async def prune(saver: AsyncSQLAlchemySaver) -> None:
    await saver.aprune(["a thread"])


async def copy_over(saver: AsyncSQLAlchemySaver) -> None:
    await put(saver, config("another"), "1", messages=["other"])
    await saver.acopy_thread("another", "a thread")


@pytest.mark.parametrize("meanwhile", [delete, prune, copy_over])
@pytest.mark.parametrize("forgotten", ["", "chunks", "values", "last"])
async def test_what_another_process_deletes_is_sent_again(
    saver: AsyncSQLAlchemySaver,
    meanwhile: Callable[[AsyncSQLAlchemySaver], Awaitable[None]],
    forgotten: str,
) -> None:
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages[:50])
    at = await put(saver, at, "2", messages=messages)
    await meanwhile(create_saver(saver.engine))
    forget(saver, forgotten)

    messages = longer(messages, 1)
    await put(saver, at, "3", messages=messages)

    assert await stored_messages(saver) == messages
    if meanwhile is not copy_over:
        stored, live = await digests(saver, "a thread")
        assert live <= stored


async def test_a_put_encoded_before_the_database_was_lost_sends_all(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that it left out may be among the commits that a replica has not got."""
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages)
    writer = vars(saver._backend)["_writer"]  # noqa: SLF001
    original = writer.put

    async def lose_first(one: Put) -> None:
        saver._backend.store.last.clear()  # noqa: SLF001
        async with saver.engine.begin() as connection:
            await connection.execute(sa.delete(chunks))
            await connection.execute(sa.delete(checkpoints))
        await original(one)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "put", lose_first)
        await put(saver, at, "2", messages=longer(messages, 1))

    assert await stored_messages(saver) == longer(messages, 1)


async def test_an_append_stores_its_end_and_a_warm_read_looks_at_no_chunk(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = longer([], 200)
    at = await put(saver, THREAD, "1", messages=messages)
    before = len((await digests(saver, "a thread"))[0])
    sizes = hashed(monkeypatch)

    await put(saver, at, "2", messages=longer(messages, 1))

    assert len((await digests(saver, "a thread"))[0]) <= before + 8
    assert len(sizes) <= 8
    forget(saver, "chunks")
    async with saver.engine.begin() as connection:
        await connection.execute(sa.delete(chunks))
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": longer(messages, 1)}


async def test_what_another_process_appends_is_all_that_a_warm_reader_reads(
    saver: AsyncSQLAlchemySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = longer([], 400)
    at = await put(saver, THREAD, "1", messages=messages)
    reader = create_saver(saver.engine)
    await reader.aget_tuple(THREAD)
    original, sizes = Store._read_chunks, []  # noqa: SLF001

    def counted(*args: Any, **options: Any) -> dict[bytes, bytes]:
        read = original(*args, **options)
        sizes.append(len(read))
        return read

    monkeypatch.setattr(Store, "_read_chunks", counted)
    for number in range(2, 8):
        messages = longer(messages, 1)
        at = await put(saver, at, f"{number}", messages=messages)
        found = await reader.aget_tuple(THREAD)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"messages": messages}
        assert 1 <= sum(sizes) <= 8
        sizes.clear()


async def test_only_the_last_of_a_growing_value_is_kept_whole(saver: AsyncSQLAlchemySaver) -> None:
    cache = saver._backend.store.cache  # noqa: SLF001
    at = THREAD
    for number in range(5):
        at = await put(saver, at, f"{number}", messages=longer([], 60 + number))
        assert sum(isinstance(key, Tree) for key in cache._chunks) == 1  # noqa: SLF001
    other = create_saver(saver.engine)
    await other.aget_tuple(THREAD)
    await put(saver, at, "6", messages=longer([], 70))
    await other.aget_tuple(THREAD)
    entries = other._backend.store.cache._chunks  # noqa: SLF001
    assert sum(isinstance(key, Tree) for key in entries) == 1


class Watching(JsonPlusSerializer):
    """Tells which threads dump and load long values."""

    def __init__(self) -> None:
        super().__init__()
        self.dumping: set[int] = set()
        self.loading: set[int] = set()
        self.wait: threading.Event | None = None

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, list) and len(obj) > 10:
            self.dumping.add(threading.get_ident())
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if len(data[1]) > 10_000:
            self.loading.add(threading.get_ident())
            if self.wait is not None:
                self.wait.wait(60)
        return super().loads_typed(data)


async def test_large_values_are_dumped_on_the_loop_and_loaded_off_it(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump elsewhere would meet objects that the next superstep changes."""
    monkeypatch.setattr(backend, "OFF_LOOP", 10_000)
    serde = Watching()
    async with create_saver(migrated_url, serde=serde) as saver:
        await put(saver, THREAD, "1", messages=longer([], 60))
        found = await saver.aget_tuple(THREAD)
        [listed] = [one async for one in saver.alist(THREAD)]
    assert found == listed
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": longer([], 60)}
    assert serde.dumping == {threading.get_ident()}
    assert serde.loading
    assert threading.get_ident() not in serde.loading


async def test_closing_waits_for_a_put_that_is_off_the_loop(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "OFF_LOOP", 0)
    saver = create_saver(migrated_url)
    await saver.aget_tuple(THREAD)
    putting = asyncio.create_task(put(saver, THREAD, "1", messages=longer([], 200)))
    await asyncio.sleep(0)
    await saver.aclose()
    await putting
    async with create_saver(migrated_url) as other:
        assert await stored_messages(other) == longer([], 200)


async def test_a_slow_read_does_not_displace_what_a_run_goes_on_from(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "OFF_LOOP", 10_000)
    serde = Watching()
    async with create_saver(migrated_url, serde=serde) as saver:
        at = await put(saver, THREAD, "1", messages=longer([], 60))
        serde.wait = threading.Event()
        reading = asyncio.create_task(saver.aget_tuple(THREAD))
        while not serde.loading:  # noqa: ASYNC110 - a thread tells no event of the loop
            await asyncio.sleep(0.001)
        await put(saver, at, "2", messages=longer([], 61))
        serde.wait.set()
        found = await reading
        last = saver._backend.store.last.get(Namespace("a thread", ""))  # noqa: SLF001
    assert found is not None
    assert found.checkpoint["id"] == "1"
    assert last is not None
    assert last[1].checkpoint_id == "2"
