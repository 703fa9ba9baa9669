"""What a process remembers: within bounds, the newest kept, nothing under a state of another."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storing import config, put, statements

from checkpointer import create_saver
from checkpointer.manifest import Value
from checkpointer.memory import (
    MOST_NAMESPACES,
    OVERHEAD,
    PAST_STATES,
    Contents,
    Known,
    KnownCheckpoint,
    Memory,
)
from checkpointer.sharing import Source, Whole
from checkpointer.slices import Layout, Slice

NOISE = random.Random(4).randbytes(200_000)  # noqa: S311 - a test's data, not a secret


def source(number: int, size: int = 100) -> Source:
    """A value, and a layout of it."""
    whole = Whole(NOISE[number : number + size])
    return whole, Layout(whole.checksum, (whole.data[:16], Slice(number, 16, size)))


def held(contents: Contents, thread: str, count: int, size: int = 100) -> list[int]:
    """Which of some values are there, by number."""
    layouts = [source(n, size)[1] for n in range(count)]
    return [n for n, layout in enumerate(layouts) if contents.get(thread, [layout])]


def test_what_was_put_is_found_by_thread_and_layout() -> None:
    contents = Contents(1 << 20)
    values = [source(n) for n in range(10)]
    contents.put("a", values)
    layouts = [layout for _, layout in values]
    assert contents.get("a", layouts) == {layout: whole for whole, layout in values}
    assert contents.get("a", [source(11)[1], layouts[3]]) == {layouts[3]: values[3][0]}
    assert contents.get("b", layouts) == {}
    assert contents.size == 10 * (100 + OVERHEAD)


def test_a_value_is_found_wherever_its_bytes_stand() -> None:
    """The same bytes may be stored anew, and have another layout then."""
    contents = Contents(1 << 20)
    whole, layout = source(1)
    contents.put("a", [(whole, layout)])
    elsewhere = Layout(layout.checksum, (Slice(77, 1_000, 1_100),))
    assert contents.get("a", [elsewhere]) == {elsewhere: whole}
    shorter = Layout(layout.checksum, (Slice(77, 1_000, 1_099),))
    assert contents.get("a", [shorter]) == {}


def test_the_least_recently_used_value_is_dropped_first() -> None:
    contents = Contents(5 * (100 + OVERHEAD))
    contents.put("a", [source(n) for n in range(5)])
    contents.get("a", [source(0)[1]])
    contents.put("a", [source(1)])
    contents.put("b", [source(5)])
    contents.put("a", [source(6)])
    assert held(contents, "a", 7) == [0, 1, 4, 6]
    assert held(contents, "b", 7) == [5]


def test_values_are_forgotten_that_others_take_the_place_of() -> None:
    contents = Contents(1 << 20)
    contents.put("a", [source(0), source(1)])
    contents.put("b", [source(0)])
    contents.put("a", [source(2)], [source(0)[1], source(9)[1]])
    assert held(contents, "a", 10) == [1, 2]
    assert held(contents, "b", 10) == [0]
    contents.put("a", [source(1)], [source(1)[1]])
    assert held(contents, "a", 10) == [1, 2]
    assert contents.size == 3 * (100 + OVERHEAD)


@pytest.mark.parametrize("max_bytes", [0, 1, OVERHEAD])
def test_without_room_nothing_is_kept(max_bytes: int) -> None:
    contents = Contents(max_bytes)
    contents.put("a", [source(n) for n in range(10)])
    assert held(contents, "a", 10) == []
    assert contents.size == 0


def test_a_value_that_would_fill_the_memory_alone_is_not_kept() -> None:
    contents = Contents(4_000)
    contents.put("a", [source(1)])
    contents.put("a", [source(2, 5_000)])
    assert held(contents, "a", 3) == [1]
    assert held(contents, "a", 3, 5_000) == []


steps = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(st.integers(0, 20), max_size=4),
        st.lists(st.integers(0, 20), max_size=3),
        st.lists(st.integers(0, 20), max_size=4),
    ),
    max_size=40,
)


@given(st.integers(0, 20_000), steps)
def test_contents_keep_their_bound_and_their_account(
    max_bytes: int, actions: list[tuple[str, list[int], list[int], list[int]]]
) -> None:
    contents = Contents(max_bytes)
    values = [source(n, 100 + 300 * n) for n in range(21)]
    for thread, putting, replaced, asked in actions:
        contents.put(thread, [values[n] for n in putting], [values[n][1] for n in replaced])
        assert 0 <= contents.size <= max_bytes
        found = contents.get(thread, [values[n][1] for n in asked])
        assert all(layout.checksum == whole.checksum for layout, whole in found.items())
    left = [
        whole
        for thread in "ab"
        for whole in contents.get(thread, [layout for _, layout in values]).values()
    ]
    assert contents.size == sum(len(whole.data) + OVERHEAD for whole in left)


def test_looks_are_told() -> None:
    told: list[tuple[Any, dict[str, int]]] = []

    def tell(what: str, **counts: int) -> None:
        told.append((what, counts))

    contents = Contents(1 << 20, tell)
    contents.put("a", [source(1), source(2)])
    contents.get("a", [source(n)[1] for n in (1, 2, 3, 3)])
    contents.get("a", [])
    assert told == [("value", {"found": 2, "missing": 1})]


def in_threads(use: Callable[[random.Random], None]) -> None:
    """Run something in four threads at once; raise what is raised there."""
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            use(random.Random(seed))  # noqa: S311 - not a secret
        except BaseException as exc:  # noqa: BLE001 - told below
            errors.append(exc)

    threads = [threading.Thread(target=run, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_contents_may_be_used_from_many_threads() -> None:
    contents = Contents(20_000)
    values = [source(n, 300) for n in range(100)]

    def use(numbers: random.Random) -> None:
        for _ in range(2_000):
            some = [values[numbers.randrange(100)] for _ in range(3)]
            contents.put("a", some, [values[numbers.randrange(100)][1]])
            for layout, whole in contents.get("a", [layout for _, layout in some]).items():
                assert whole.checksum == layout.checksum

    in_threads(use)
    left = contents.get("a", [layout for _, layout in values])
    assert 0 < contents.size == len(left) * (300 + OVERHEAD) <= 20_000


def last(
    checkpoint_id: str, *numbers: int, version: object = 1, writes: tuple[int, ...] = ()
) -> KnownCheckpoint:
    """A checkpoint with some long values, and an inline one."""
    channels = {"a": Value("bytes", b"")}
    channels |= {f"long {n}": Value("bytes", source(n)[1]) for n in numbers}
    versions = {"a": version, "b": 2}
    return KnownCheckpoint(checkpoint_id, versions, channels, [source(n)[1] for n in writes])


def known_of(memory: Memory, thread: str) -> Known:
    known = memory.get(thread)
    assert known is not None
    return known


def test_only_the_last_checkpoint_of_each_namespace_is_remembered() -> None:
    memory = Memory()
    known = memory.found("a", 7)
    assert memory.found("b", 7) is not known
    for namespace, checkpoint_id in (("", "1"), ("inner", "1"), ("", "2")):
        memory.learn("a", known, namespace, last(checkpoint_id))
    found = known_of(memory, "a").checkpoints
    assert {ns: one.checkpoint_id for ns, one in found.items()} == {"": "2", "inner": "1"}
    assert known_of(memory, "b").checkpoints == {}
    assert memory.get("c") is None


def test_values_are_told_that_nothing_remembers_any_more() -> None:
    memory = Memory()
    known = memory.found("a", 7)
    assert memory.learn("a", known, "", last("1", 1, 2, 3, writes=(4, 5))) == []
    assert memory.learn("a", known, "inner", last("1", 2)) == []
    replaced = memory.learn("a", known, "", last("2", 3, writes=(5,)))
    assert {layout.checksum for layout in replaced} == {source(n)[1].checksum for n in (1, 4)}
    assert memory.learn("a", known, "", last("2", 3, writes=(5,))) == []


def test_under_another_state_nothing_is_known() -> None:
    memory = Memory()
    known = memory.found("a", 7)
    memory.learn("a", known, "", last("1", 1))
    assert memory.found("a", 7) is known
    other = memory.found("a", 8)
    assert other is not known
    assert other.checkpoints == {}
    assert memory.get("a") is other
    assert memory.learn("a", known, "", last("2", 1)) == []  # from before somebody else's put
    memory.learn_writes("a", known, "", "1", [source(2)[1]])
    assert other.checkpoints == {}
    assert memory.found("a", 7) is not known


def test_a_state_that_this_process_has_replaced_itself_still_holds() -> None:
    """An answer may come late: it tells what stood there before puts that only added to it."""
    memory = Memory()
    known = memory.found("a", 0)
    memory.learn("a", known, "", last("1"))
    for state in range(1, 2 * PAST_STATES):
        known.coming = state
        assert memory.found("a", state) is known  # read before its put was acknowledged
        assert memory.advance("a", known, state) is known
        assert known.state == state
        assert memory.found("a", state - 1) is known
    assert memory.advance("a", known, known.state) is known
    assert list(known.past) == list(range(PAST_STATES - 1, 2 * PAST_STATES - 1))
    assert memory.found("a", PAST_STATES - 1) is known
    assert known_of(memory, "a").checkpoints[""].checkpoint_id == "1"
    assert memory.found("a", PAST_STATES - 2) is not known


def test_a_state_that_was_coming_is_not_taken_once_another_has_come() -> None:
    memory = Memory()
    known = memory.found("a", 1)
    known.coming = 2
    assert memory.advance("a", known, 3) is known
    known.coming = 4
    assert memory.found("a", 2) is not known


def test_nothing_advances_that_was_replaced_meanwhile() -> None:
    memory = Memory()
    known = memory.found("a", 1)
    other = memory.found("a", 2)
    assert memory.advance("a", known, 3) is None
    assert memory.get("a") is other
    assert other.state == 2
    memory.forget("a", known)
    assert memory.get("a") is other
    memory.forget("a", other)
    assert memory.get("a") is None
    assert memory.advance("a", other, 4) is None
    memory.forget("a", other)
    assert memory.found("a", 2) is not other


def test_writes_are_remembered_of_the_last_checkpoint_alone() -> None:
    memory = Memory()
    known = memory.found("a", 1)
    memory.learn("a", known, "", last("1", writes=(1,)))
    memory.learn_writes("a", known, "", "1", [source(2)[1], source(3)[1]])
    for namespace, checkpoint_id in (("", "0"), ("", None), ("inner", "1")):
        memory.learn_writes("a", known, namespace, checkpoint_id, [source(4)[1]])
    assert known.checkpoints[""].layouts() == [source(n)[1] for n in (1, 2, 3)]
    assert known.checkpoints.keys() == {""}
    replaced = memory.learn("a", known, "", last("2", 3))
    assert replaced == [source(n)[1] for n in (1, 2)]


def test_the_root_and_the_last_namespaces_are_remembered() -> None:
    memory = Memory()
    known = memory.found("a", 1)
    memory.learn("a", known, "", last("1"))
    for number in range(2 * MOST_NAMESPACES):
        memory.learn("a", known, f"inner:{number}", last("1"))
    names = [f"inner:{number}" for number in range(MOST_NAMESPACES + 1, 2 * MOST_NAMESPACES)]
    assert list(known.checkpoints) == ["", *names]


def weight(memory: Memory, threads: int) -> int:
    """How many values are remembered of all threads, themselves and their namespaces included."""
    known = [found for n in range(threads) if (found := memory.get(str(n))) is not None]
    checkpoints = [one for found in known for one in found.checkpoints.values()]
    return len(known) + sum(1 + len(one.channels) + len(one.writes) for one in checkpoints)


learned = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["", "inner"]), st.integers(0, 40)), max_size=60
)


@given(st.integers(0, 100), learned)
def test_what_is_known_of_all_threads_is_bounded(
    max_values: int, actions: list[tuple[int, str, int]]
) -> None:
    memory = Memory(max_values)
    for number, namespace, count in actions:
        known = memory.found(str(number), 1)
        if count % 7 == 0:
            memory.learn_writes(str(number), known, namespace, "1", [source(1)[1]] * count)
        elif count % 7 == 1:
            memory.forget(str(number), known)
        else:
            memory.learn(str(number), known, namespace, last("1", *range(count)))
        assert weight(memory, 10) <= max_values


def test_the_least_recently_used_thread_is_forgotten_first() -> None:
    memory = Memory(12)  # a thread with an inline value of its root takes three
    for thread in "abcd":
        memory.learn(thread, memory.found(thread, 1), "", last("1"))
    memory.get("a")
    memory.learn("e", memory.found("e", 1), "", last("1"))
    assert [thread for thread in "abcde" if memory.get(thread)] == ["a", "c", "d", "e"]


def test_a_thread_that_is_too_large_is_not_remembered() -> None:
    memory = Memory(10)
    known = memory.found("a", 1)
    memory.learn("a", known, "", last("1", *range(20)))
    assert memory.get("a") is None
    memory.learn("b", memory.found("b", 1), "", last("1"))
    assert known_of(memory, "b").checkpoints[""].checkpoint_id == "1"


def test_a_memory_of_nothing_remembers_nothing() -> None:
    memory = Memory(0)
    known = memory.found("a", 1)
    assert known.state == 1
    assert memory.get("a") is None
    assert memory.learn("a", known, "", last("1", 1)) == []
    memory.learn_writes("a", known, "", "1", [source(1)[1]])
    assert memory.advance("a", known, 2) is None
    memory.forget("a", known)
    assert memory.get("a") is None
    assert known.checkpoints == {}


def test_a_memory_may_be_used_from_many_threads() -> None:
    memory = Memory(200)

    def use(numbers: random.Random) -> None:
        for _ in range(2_000):
            thread, state = str(numbers.randrange(10)), numbers.randrange(5)
            known = memory.found(thread, state)
            memory.learn(thread, known, "", last(str(state), *range(numbers.randrange(9))))
            memory.learn_writes(thread, known, "", str(state), [source(1)[1]])
            if numbers.random() < 0.3:
                memory.advance(thread, known, numbers.randrange(5))
            if numbers.random() < 0.1:
                memory.forget(thread, known)
            memory.get(str(numbers.randrange(10)))

    in_threads(use)
    assert 0 < weight(memory, 10) <= 200


def test_a_channel_is_unchanged_only_under_the_same_version() -> None:
    remembered = last("1", version="1.5")
    inline = {"a": Value("bytes", b"")}
    assert remembered.unchanged({"a": "1.5", "b": 2, "c": 1}, []) == inline
    assert remembered.unchanged({"a": "1.5"}, ["b"]) == inline
    assert remembered.unchanged({"a": "1.5"}, {"a": "1.5"}) == {}
    for versions in ({"a": "1.6"}, {"a": None}, {"b": "1.5"}, {}):
        assert remembered.unchanged(versions, []) == {}


@pytest.mark.parametrize("version", [None, [], (), object()])
def test_a_channel_without_a_version_is_never_unchanged(version: object) -> None:
    assert last("1", version=version).unchanged({"a": version}, []) == {}


async def test_any_number_of_threads_takes_a_bounded_memory(migrated_url: str) -> None:
    """Reads of many threads drop the oldest; what was dropped is read again."""
    values = [NOISE[n * 20_000 : (n + 1) * 20_000] for n in range(6)]
    async with create_saver(migrated_url, cache_bytes=50_000) as saver:
        for number, value in enumerate(values):
            await put(saver, config(number), "1", value=value)
        for number, value in [*enumerate(values), *enumerate(values)]:
            with statements() as seen:
                found = await saver.aget_tuple(config(number))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"value": value}
            assert any("checkpointer_segments" in one.sql for one in seen)
            assert 0 < saver._backend.store.contents.size <= 50_000  # noqa: SLF001
