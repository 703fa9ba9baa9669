"""The terminal: text that nobody obeys, values and messages laid out, bars, questions."""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO, TextIOWrapper
from typing import Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from checkpointer.commands.harmless import harmless, line
from checkpointer.commands.values import Typed, as_json, loaded
from checkpointer.errors import ConfigurationError

WIDE: Final = 10_000
"""Columns where there is no terminal: what is read by programs is not wrapped."""

LINE: Final = 76
"""Characters of JSON that stand in one line."""

ROLE_STYLES: Final = {"human": "green", "ai": "cyan", "tool": "yellow", "system": "magenta"}


def put(what: RenderableType = "") -> None:
    """Print something that is laid out. No text in it is taken for markup or an emoji's name."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False, highlight=False).print(what)
        return
    # In stdout's encoding, which tells rich with which lines it may draw.
    encoding = sys.stdout.encoding or "utf-8"
    drawn = TextIOWrapper(BytesIO(), encoding, errors="backslashreplace", newline="\n")
    Console(file=drawn, width=WIDE, markup=False, emoji=False, highlight=False).print(what)
    drawn.seek(0)
    for one in drawn:
        sys.stdout.write(f"{one.rstrip()}\n")


def text(value: object, style: str = "") -> Text:
    """One line of text that was stored."""
    return Text(line(str(value)), style)


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table whose cells are never cut."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def moment(when: datetime | str) -> str:
    """A time of day in UTC, to the second."""
    if isinstance(when, str):
        try:
            return moment(datetime.fromisoformat(when))
        except ValueError:
            return line(when)
    return f"{when.astimezone(UTC) if when.tzinfo else when:%Y-%m-%d %H:%M:%S}"


def readable(value: Any) -> Text:
    """A value as people read it: text as it is, all else as JSON."""
    value = loaded(value)
    if isinstance(value, str):
        return Text(harmless(value))
    if isinstance(value, Typed) and isinstance(value.value, str):
        return Text(harmless(f"<{value.name} {value.value}>"))
    document = as_json(value)
    said = json.dumps(document, ensure_ascii=False)
    if len(said) > LINE:
        said = json.dumps(document, indent=2, ensure_ascii=False)
    return Text(harmless(said))


def short(value: Any, width: int = 60) -> str:
    """The same in one line of at most so many characters."""
    value = loaded(value)
    said = value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)
    said = line(said)
    return said if len(said) <= width else f"{said[: width - 1]}…"


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Typed) and one.role is not None for one in value)
    )


def conversation(messages: Sequence[Typed]) -> Table:
    """Messages: who says what, with calls of tools and what came of them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for one in messages:
        grid.add_row(Text(str(one.role), ROLE_STYLES.get(str(one.role), "")), message(one))
    return grid


def message(one: Typed) -> RenderableType:
    """What a message says."""
    fields = one.value
    name = fields.get("name")
    said = Text(f"{line(name)}: " if isinstance(name, str) else "", "bold")
    said.append_text(content(fields.get("content")).copy())
    calls = fields.get("tool_calls")
    lines = [said] if said.plain else []
    lines += [_call(call) for call in (calls if isinstance(calls, list) else [])]
    return Group(*lines) if lines else Text("(nothing)", "dim")


def content(value: Any) -> Text:
    """A message's content: text, or blocks of text and others."""
    if isinstance(value, list):
        return Text("\n").join(map(_block, value))
    return Text(harmless(value)) if isinstance(value, str) else Text(short(value))


def _block(block: Any) -> Text:
    if isinstance(block, str):
        return Text(harmless(block))
    if isinstance(block, dict) and isinstance(block.get("text"), str):
        return Text(harmless(block["text"]))
    return Text(short(block, 200), "dim")


def _call(call: Any) -> Text:
    if not isinstance(call, dict):
        return Text(short(call, 200))
    args = call.get("args")
    given = (
        ", ".join(f"{line(str(name))}={short(value, 200)}" for name, value in args.items())
        if isinstance(args, dict)
        else short(args, 200)
    )
    return Text.assemble("→ ", (line(str(call.get("name"))), "bold"), f"({given})")


def indented(what: RenderableType) -> Padding:
    """Something under a heading."""
    return Padding(what, (0, 0, 0, 2), expand=False)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether a user agrees to what cannot be undone.

    Raises:
        ConfigurationError: There is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError(f"found no terminal to ask on, expected --yes: {line(question)}")
    # An event loop takes Ctrl-C for its own, and waits for whoever reads the answer.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return typer.confirm(line(question), err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


class _Rate(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], object] | None]:
    """What draws a bar on stderr, with rate and time left, where there is a terminal to draw on.

    Args:
        what: What is counted.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
