"""Identifiers fit the keys of every database, or are refused before anything is sent."""

import enum
import random
import string
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from hostile import HUGE, MISFITS
from langchain_core.runnables import RunnableConfig
from storing import LARGE, NOTHING, config, put, row_counts, statements

from checkpointer import AsyncSQLAlchemySaver, InvalidInputError
from checkpointer.identifiers import MAX_KEY, MAX_RUN_ID, MAX_THREAD_ID
from checkpointer.quoting import quoted

Saver = AsyncSQLAlchemySaver


def text(size: int, seed: int = 0) -> str:
    """Text of so many bytes that no database can store in fewer."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))  # noqa: S311


def wide(size: int) -> str:
    """Text of so many bytes, with as few characters as possible."""
    drawn = random.Random(size).choices(range(0x1F300, 0x1F600), k=size // 4)  # noqa: S311
    return "".join(map(chr, drawn)) + text(size % 4)


async def listed(saver: Saver, where: RunnableConfig, **options: Any) -> list[Any]:
    return [found async for found in saver.alist(where, **options)]


@pytest.mark.parametrize("of_size", [text, wide], ids=["ASCII", "four bytes a character"])
@pytest.mark.parametrize(
    "sizes",
    [
        (0, 36, MAX_KEY - 36),
        (0, MAX_KEY - 36, 36),
        (MAX_KEY - 72, 36, 36),
        (700, 700, MAX_KEY - 1400),
    ],
    ids=["task_id", "checkpoint_id", "checkpoint_ns", "all"],
)
async def test_the_longest_identifiers_can_be_used(
    saver: Saver, database_url: str, sizes: tuple[int, int, int], of_size: Callable[[int], str]
) -> None:
    thread, copy = of_size(MAX_THREAD_ID), text(MAX_THREAD_ID, 1)
    namespace, checkpoint_id, task = map(of_size, sizes)
    run = of_size(MAX_RUN_ID)
    where = config(thread, checkpoint_ns=namespace)
    stored = await put(saver, where, checkpoint_id, {"run_id": run}, a=LARGE)
    await saver.aput_writes(stored, [("a", LARGE), ("__error__", "x")], task)
    await saver.acopy_thread(thread, copy)
    for name in (thread, copy):
        named = config(name, checkpoint_id, checkpoint_ns=namespace)
        found = await saver.aget_tuple(named)
        assert found is not None
        assert found.config == named
        assert [one[:2] for one in found.pending_writes or ()] == [(task, "__error__"), (task, "a")]
        assert await listed(saver, named) == [found]
    await saver.aprune([thread, copy])
    await saver.adelete_for_runs([run])
    assert row_counts(database_url) == NOTHING


async def test_namespaces_have_room_for_thirty_levels_of_subgraphs(saver: Saver) -> None:
    namespace = "|".join(f"a_node_of_the_graph:{uuid4()}" for _ in range(30))
    stored = await put(saver, config(uuid4(), checkpoint_ns=namespace), str(uuid4()))
    await saver.aput_writes(stored, [("a", 1)], str(uuid4()))
    found = await saver.aget_tuple(stored)
    assert found is not None
    assert found.pending_writes is not None


FIRST = config(checkpoint_id="1")
THREAD, RUN = text(MAX_THREAD_ID + 1), text(MAX_RUN_ID + 1)
NAMESPACE, ID = text(1000), text(MAX_KEY - 999)
WIDE = "\N{SNOWMAN}" * (MAX_THREAD_ID // 3 + 1)

Call = Callable[[Saver], Awaitable[object]]
TOO_LONG: dict[str, tuple[str, Call]] = {
    "aput, thread": ("thread_id", lambda saver: put(saver, config(THREAD), "1")),
    "aput, wide thread": ("thread_id", lambda saver: put(saver, config(WIDE), "1")),
    "aput, key": (
        "checkpoint_id",
        lambda saver: put(saver, config(checkpoint_ns=NAMESPACE), ID),
    ),
    "aput, parent": (
        "checkpoint_id",
        lambda saver: put(saver, config(checkpoint_id=ID, checkpoint_ns=NAMESPACE), "1"),
    ),
    "aput, run": ("run_id", lambda saver: put(saver, config(), "1", {"run_id": RUN})),
    "aput_writes": (
        "task_id",
        lambda saver: saver.aput_writes(FIRST, [("a", 1)], text(MAX_KEY)),
    ),
    "aget_tuple": ("thread_id", lambda saver: saver.aget_tuple(config(THREAD))),
    "alist": (
        "checkpoint_ns",
        lambda saver: listed(saver, config(checkpoint_id=ID, checkpoint_ns=NAMESPACE)),
    ),
    "history": (
        "thread_id",
        lambda saver: saver.aget_delta_channel_history(config=config(THREAD), channels=["a"]),
    ),
    "adelete_thread": ("thread_id", lambda saver: saver.adelete_thread(THREAD)),
    "adelete_for_runs": ("run_id", lambda saver: saver.adelete_for_runs(["1", RUN])),
    "acopy_thread, source": ("thread_id", lambda saver: saver.acopy_thread(THREAD, "1")),
    "acopy_thread, target": ("thread_id", lambda saver: saver.acopy_thread("1", THREAD)),
    "aprune": ("thread_id", lambda saver: saver.aprune(["1", THREAD])),
}


@pytest.mark.parametrize(("kind", "call"), TOO_LONG.values(), ids=TOO_LONG)
async def test_longer_ones_are_refused_before_anything_is_sent(
    saver: Saver, database_url: str, kind: str, call: Call
) -> None:
    await saver.aget_tuple(config())  # which checks the schema
    with (
        statements() as sent,
        pytest.raises(InvalidInputError, match=rf"found the .*{kind}.* of \d+ bytes.*at most \d+"),
    ):
        await call(saver)
    assert sent == []
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize("misfit", [*MISFITS.values(), int(HUGE)], ids=[*MISFITS, "an exact int"])
async def test_what_has_no_text_of_its_own_is_no_identifier(
    saver: Saver, database_url: str, misfit: Any
) -> None:
    calls: list[Call] = [
        lambda saver: put(saver, config(misfit), "1"),
        lambda saver: put(saver, config(checkpoint_id=misfit), "1"),
        lambda saver: put(saver, config(), misfit),
        lambda saver: saver.aput_writes(FIRST, [("a", 1)], misfit),
        lambda saver: saver.aget_tuple(config(misfit)),
        lambda saver: saver.adelete_thread(misfit),
        lambda saver: saver.acopy_thread("1", misfit),
        lambda saver: saver.adelete_for_runs([misfit]),
        lambda saver: saver.aprune([misfit]),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=r"found .* as the \w+, expected a str"):
            await call(saver)
    assert row_counts(database_url) == NOTHING


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("this object does not answer")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0\udc80", "'a\\x00\\udc80'"),
        (7, "7"),
        (None, "None"),
        (HUGE, "a value of type Huge"),
        (10**5000, "a value of type int"),
        (MISFITS["a cycle"], "a value of type list"),
        (Unshowable(), "a value of type Unshowable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_show_any_value(value: object, expected: str) -> None:
    assert quoted(value) == expected


def test_messages_show_the_ends_of_long_text() -> None:
    shown = quoted("a" + "b" * 1_000_000 + "c")
    assert len(shown) < 300
    assert shown.startswith("'ab")
    assert shown.endswith("bc'")


class Colour(str, enum.Enum):  # noqa: UP042 - the kind of enum whose text is not its value's
    RED = "red"


class Level(enum.StrEnum):
    HIGH = "high"


@pytest.mark.parametrize("checkpoint_id", [7, 1.5, UUID(int=7), Level.HIGH, Colour.RED], ids=repr)
async def test_checkpoint_ids_of_other_types_are_found(saver: Saver, checkpoint_id: Any) -> None:
    text = getattr(checkpoint_id, "value", str(checkpoint_id))
    stored = await put(saver, config(), checkpoint_id, a=1)
    assert stored == config(checkpoint_id=text)
    for where in (config(), stored, config(checkpoint_id=checkpoint_id)):
        found = await saver.aget_tuple(where)
        assert found is not None
        assert (found.config, found.checkpoint["id"]) == (stored, checkpoint_id)
