"""Writers that choose otherwise what to share and how to cut read each other, and go on in turn."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from storing import checkpoint, config

from checkpointer import (
    AsyncSQLAlchemySaver,
    create_saver,
    drafts,
    manifest,
    sealing,
    sharing,
    slices,
)
from checkpointer.sealing import pack
from checkpointer.sharing import Source, Stream, lay_out
from checkpointer.slices import segments_of


def lay_out_alone(data: bytes, sources: Any, stream: Stream) -> Source:
    del sources
    return lay_out(data, [], stream)


Choice = Mapping[tuple[Any, str], Any]

CHOICES: dict[str, Choice] = {
    "as it comes": {},
    "small blocks": {
        (sharing, "AVERAGE_BLOCK"): 256,
        (sharing, "LEAST_SHARED"): 1,
        (sharing, "SEARCHED"): 64,
    },
    "large blocks": {(sharing, "AVERAGE_BLOCK"): 8192, (sharing, "LEAST_SHARED"): 5000},
    "no literal bytes": {(sharing, "LITERAL"): 0},
    "many literal bytes": {(sharing, "LITERAL"): 2000},
    "few slices": {(sharing, "TIERS"): (100, 2000), (sharing, "FAN"): 2, (sharing, "MANY"): 4},
    "all slices": {(sharing, "FAN"): 1 << 20, (sharing, "MANY"): 1 << 20},
    "short segments": {(sharing, "segments_of"): partial(segments_of, size=100)},
    "much compressed": {
        (sealing, "LEAST"): 0,
        (slices, "pack"): partial(pack, level=19),
        (manifest, "pack"): partial(pack, level=19),
    },
    "never compressed": {(sealing, "LEAST"): 1 << 62},
    "nothing shared": {(drafts, "lay_out"): lay_out_alone},
    "nothing inline": {(drafts, "CHANNEL_INLINE"): 0, (drafts, "BODY_INLINE"): 0},
}
"""What writers choose, as names of modules."""


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """This process chooses so meanwhile."""
    with ExitStack() as stack:
        for (module, attribute), value in CHOICES[name].items():
            stack.enter_context(patch.object(module, attribute, value))
        yield


class Writers:
    """Savers that put into one thread in turn, and what must be there then."""

    def __init__(self, savers: Mapping[str, AsyncSQLAlchemySaver]) -> None:
        self.savers = savers
        self.random = Random(7)  # noqa: S311 - a test's data, not a secret
        self.messages = [self.text(200) for _ in range(30)]
        self.count = 0
        self.expected: dict[str, Any] = {}
        self.writes: dict[str, Any] = {}
        self.parent = config()

    def text(self, size: int) -> str:
        return "".join(self.random.choices("abcdefgh ", k=size))

    def change(self) -> None:
        """Append, edit in the middle, let the window slide, or say something again."""
        kind = self.random.randrange(4)
        place = self.random.randrange(len(self.messages))
        if kind == 1:
            self.messages = [*self.messages[:place], self.text(30), *self.messages[place:]]
        elif kind == 2:
            self.messages = self.messages[len(self.messages) // 4 :]
        elif kind == 3:
            self.messages = self.messages + self.messages[place : place + 9]
        self.messages = [*self.messages, self.text(self.random.choice((5, 60, 900, 6000)))]

    async def put(self, name: str) -> None:
        """One superstep."""
        saver = self.savers[name]
        self.count += 1
        number = f"{self.count:03}"
        self.change()
        values = {"messages": [*self.messages], "short": number, "same": "x" * 5000}
        stored = checkpoint(number, values)
        versions = stored["channel_versions"]
        versions["same"] = "1"
        with chosen(name):
            self.parent = await saver.aput(self.parent, stored, {"step": 1}, versions)
            written = [*self.messages[-3:], self.text(3000)]
            await saver.aput_writes(self.parent, [("messages", written)], "a task")
        self.expected[number] = values
        self.writes[number] = [("a task", "messages", written)]

    def assert_is(self, found: CheckpointTuple | None) -> None:
        """What was read is what was put."""
        assert found is not None
        number = found.checkpoint["id"]
        assert found.checkpoint["channel_values"] == self.expected[number]
        assert found.pending_writes == self.writes[number]


@pytest.fixture
async def writers(migrated_url: str) -> AsyncIterator[Writers]:
    """One for each choice, as if each were a process of its own."""
    async with AsyncExitStack() as stack:
        savers = {
            name: await stack.enter_async_context(create_saver(migrated_url)) for name in CHOICES
        }
        yield Writers(savers)


async def assert_all_is_there(writers: Writers, name: str) -> None:
    with chosen(name):
        async with create_saver(writers.savers[name].engine, cache_bytes=0) as cold:
            found = [one async for one in cold.alist(config())]
            assert [one.checkpoint["id"] for one in found] == sorted(writers.expected, reverse=True)
            for one in found:
                writers.assert_is(one)
            assert (await cold.averify()).whole


@pytest.mark.parametrize("other", [name for name in CHOICES if name != "as it comes"])
async def test_two_writers_go_on_in_turn(writers: Writers, other: str) -> None:
    both = "as it comes", other
    for name in both * 6:
        await writers.put(name)
        for reader in both:
            with chosen(reader):
                writers.assert_is(await writers.savers[reader].aget_tuple(config()))
    for name in both:
        await assert_all_is_there(writers, name)


async def test_all_writers_go_on_in_turn(writers: Writers) -> None:
    names = list(CHOICES)
    for _ in range(3):
        for name in writers.random.sample(names, len(names)):
            await writers.put(name)
    for name in ("as it comes", "nothing shared"):
        await assert_all_is_there(writers, name)


async def test_what_another_writer_has_left_is_pruned(writers: Writers) -> None:
    """What stays is still read, and gone on with, after each prune."""
    for pruner, writer in pairwise([*CHOICES, "as it comes"]):
        await writers.put(writer)
        await writers.put(pruner)
        with chosen(pruner):
            await writers.savers[pruner].aprune(["a thread"])
        newest = max(writers.expected)
        writers.expected = {newest: writers.expected[newest]}
        await assert_all_is_there(writers, writer)


def test_each_choice_is_one() -> None:
    """What is patched is there, and something else."""
    for choice in CHOICES.values():
        for (module, name), value in choice.items():
            assert getattr(module, name) != value
