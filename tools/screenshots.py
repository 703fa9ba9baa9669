"""Draws what the command line prints, as docs/screenshots/*.svg: the same each time.

Run `make screenshots`.
"""

import asyncio
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from checkpointer import AsyncSQLAlchemySaver, create_saver
from checkpointer.cli import main
from checkpointer.commands import console as terminal

DIRECTORY: Final = Path(__file__).parent.parent / "docs" / "screenshots"
THREAD: Final = "order-1042"
WIDTH: Final = 118

# Of no other host: pictures in a page load nothing.
_FORMAT: Final = re.sub(
    r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL
)


def _id(number: int) -> str:
    return f"1f115f6e-{0x4A00 + number:04x}-6b52-{0x8000 + number:04x}-5f3c9a1d7e42"


SHOTS: Final = {
    "history": f"history {THREAD}",
    "show": f"show {THREAD}",
    "diff": f"diff {THREAD} {_id(3)} {_id(5)}",
    "prune": f"prune {THREAD} --keep-last 2 --dry-run",
}
"""What is typed, by the picture's name."""

ASKED: Final = HumanMessage("Where is my order?", id="1")
TRACKS: Final = AIMessage(
    "Let me look.",
    id="2",
    tool_calls=[{"name": "track", "args": {"order": 1042}, "id": "call-1"}],
)
TRACKED: Final = ToolMessage("Left Leipzig at 07:40.", id="3", name="track", tool_call_id="call-1")
TOLD: Final = AIMessage("It left Leipzig this morning, and comes tomorrow.", id="4")
CHANGED: Final = HumanMessage("Please cancel it.", id="5")
CANCELS: Final = AIMessage(
    "I can do that.",
    id="6",
    tool_calls=[{"name": "cancel", "args": {"order": 1042, "refund": True}, "id": "call-2"}],
)
OTHERWISE: Final = HumanMessage("Thank you!", id="7")
ENDS: Final = AIMessage("You are welcome.", id="8")


@dataclass(frozen=True)
class Step:
    """A checkpoint to draw.

    Attributes:
        number: Tells its id and its time.
        parent: Its parent's number.
        messages: What has been said by then.
        ran: The node that ran before it.
        goes_on: The node that runs next.
    """

    number: int
    parent: int | None
    step: int
    source: str
    messages: Sequence[BaseMessage]
    ran: str | None = None
    goes_on: str | None = None
    asks: Mapping[str, Any] = field(default_factory=dict)


_ONE: Final = (ASKED, TRACKS, TRACKED, TOLD)

STEPS: Final = (
    Step(0, None, -1, "input", (), None, "__start__"),
    Step(1, 0, 0, "loop", _ONE[:1], None, "model"),
    Step(2, 1, 1, "loop", _ONE[:2], "model", "tools"),
    Step(3, 2, 2, "loop", _ONE[:3], "tools", "model"),
    Step(4, 3, 3, "loop", _ONE, "model"),
    Step(5, 4, 4, "input", (*_ONE, OTHERWISE), None, "model"),
    Step(6, 5, 5, "loop", (*_ONE, OTHERWISE, ENDS), "model"),
    Step(7, 4, 4, "input", (*_ONE, CHANGED), None, "model"),
    Step(8, 7, 5, "loop", (*_ONE, CHANGED, CANCELS), "model", "tools", {"approve": "cancel"}),
)


async def _fill(saver: AsyncSQLAlchemySaver) -> None:
    seen: dict[int | None, dict[str, Any]] = {None: {}}
    for one in STEPS:
        now = f"{one.number + 1:032}.5"
        versions, values = {"messages": now}, {"messages": list(one.messages)}
        seen[one.number] = dict(seen[one.parent])
        if one.ran is not None:
            seen[one.number][one.ran] = {f"branch:to:{one.ran}": now}
        if one.goes_on is not None:
            channel = one.goes_on if one.goes_on == "__start__" else f"branch:to:{one.goes_on}"
            values[channel], versions[channel] = [], f"{one.number + 1:032}.6"
        checkpoint = Checkpoint(
            v=4,
            id=_id(one.number),
            ts=f"2026-03-02T09:{one.number:02}:00+00:00",
            channel_values=values,
            channel_versions=cast("dict[str, str | int | float]", versions),
            versions_seen=seen[one.number],
            updated_channels=None,
        )
        where: dict[str, Any] = {"thread_id": THREAD, "checkpoint_ns": ""}
        if one.parent is not None:
            where["checkpoint_id"] = _id(one.parent)
        metadata = cast("CheckpointMetadata", {"source": one.source, "step": one.step})
        versions_ = checkpoint["channel_versions"]
        stored = await saver.aput({"configurable": where}, checkpoint, metadata, versions_)
        if one.asks:
            await saver.aput_writes(stored, [("__interrupt__", one.asks)], "task")


async def _make(url: str) -> None:
    async with create_saver(url) as saver:
        await _fill(saver)


def drawings() -> Iterator[tuple[str, str]]:
    """The names of the pictures, and what they are."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/shop.db"
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_make(url))
        for name, typed in SHOTS.items():
            shown = Console(
                file=StringIO(),
                record=True,
                width=WIDTH,
                force_terminal=True,
                color_system="truecolor",
                markup=False,
                emoji=False,
                highlight=False,
                legacy_windows=False,
            )
            shown.print(Text.assemble(("$ ", "dim"), f"checkpointer {typed}"))
            with patch.object(terminal, "put", lambda what="", shown=shown: shown.print(what)):
                code = main([*shlex.split(typed), "--url", url])
            if code:
                raise SystemExit(code)
            yield (
                name,
                shown.export_svg(
                    title="checkpointer",
                    theme=DIMMED_MONOKAI,
                    code_format=_FORMAT,
                    unique_id=f"checkpointer-{name}",
                ),
            )


def draw() -> None:
    """Write all pictures."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, picture in drawings():
        (DIRECTORY / f"{name}.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    draw()
