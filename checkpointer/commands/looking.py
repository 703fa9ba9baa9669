"""`show` and `export`: what a checkpoint holds."""

import json
from typing import Any

from rich.text import Text

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count
from checkpointer.commands.output import OK, write, write_json
from checkpointer.commands.points import Point, complete_values, missing, point, points
from checkpointer.commands.target import Target
from checkpointer.commands.values import PlainSerializer, as_json
from checkpointer.saver import AsyncSQLAlchemySaver


async def show(
    target: Target,
    thread_id: str,
    checkpoint_id: str | None,
    *,
    namespace: str = "",
    everything: bool = False,
    as_json: bool = False,
) -> int:
    """Print the state that a checkpoint holds: messages as a conversation."""
    async with target.opened(PlainSerializer()) as saver:
        one = await point(saver, thread_id, checkpoint_id, namespace)
        values = await complete_values(saver, one)
    if as_json:
        write_json(_document(one, values))
        return OK
    _print_head(one)
    hidden = 0
    for name, value in sorted(values.items()):
        if is_internal(name) and not everything:
            hidden += 1
        else:
            _print_channel(name, value)
    if hidden:
        terminal.put(
            Text(f"{count(hidden, 'channel')} of LangGraph's own not shown (--all)", "dim")
        )
    return OK


async def export(target: Target, thread_id: str) -> int:
    """Print a thread as JSON lines, one a checkpoint, parents before children."""
    async with target.opened(PlainSerializer()) as saver:
        named = [(one.namespace, one.checkpoint_id) async for one in points(saver, thread_id)]
        if not named:
            raise missing(thread_id)
        for namespace, checkpoint_id in reversed(named):
            one = await point(saver, thread_id, checkpoint_id, namespace)
            write(await _line(saver, one))
    return OK


async def _line(saver: AsyncSQLAlchemySaver, one: Point) -> str:
    return json.dumps(_document(one, await complete_values(saver, one)), allow_nan=False)


def _document(one: Point, values: dict[str, Any]) -> dict[str, Any]:
    return one.as_json() | {"values": {name: as_json(value) for name, value in values.items()}}


def is_internal(channel: str) -> bool:
    """Whether a channel is LangGraph's own: it says what runs next, and is no part of the state."""
    return channel.startswith(("branch:", "join:", "__"))


def _print_head(one: Point) -> None:
    place = f" in {one.namespace}" if one.namespace else ""
    facts = {
        "thread": one.thread_id,
        "checkpoint": f"{one.checkpoint_id}{place}",
        "created": f"{terminal.moment(one.created)} UTC" if one.created else "",
        "step": f"{one.step}, {one.source}",
        "next": ", ".join(one.next_nodes()) or "nothing",
    }
    for name, fact in facts.items():
        terminal.put(Text.assemble((f"{name:<11}", "bold"), terminal.text(fact)))
    for asked in one.interrupts:
        terminal.put(Text.assemble(("interrupt  ", "bold yellow"), terminal.short(asked, 500)))
    for error in one.errors:
        terminal.put(Text.assemble(("error      ", "bold red"), terminal.short(error, 500)))
    terminal.put()


def _print_channel(name: str, value: Any) -> None:
    heading = terminal.text(name, "bold underline")
    if terminal.is_conversation(value):
        heading.append(f" ({len(value)})", "dim")
        terminal.put(heading)
        terminal.put(terminal.indented(terminal.conversation(value)))
    else:
        terminal.put(heading)
        terminal.put(terminal.indented(terminal.readable(value)))
    terminal.put()
