"""What a process remembers: within bounds, the newest kept, nothing from before a deletion."""

import random
import threading
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storing import config, put, statements

from checkpointer import create_saver
from checkpointer.cache import ENTRY_OVERHEAD, ChunkCache, LastCheckpoint, LastCheckpoints
from checkpointer.manifest import Value


def chunk(number: int, size: int) -> tuple[bytes, bytes]:
    data = bytes([number % 256]) * size
    return blake2b(data + bytes([number // 256]), digest_size=20).digest(), data


def held(cache: ChunkCache, count: int, size: int) -> list[int]:
    """Which of the chunks are there, by number."""
    return [n for n in range(count) if cache.get_many([chunk(n, size)[0]])]


def test_a_cache_gives_back_what_it_was_given() -> None:
    cache = ChunkCache(1 << 20)
    chunks = dict(chunk(n, 100) for n in range(10))
    cache.put_many(chunks.items())
    assert cache.get_many(chunks) == chunks
    assert cache.get_many([b"unknown", next(iter(chunks))]) == dict([chunk(0, 100)])
    assert cache.size == 10 * (100 + ENTRY_OVERHEAD)


def test_a_cache_holds_bytes_of_its_own() -> None:
    cache = ChunkCache(1 << 20)
    buffer = bytearray(b"x" * 100)
    cache.put_many([(b"digest", memoryview(buffer)[10:20])])
    buffer[:] = b"y" * 100
    found = cache.get_many([b"digest"])[b"digest"]
    assert found == b"x" * 10
    assert type(found) is bytes


def test_the_least_recently_used_is_dropped_first() -> None:
    size = 100
    cache = ChunkCache(5 * (size + ENTRY_OVERHEAD))
    cache.put_many(chunk(n, size) for n in range(5))
    cache.get_many([chunk(0, size)[0]])
    cache.put_many([chunk(1, size)])
    cache.put_many([chunk(5, size), chunk(6, size)])
    assert held(cache, 7, size) == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("max_bytes", [0, 1, ENTRY_OVERHEAD])
def test_a_cache_without_room_holds_nothing(max_bytes: int) -> None:
    cache = ChunkCache(max_bytes)
    cache.put_many(chunk(n, 100) for n in range(10))
    assert held(cache, 10, 100) == []
    assert cache.size == 0


def test_a_chunk_that_is_too_large_leaves_the_bound() -> None:
    cache = ChunkCache(1_000)
    cache.put_many([chunk(1, 100), chunk(2, 5_000)])
    assert cache.size <= 1_000


actions = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 20), max_size=6)), max_size=40)


@given(st.integers(0, 5_000), actions)
def test_a_cache_keeps_its_bound_and_its_account(
    max_bytes: int, steps: list[tuple[bool, list[int]]]
) -> None:
    cache = ChunkCache(max_bytes)
    sizes = {n: random.Random(n).randrange(600) for n in range(21)}  # noqa: S311 - not a secret
    chunks = {n: (bytes([n]) * 20, bytes([n]) * size) for n, size in sizes.items()}
    for putting, numbers in steps:
        if putting:
            cache.put_many(chunks[n] for n in numbers)
        else:
            found = cache.get_many(chunks[n][0] for n in numbers)
            assert found.items() <= {chunks[n] for n in numbers}
        assert cache.size <= max_bytes
    left = cache.get_many(digest for digest, _ in chunks.values())
    assert cache.size == sum(len(data) + ENTRY_OVERHEAD for data in left.values())


def test_a_cache_may_be_used_from_many_threads() -> None:
    cache = ChunkCache(20_000)
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        numbers = random.Random(seed)  # noqa: S311 - not a secret
        try:
            for _ in range(2_000):
                some = [chunk(numbers.randrange(100), 300) for _ in range(3)]
                cache.put_many(some)
                for digest, data in cache.get_many(digest for digest, _ in some).items():
                    assert dict(some)[digest] == data
        except BaseException as exc:  # noqa: BLE001 - told by the test below
            errors.append(exc)

    threads = [threading.Thread(target=use, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert 0 < cache.size <= 20_000


def last(checkpoint_id: str, *digests: bytes, version: object = 1) -> LastCheckpoint:
    names = frozenset(digests)
    channels = {"a": (Value("bytes", b""), names)}
    return LastCheckpoint(checkpoint_id, {"a": version, "b": 2}, channels, names)


def test_only_the_last_checkpoint_of_a_namespace_is_remembered() -> None:
    known = LastCheckpoints()
    known.learn("a", 7, last("1", b"x"))
    known.learn("b", 7, last("1", b"z"))
    known.learn("a", 7, last("2", b"y"))
    assert known.get("a") == (7, last("2", b"y"))
    assert known.get("b") == (7, last("1", b"z"))
    assert known.get("c") is None
    assert known.stored("a", 7) == {b"y"}


def test_nothing_is_known_under_another_epoch() -> None:
    known = LastCheckpoints()
    known.learn("a", 7, last("1", b"x"))
    assert known.stored("a", 8) == frozenset()
    assert known.stored("b", 7) == frozenset()
    known.learn("a", 8, last("2", b"y"))
    assert known.stored("a", 7) == frozenset()
    assert known.stored("a", 8) == {b"y"}


def test_a_channel_is_unchanged_only_under_the_same_version() -> None:
    remembered = last("1", b"x", version="1.5")
    assert remembered.unchanged({"a": "1.5", "b": 2, "c": 1}, []) == remembered.channels
    assert remembered.unchanged({"a": "1.5"}, ["b"]) == remembered.channels
    assert remembered.unchanged({"a": "1.5"}, {"a": "1.5"}) == {}
    for versions in ({"a": "1.6"}, {"a": None}, {"b": "1.5"}, {}):
        assert remembered.unchanged(versions, []) == {}


def test_a_channel_without_a_version_is_never_unchanged() -> None:
    assert last("1", b"x", version=None).unchanged({"a": None}, []) == {}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=60))
def test_what_is_known_of_all_threads_is_bounded(steps: list[tuple[int, int]]) -> None:
    known = LastCheckpoints(max_digests=60)
    for namespace, count in steps:
        learned = last(str(count), *(n.to_bytes(2, "big") for n in range(count)))
        known.learn(namespace, 1, learned)
        assert known.stored(namespace, 1) == learned.digests
        assert sum(len(known.stored(n, 1)) for n in range(10)) <= 60


def test_a_checkpoint_that_is_too_large_is_not_remembered() -> None:
    known = LastCheckpoints(max_digests=10)
    known.learn("a", 1, last("1", b"x"))
    known.learn("b", 1, last("1", *(bytes([n]) for n in range(20))))
    assert known.get("b") is None
    known.learn("c", 1, last("1", b"x"))
    assert known.get("c") == (1, last("1", b"x"))


async def test_any_number_of_threads_takes_a_bounded_cache(migrated_url: str) -> None:
    """Reads of many threads drop the oldest; what was dropped is read again."""
    values = [random.Random(n).randbytes(20_000) for n in range(6)]  # noqa: S311 - not a secret
    async with create_saver(migrated_url, cache_bytes=50_000) as saver:
        for number, value in enumerate(values):
            await put(saver, config(number), "1", value=value)
        for number, value in [*enumerate(values), *enumerate(values)]:
            with statements() as seen:
                found = await saver.aget_tuple(config(number))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"value": value}
            assert any("checkpointer_chunks" in one.sql for one in seen)
            assert 0 < saver._backend.store.cache.size <= 50_000  # noqa: SLF001
