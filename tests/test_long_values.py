"""Long values: what stays the same is neither cut nor sent again, whatever a process remembers.

How much is stored depends on what is stored already, and never on a cache; whatever is refused is
made again of the same bytes.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from model import rows_of
from storing import assert_no_garbage, checkpoint, config, put, statements, stored_bytes

from checkpointer import AsyncSQLAlchemySaver, backend, create_saver, sharing, tables
from checkpointer.basis import New
from checkpointer.manifest import Value, decode_manifest, decode_value
from checkpointer.records import Namespace, Put
from checkpointer.slices import Hash, Slice

NOISE = random.Random(31).randbytes(400_000)  # noqa: S311 - a test's data, not a secret
THREAD = config()

Saver: TypeAlias = AsyncSQLAlchemySaver


def text(number: int) -> str:
    """A message of about 1 KB."""
    return f"{number}: {NOISE[number * 500 : number * 500 + 500].hex()}"


def longer(messages: list[str], count: int) -> list[str]:
    return messages + [text(len(messages) + n) for n in range(count)]


def size_of(url: str, thread: str = "a thread") -> int:
    """How many bytes of values a thread has stored, before compression."""
    return sum(
        stop - start
        for (name, _), intervals in stored_bytes(url).items()
        for start, stop in intervals
        if name == thread
    )


async def latest(saver: Saver, where: RunnableConfig = THREAD) -> Any:
    """The values of a namespace's latest checkpoint."""
    found = await saver.aget_tuple(where)
    assert found is not None
    return found.checkpoint["channel_values"]


def forget(saver: Saver, what: str, thread: str = "a thread") -> None:
    """Take from a saver's memory, as a full one would, or another process."""
    store = saver._backend.store  # noqa: SLF001
    if what in {"values", "all"}:
        most, store.contents.max_bytes = store.contents.max_bytes, 0
        store.contents.put(thread, [])
        store.contents.max_bytes = most
    if what == "some":
        for key in list(store.contents._wholes)[::2]:  # noqa: SLF001
            store.contents._drop(key)  # noqa: SLF001
    if what in {"last", "all"} and (known := store.memory.get(thread)) is not None:
        store.memory.forget(thread, known)


FORGOTTEN = ["", "", "values", "some", "last", "all"]


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes are hashed and cut from here on."""
    counts = {"hashed": 0, "cut": 0}
    after, cut = Hash.after, sharing._cut  # noqa: SLF001

    def hashing(self: Hash, data: bytes | memoryview) -> Hash:
        counts["hashed"] += len(data)
        return after(self, data)

    def cutting(data: bytes, start: int, stop: int) -> Iterable[tuple[bytes, int, int]]:
        counts["cut"] += stop - start
        return cut(data, start, stop)

    monkeypatch.setattr(Hash, "after", hashing)
    monkeypatch.setattr(sharing, "_cut", cutting)
    return counts


async def test_an_append_hashes_and_stores_its_own_bytes_and_cuts_none(
    saver: Saver, migrated_url: str, worked: dict[str, int]
) -> None:
    messages = longer([], 200)
    at = await put(saver, THREAD, "1", messages=messages)
    before = size_of(migrated_url)
    worked.update(hashed=0, cut=0)

    for number in range(2, 7):
        messages = longer(messages, 1)
        at = await put(saver, at, f"{number}", messages=messages)

    added = sum(len(one) + 3 for one in messages[200:])
    assert size_of(migrated_url) == before + added
    assert worked == {"hashed": added, "cut": 0}


@pytest.mark.parametrize("forgotten", FORGOTTEN[1:])
async def test_an_edit_cuts_what_it_may_have_changed_and_stores_what_it_has(
    saver: Saver, migrated_url: str, worked: dict[str, int], forgotten: str
) -> None:
    messages = longer([], 200)
    at = await put(saver, THREAD, "1", messages=messages)
    before = size_of(migrated_url)
    worked.update(hashed=0, cut=0)

    forget(saver, forgotten)
    edited = [*messages[:100], "edited", *messages[101:]]
    at = await put(saver, at, "2", messages=edited)
    assert size_of(migrated_url) <= before + 10
    assert worked["cut"] == 0  # what is equal in front and behind is found by looking at it

    moved = [*edited[150:], *edited[:150]]
    await put(saver, at, "3", messages=moved)
    assert size_of(migrated_url) <= before + 200
    assert await latest(create_saver(saver.engine)) == {"messages": moved}


@pytest.mark.parametrize("forgotten", FORGOTTEN[1:])
async def test_what_has_not_changed_is_not_sent_again(
    saver: Saver, migrated_url: str, forgotten: str
) -> None:
    """Neither what keeps its version, nor what is equal under another, or in another channel."""
    values: dict[str, Any] = {"messages": longer([], 60), "document": NOISE[:50_000]}
    at = await put(saver, THREAD, "1", **values)
    before = stored_bytes(migrated_url)
    forget(saver, forgotten)

    kept: Any = checkpoint("2", values)
    kept["channel_versions"] = {name: f"1.{name}" for name in values}
    at = await saver.aput(at, kept, {}, {})
    forget(saver, forgotten)
    at = await put(saver, at, "3", **values)
    forget(saver, forgotten)
    await saver.aput_writes(at, [("messages", values["messages"])], "a task")
    forget(saver, forgotten)
    await put(saver, at, "4", copied=values["document"], messages=values["messages"])

    assert stored_bytes(migrated_url) == before
    reader = create_saver(saver.engine)
    found = await reader.aget_tuple(config(checkpoint_id="3"))
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("a task", "messages", values["messages"])]
    assert await latest(reader) == {"messages": values["messages"], "copied": values["document"]}


async def test_a_value_of_another_thread_is_not_used(saver: Saver, migrated_url: str) -> None:
    messages = longer([], 60)
    await put(saver, config("another"), "1", messages=messages)
    await put(saver, THREAD, "1", messages=messages)
    assert size_of(migrated_url) == size_of(migrated_url, "another") > 60_000
    await saver.adelete_thread("another")
    assert await latest(create_saver(saver.engine)) == {"messages": messages}
    assert_no_garbage(migrated_url)


async def test_a_long_write_is_stored_once_with_the_checkpoint_that_takes_it(
    saver: Saver, migrated_url: str
) -> None:
    """So is a subgraph's copy of its parent's list."""
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages)
    await saver.aput_writes(at, [("messages", [NOISE[:40_000].hex()])], "a task")
    before = size_of(migrated_url)
    messages = [*messages, NOISE[:40_000].hex()]
    inner = config(checkpoint_ns="inner:1")
    await put(saver, inner, "2", {"parents": {"": "1"}}, messages=longer(messages, 1))
    assert before < size_of(migrated_url) <= before + 1_300 + 80_100
    before = size_of(migrated_url)
    await put(saver, at, "3", messages=messages)
    assert size_of(migrated_url) <= before + 100
    assert await latest(create_saver(saver.engine)) == {"messages": messages}


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


Change: TypeAlias = tuple[str, int, bool, str]

histories = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "edit", "forget the oldest", "take back", "nothing"]),
        st.integers(0, 1 << 20),
        st.booleans(),
        st.sampled_from(FORGOTTEN),
    ),
    min_size=1,
    max_size=8,
)


async def history(
    saver_for: Callable[[str], Awaitable[Saver]], thread: str, changes: list[Change]
) -> list[list[str]]:
    """Put the states of a conversation, one on top of the other, and return them.

    Args:
        saver_for: The saver of a put, told what is to be forgotten before.
        thread: The thread.
        changes: How the states differ.
    """
    at, states = config(thread), [longer([], 40)]
    for how, number, *_ in changes:
        states.append(change(states[-1], how, number))
    for n, (_, _, writes, forgotten) in enumerate([("", 0, False, ""), *changes]):
        saver = await saver_for(forgotten)
        values = {"messages": states[n], "noise": NOISE[: 9_000 + n], "same": NOISE[:5_000]}
        new: Any = checkpoint(f"{n}", values)
        new["channel_versions"]["same"] = "1"
        at = await saver.aput(at, new, {}, {})
        if writes:
            saver = await saver_for(forgotten)
            written = [("messages", [text(400 + n) * 6]), ("noise", NOISE[: 9_000 + n] * 2)]
            await saver.aput_writes(at, written, "a task")
    return states


async def stored(saver: Saver, thread: str) -> tuple[Any, ...]:
    """All that a thread has stored, its streams numbered as they come."""
    numbers: dict[int, int] = {}

    def named(value: Value) -> object:
        layout = value.layout()
        if layout is None:
            return value
        return (
            value.type,
            layout.checksum,
            [
                (numbers.setdefault(part.stream, len(numbers)), *part[1:])
                if isinstance(part, Slice)
                else part
                for part in layout.parts
            ],
        )

    c, w, s = tables.checkpoints.c, tables.writes.c, tables.segments.c
    statement = sa.select(c.manifest).where(c.thread_id == thread).order_by(c.checkpoint_id)
    manifests = [decode_manifest(row.manifest) for row in await rows_of(saver, statement)]
    found = [[named(value) for value in manifest.values()] for manifest in manifests]
    statement = sa.select(w.data).where(w.thread_id == thread).order_by(w.checkpoint_id, w.idx)
    writes = [named(decode_value(row.data)) for row in await rows_of(saver, statement)]
    held: Any = sa.select(s.stream_id, s.start, s.stop, s.data).where(s.thread_id == thread)
    rows = [
        (numbers.setdefault(stream, len(numbers)), *row)
        for stream, *row in await rows_of(saver, held)
    ]
    return found, writes, sorted(rows)


@pytest.fixture
def run() -> Any:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner.run


def test_a_saver_that_remembers_stores_the_same_as_one_that_does_not(
    migrated_url: str, run: Callable[[Awaitable[Any]], Any]
) -> None:
    warm, cold = create_saver(migrated_url), create_saver(migrated_url, cache_bytes=0)

    @given(histories)
    def agree(changes: list[Change]) -> None:
        async def remembering(forgotten: str) -> Saver:
            forget(warm, forgotten, "warm")
            return warm

        async def remembering_no_value(_: str) -> Saver:
            return cold

        async def new(_: str) -> Saver:
            return create_saver(warm.engine)

        async def compare() -> None:
            states = await history(remembering, "warm", changes)
            await history(remembering_no_value, "cold", changes)
            await history(new, "new", changes)
            expected = await stored(warm, "warm")
            assert expected == await stored(warm, "cold") == await stored(warm, "new")
            for reader in (warm, cold):
                found = [one async for one in reader.alist(config("warm"))]
                values = [one.checkpoint["channel_values"]["messages"] for one in found]
                assert values[::-1] == states
                assert (await latest(reader, config("warm")))["messages"] == states[-1]
            for thread in ("warm", "cold", "new"):
                await cold.adelete_thread(thread)

        run(compare())

    try:
        agree()
    finally:
        run(warm.aclose())
        run(cold.aclose())


async def work(saver_for: Callable[[], Saver], thread: str) -> None:
    """A graph's run with a subgraph and long answers of tools, each of them a write first."""
    at, inner = config(thread), config(thread, checkpoint_ns="inner:1")
    messages: list[str] = []
    for number in range(0, 60, 2):
        messages = [*messages, text(number)]
        document = NOISE[:30_000]
        at = await put(saver_for(), at, f"{number:03}", messages=messages, document=document)
        parents = {"parents": {"": f"{number:03}"}}
        inner = await put(saver_for(), inner, f"{number + 1:03}", parents, messages=messages)
        answer = f"answer {number}: " + text(200 + number) * 8
        await saver_for().aput_writes(at, [("messages", answer)], "a task")
        messages = [*messages, answer]


async def test_how_much_is_stored_never_depends_on_a_cache(saver: Saver, migrated_url: str) -> None:
    forgetful = create_saver(saver.engine, cache_bytes=0)
    await work(lambda: saver, "remembering")
    await work(lambda: forgetful, "forgetful")
    await work(lambda: create_saver(saver.engine), "new")
    sizes = [size_of(migrated_url, thread) for thread in ("remembering", "forgetful", "new")]
    assert sizes == [sizes[0]] * 3
    assert sizes[0] <= 3.4 * (30_000 + 30 * 1_000 + 30 * 9 * 1_000)
    assert await stored(saver, "remembering") == await stored(saver, "forgetful")
    assert await stored(saver, "remembering") == await stored(saver, "new")


Rows: TypeAlias = dict[sa.Table, list[dict[str, Any]]]


async def all_rows(saver: Saver) -> Rows:
    """A backup."""
    return {
        table: [row._asdict() for row in await rows_of(saver, sa.select(table))]
        for table in tables.metadata.sorted_tables
    }


async def delete(saver: Saver, backup: Rows) -> None:
    await saver.adelete_thread("a thread")


async def prune(saver: Saver, backup: Rows) -> None:
    await saver.aprune(["a thread"])


async def copy_over(saver: Saver, backup: Rows) -> None:
    await put(saver, config("another"), "0", messages=["other"])
    await saver.acopy_thread("another", "a thread")


async def import_over(saver: Saver, backup: Rows) -> None:
    source = InMemorySaver()
    new: Any = checkpoint("0", {"messages": longer([], 30), "document": ["imported"]})
    await source.aput(THREAD, new, {}, new["channel_versions"])
    await saver.aimport_from(source)


async def put_beside(saver: Saver, backup: Rows) -> None:
    """Two processes that run one thread do so."""
    at = config(checkpoint_id="1")
    await put(saver, at, "15", messages=longer([], 70), document=["another"])


async def restore(saver: Saver, backup: Rows) -> None:
    async with saver.engine.begin() as connection:
        for table, rows in backup.items():
            await connection.execute(sa.delete(table))
            if rows:
                await connection.execute(sa.insert(table), rows)


async def restore_nothing(saver: Saver, backup: Rows) -> None:
    await restore(saver, {table: [] for table in backup})


Meanwhile: TypeAlias = Callable[[Saver, Rows], Awaitable[None]]

MEANWHILE: list[Meanwhile] = [
    delete,
    prune,
    copy_over,
    import_over,
    put_beside,
    restore,
    restore_nothing,
]
"""What another process may do to a thread, or to all, under a run."""


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("forgotten", ["", "values", "all"])
async def test_what_another_process_takes_away_is_stored_again(
    saver: Saver, meanwhile: Meanwhile, forgotten: str
) -> None:
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages[:50])
    backup = await all_rows(saver)
    at = await put(saver, at, "2", messages=messages)
    await saver.aput_writes(at, [("messages", [text(61) * 9])], "a task")
    other = create_saver(saver.engine)
    await meanwhile(other, backup)
    forget(saver, forgotten)

    messages = longer(messages, 1)
    at = await put(saver, at, "3", messages=messages)
    await saver.aput_writes(at, [("messages", messages)], "a task")

    found = await create_saver(saver.engine).aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": messages}
    assert found.pending_writes == [("a task", "messages", messages)]
    assert (await other.averify("a thread")).whole


def refused(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Awaitable[None]]
) -> list[Put]:
    """What a saver hands to its writer from here on; each time, something happens just before."""
    handed: list[Put] = []
    writer = vars(saver._backend)["_writer"]  # noqa: SLF001
    original = writer.put

    async def put_then(one: Put) -> None:
        handed.append(one)
        await before()
        await original(one)

    monkeypatch.setattr(writer, "put", put_then)
    return handed


@pytest.mark.parametrize("meanwhile", MEANWHILE)
async def test_a_put_that_is_refused_again_and_again_holds_its_thread(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile
) -> None:
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages, document=NOISE[:9_000])
    backup = await all_rows(saver)
    at = await put(saver, at, "2", messages=longer(messages, 1), document=NOISE[:9_000])
    other = create_saver(saver.engine)

    handed = refused(saver, monkeypatch, lambda: meanwhile(other, backup))
    values: dict[str, Any] = {"messages": longer(messages, 2), "document": NOISE[:9_000]}
    at = await put(saver, at, "3", **values)

    # A second prune or import changes nothing, and need not refuse anything.
    least = 1 if meanwhile in {prune, import_over} else backend.TRIES
    assert least <= len(handed) <= backend.TRIES
    assert await latest(create_saver(saver.engine)) == values
    handed.clear()
    written = longer(messages, 3)
    await saver.aput_writes(at, [("messages", written)], "a task")
    assert least <= len(handed) <= backend.TRIES
    if meanwhile in {prune, copy_over, import_over, put_beside}:  # else 3 is gone once more
        found = await create_saver(saver.engine).aget_tuple(config(checkpoint_id="3"))
        assert found is not None
        assert found.checkpoint["channel_values"] == values
        assert found.pending_writes == [("a task", "messages", written)]
    assert (await other.averify("a thread")).whole


async def test_a_put_that_was_refused_has_changed_nothing(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = longer([], 60)
    at = await put(saver, THREAD, "1", messages=messages)
    other = create_saver(saver.engine)
    await delete(other, {})
    before = await all_rows(saver)
    seen: list[Rows] = []
    read_basis = saver._backend.store.read_basis  # noqa: SLF001

    def read(_: object, connection: Any, new: New) -> Any:
        found = [connection.fetch(sa.select(table)) for table in before]
        seen.append(
            {
                table: [row._asdict() for row in rows]
                for table, rows in zip(before, found, strict=True)
            }
        )
        return read_basis(connection, new)

    monkeypatch.setattr(type(saver._backend.store), "read_basis", read)  # noqa: SLF001
    await put(saver, at, "2", messages=longer(messages, 1))
    assert seen == [before]
    assert await latest(create_saver(saver.engine)) == {"messages": longer(messages, 1)}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("size", [1, 60], ids=["short", "long"])
async def test_a_put_that_is_made_again_stores_no_value_of_the_future(
    saver: Saver, meanwhile: Meanwhile, size: int
) -> None:
    """With `durability="async"`, a run goes on and changes the objects that it has put."""
    other = create_saver(saver.engine)
    live = {"messages": longer([], size), "document": longer([], size), "kept": longer([], size)}
    versions: Any = dict.fromkeys(live, "1")
    first: Any = {**checkpoint("1", dict(live)), "channel_versions": versions}
    at = await saver.aput(THREAD, first, {}, versions)
    backup = await all_rows(saver)
    again: Any = {**first, "id": "2"}
    at = await saver.aput(at, again, {}, {})
    live["messages"].append("of the present")
    live["kept"].append("of the future, before its version tells so")
    await meanwhile(other, backup)

    versions = {**versions, "messages": "2"}
    second: Any = {**checkpoint("3", live), "channel_versions": versions}
    metadata: Any = {"about": longer([], size)}
    putting = asyncio.create_task(saver.aput(at, second, metadata, {"messages": "2"}))
    await asyncio.sleep(0)
    for changed in (*live.values(), metadata["about"]):
        changed.append("of the future")
    live["further"] = []
    at = await putting

    written = longer([], size)
    if meanwhile in {prune, put_beside, import_over}:  # which leave 3 where it is
        await meanwhile(other, backup)
    writing = asyncio.create_task(saver.aput_writes(at, [("messages", written)], "a task"))
    await asyncio.sleep(0)
    written.append("of the future")
    await writing

    found = await create_saver(saver.engine).aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {
        "messages": [*longer([], size), "of the present"],
        "document": longer([], size),
        "kept": longer([], size),
    }
    assert dict(found.metadata) == {"about": longer([], size)}
    assert found.pending_writes == [("a task", "messages", longer([], size))]
    assert (await other.averify("a thread")).whole


async def test_a_warm_read_looks_at_no_segment(saver: Saver) -> None:
    messages = longer([], 200)
    at = await put(saver, THREAD, "1", messages=messages)
    await put(saver, at, "2", messages=longer(messages, 1))
    with statements() as seen:
        assert await latest(saver) == {"messages": longer(messages, 1)}
    assert not any("checkpointer_segments" in one.sql for one in seen)
    async with saver.engine.begin() as connection:
        await connection.execute(sa.delete(tables.segments))
    assert await latest(saver) == {"messages": longer(messages, 1)}


async def test_what_another_process_appends_is_read(saver: Saver) -> None:
    messages = longer([], 100)
    at = await put(saver, THREAD, "001", messages=messages)
    reader = create_saver(saver.engine)
    for number in range(2, 40):
        assert await latest(reader) == {"messages": messages}
        messages = longer(messages, 1)
        at = await put(saver, at, f"{number:03}", messages=messages)


async def test_only_the_last_of_a_growing_value_is_remembered(saver: Saver) -> None:
    remembered = saver._backend.store.contents._wholes  # noqa: SLF001
    at = THREAD
    for number in range(5):
        at = await put(saver, at, f"{number}", messages=longer([], 60 + number))
        assert len(remembered) == 1
        await saver.aput_writes(at, [("messages", longer([], 70 + number))], "a task")
        assert len(remembered) == 2


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


async def test_a_put_that_has_to_be_read_first_is_laid_out_off_the_loop(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "OFF_LOOP", 50_000)
    where: list[bool] = []
    cut = sharing._cut  # noqa: SLF001

    def cutting(*args: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return cut(*args)

    monkeypatch.setattr(sharing, "_cut", cutting)
    async with create_saver(migrated_url) as saver:
        at = await put(saver, THREAD, "1", messages=longer([], 60))
        forget(saver, "all")
        turned = longer([], 60)[::-1]
        await put(saver, at, "2", messages=turned)
        assert await latest(saver) == {"messages": turned}
    assert where
    assert not any(where)


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
        assert await latest(other) == {"messages": longer([], 200)}


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
        last = saver._backend.store.last(Namespace("a thread", ""))  # noqa: SLF001
    assert found is not None
    assert found.checkpoint["id"] == "1"
    assert last is not None
    assert last.checkpoint_id == "2"
