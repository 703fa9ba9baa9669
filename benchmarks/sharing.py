"""Bytes that values take which hold much of what is stored already.

Each case writes to a new thread of a SQLite file and prints the bytes of all values, were each
stored whole, beside the stored bytes of all rows. Text is random letters, which compress to 0.6: so
a value that is stored once takes 0.6 of its bytes.

Run it with `python benchmarks/sharing.py`.
"""

import asyncio
import random
import string
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from rich.console import Console
from rich.table import Table

from checkpointer import AsyncSQLAlchemySaver, create_saver

KB: Final = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """A way to write what is stored already.

    Attributes:
        name: What is written.
        unique: The bytes of text in it, each counted once.
        write: Writes it.
    """

    name: str
    unique: int
    write: Callable[["Thread"], Awaitable[None]]


class Thread:
    """A thread of a saver, whose checkpoints are put one after the other."""

    def __init__(self, saver: AsyncSQLAlchemySaver, name: str) -> None:
        self.saver, self.name = saver, name
        self._count = 0
        self._random = random.Random(name)

    def text(self, size: int) -> str:
        """Letters that no other text holds."""
        return "".join(self._random.choices(string.ascii_lowercase, k=size))

    def messages(self, count: int) -> list[HumanMessage]:
        """Messages of 1 KB."""
        return [HumanMessage(self.text(KB), id=f"{i}") for i in range(count)]

    def at(self, checkpoint_id: str | None = None, namespace: str = "") -> RunnableConfig:
        """Where a checkpoint is, or the namespace."""
        found = {"thread_id": self.name, "checkpoint_ns": namespace}
        return {"configurable": found | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}

    async def put(
        self, where: RunnableConfig, parents: dict[str, str] | None = None, **values: Any
    ) -> RunnableConfig:
        """Put a child of a checkpoint, all of whose channels are new."""
        self._count += 1
        checkpoint = empty_checkpoint()
        checkpoint["id"] = f"{self._count:06}"
        checkpoint["channel_values"] = values
        checkpoint["channel_versions"] = dict.fromkeys(values, self._count)
        metadata: Any = {"source": "loop", "step": self._count, "parents": parents or {}}
        return await self.saver.aput(where, checkpoint, metadata, checkpoint["channel_versions"])


async def subgraphs(thread: Thread) -> None:
    """A subgraph that is called again and again with the messages of its parent."""
    messages: Sequence[Any] = thread.messages(500)
    root = await thread.put(thread.at(), messages=messages)
    root_id = root.get("configurable", {})["checkpoint_id"]
    for number in range(100):
        where = thread.at(namespace=f"call:{number}")
        await thread.put(where, {"": root_id}, messages=messages)


async def forks(thread: Thread) -> None:
    """Branches from one checkpoint, each with a message of its own."""
    messages = thread.messages(100)
    root = await thread.put(thread.at(), messages=messages)
    for _ in range(20):
        await thread.put(root, messages=[*messages, HumanMessage(thread.text(KB))])


async def tool_result(thread: Thread) -> None:
    """A long result that is a pending write first, then a part of the messages."""
    messages: list[Any] = list(thread.messages(10))
    where = await thread.put(thread.at(), messages=messages)
    for number in range(5):
        result = ToolMessage(thread.text(100 * KB), tool_call_id=f"{number}")
        await thread.saver.aput_writes(where, [("messages", [result])], f"task {number}")
        messages.append(result)
        where = await thread.put(where, messages=messages)


async def window(thread: Thread) -> None:
    """The last messages of a long conversation: one comes and one goes each time."""
    messages = thread.messages(500)
    where = thread.at()
    for start in range(300):
        where = await thread.put(where, messages=messages[start : start + 200])


async def edits(thread: Thread) -> None:
    """A document in which a sentence is replaced, somewhere."""
    where, document = thread.at(), thread.text(100 * KB)
    for _ in range(300):
        place = thread._random.randrange(len(document))  # noqa: SLF001 - one of us
        document = document[:place] + thread.text(100) + document[place + 100 :]
        where = await thread.put(where, document=document)


async def two_channels(thread: Thread) -> None:
    """A value that two channels hold."""
    where, document = thread.at(), thread.text(100 * KB)
    for _ in range(20):
        document += thread.text(KB)
        where = await thread.put(where, draft=document, final=document)


CASES: Final = (
    Case("a subgraph called 100 times with 500 messages", 500 * KB, subgraphs),
    Case("20 forks of 100 messages, one more in each", 120 * KB, forks),
    Case("5 tool results of 100 KB, first pending writes", 510 * KB, tool_result),
    Case("a window of 200 messages that slides 300 times", 500 * KB, window),
    Case("300 edits of 100 bytes in a text of 100 KB", 130 * KB, edits),
    Case("a text of 100 KB in two channels, 20 appends", 120 * KB, two_channels),
)

Measured: TypeAlias = tuple[Case, int, int, int]


async def measure(folder: Path) -> list[Measured]:
    """Write all cases; the logical and the stored bytes of each, and its segments."""
    found = []
    async with create_saver(f"sqlite:///{folder / 'sharing.db'}") as saver:
        for case in CASES:
            await case.write(Thread(saver, case.name))
            stats = await saver.astats(case.name)
            rows = stats.tables["segments"].rows
            found.append((case, stats.logical_bytes, stats.stored_bytes, rows))
    return found


def main() -> None:
    """Measure, and print a table."""
    table = Table("case", "text, each part once, KB", "values whole, MB", "stored, KB", "segments")
    with tempfile.TemporaryDirectory() as folder:
        for case, logical, stored, rows in asyncio.run(measure(Path(folder))):
            sizes = (f"{case.unique / KB:.0f}", f"{logical / KB / KB:.1f}", f"{stored / KB:.0f}")
            table.add_row(case.name, *sizes, str(rows))
    Console().print(table)


if __name__ == "__main__":
    main()
