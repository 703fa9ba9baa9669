"""`diff`: which channels changed from one checkpoint to another, and how."""

import difflib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import harmless, line
from checkpointer.commands.looking import is_internal
from checkpointer.commands.output import OK, write_json
from checkpointer.commands.points import Point, complete_values, message_id, point, points
from checkpointer.commands.target import Target
from checkpointer.commands.values import ROLES, PlainSerializer, Typed
from checkpointer.commands.values import as_json as plain
from checkpointer.errors import InvalidInputError
from checkpointer.saver import AsyncSQLAlchemySaver

LONG: Final = 60
"""Characters of text from which on its lines are compared."""

_STYLES: Final = {"+": "green", "-": "red", "~": "yellow", "@": "cyan", " ": ""}
_CLASSES: Final = {role: name for name, role in ROLES.items() if not name.endswith("Chunk")}


async def diff(
    target: Target,
    thread_id: str,
    before: str,
    after: str | None,
    *,
    namespace: str = "",
    everything: bool = False,
    as_json: bool = False,
) -> int:
    """Show which channels changed between two checkpoints, and how."""
    async with target.opened(PlainSerializer()) as saver:
        one = await point(saver, thread_id, before, namespace)
        if after is None:
            other = await _successor(saver, one)
        else:
            other = await point(saver, thread_id, after, namespace)
        values = await complete_values(saver, one), await complete_values(saver, other)
    names = sorted(values[0].keys() | values[1].keys())
    changes = {
        name: change
        for name in names
        if (everything or not is_internal(name)) and (change := _change(name, *values))
    }
    if as_json:
        ids = {"before": one.checkpoint_id, "after": other.checkpoint_id}
        where = {"thread_id": thread_id, "checkpoint_ns": namespace}
        write_json({**where, **ids, "changes": changes})
        return OK
    for sign, which in (("-", one), ("+", other)):
        label = f"{sign} {which.checkpoint_id}  step {which.step}, {which.source}"
        terminal.put(terminal.text(label, _STYLES[sign]))
    if not changes:
        terminal.put(Text("no channel differs", "dim"))
    for name, change in changes.items():
        _print_change(name, change)
    return OK


async def _successor(saver: AsyncSQLAlchemySaver, one: Point) -> Point:
    """The newest of a checkpoint's children.

    Raises:
        InvalidInputError: It has none.
    """
    async for other in points(saver, one.thread_id, namespace=one.namespace):
        if other.parent_id == one.checkpoint_id:
            return other
    raise InvalidInputError(
        f"found no checkpoint after {one.checkpoint_id!r}, expected one to compare it with; name "
        f"it: checkpointer diff THREAD BEFORE AFTER"
    )


def _change(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What became of a channel, as JSON; `None` if it is as it was."""
    if name not in before:
        return {"change": "added", "after": plain(after[name])}
    if name not in after:
        return {"change": "removed", "before": plain(before[name])}
    old, new = plain(before[name]), plain(after[name])
    if old == new:
        return None
    if isinstance(old, list) and isinstance(new, list):
        return {"change": "changed", **_items(old, new, before[name], after[name])}
    if _is_object(old) and _is_object(new):
        keys: dict[str, Any] = {"added": {}, "removed": {}, "changed": {}}
        keys["added"] = {key: new[key] for key in new if key not in old}
        keys["removed"] = {key: old[key] for key in old if key not in new}
        both = [key for key in old if key in new and old[key] != new[key]]
        keys["changed"] = {key: {"before": old[key], "after": new[key]} for key in both}
        return {"change": "changed", **keys}
    return {"change": "changed", "before": old, "after": new}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _items(old: list[Any], new: list[Any], before: Any, after: Any) -> dict[str, Any]:
    """What was added to a list, removed from it, and changed: messages are told by their ids."""
    ids = [message_id(one) for one in before], [message_id(one) for one in after]
    if None not in ids[0] and None not in ids[1]:
        keys: tuple[list[Any], list[Any]] = ids[0], ids[1]
    else:
        keys = [_text(one) for one in old], [_text(one) for one in new]
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    found: dict[str, list[Any]] = {"added": [], "removed": [], "changed": []}
    for _, start, end, to, to_end in matcher.get_opcodes():
        if keys[0][start:end] == keys[1][to:to_end]:
            pairs = zip(old[start:end], new[to:to_end], strict=True)
            found["changed"] += [{"before": a, "after": b} for a, b in pairs if a != b]
        else:
            found["removed"] += old[start:end]
            found["added"] += new[to:to_end]
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _print_change(name: str, change: dict[str, Any]) -> None:
    terminal.put()
    terminal.put(terminal.text(name, "bold underline").append(f" {_summary(change)}", "dim"))
    for sign, shown in _lines(change):
        row = Table.grid(padding=(0, 1))
        row.add_row(Text(sign, _STYLES[sign[0]]), shown)
        terminal.put(terminal.indented(row))


def _summary(change: dict[str, Any]) -> str:
    parts = [
        f"{len(change[what])} {what}"
        for what in ("added", "removed", "changed")
        if isinstance(change.get(what), list | dict) and change[what]
    ]
    return ", ".join(parts) or str(change["change"])


def _lines(change: Mapping[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    """What became of a value: signs, and what stands behind each."""
    if "removed" not in change:
        yield from _replaced(change)
        return
    for sign, what in (("-", "removed"), ("+", "added"), ("~", "changed")):
        some = change[what]
        for key, value in some.items() if isinstance(some, dict) else ((None, v) for v in some):
            label = "" if key is None else f"{line(key)}: "
            if what == "changed":
                yield sign, Text(label.rstrip() or "an item")
                yield from ((f"  {inner}", shown) for inner, shown in _replaced(value))
            else:
                yield sign, _shown(value, label)


def _replaced(change: Mapping[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    old, new = change.get("before"), change.get("after")
    if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > LONG:
        found = difflib.unified_diff(old.splitlines(), new.splitlines(), n=1, lineterm="")
        for one in islice(found, 2, None):
            yield one[:1], Text(harmless(one[1:]))
        return
    for sign, which in (("-", "before"), ("+", "after")):
        if which in change:
            yield sign, _shown(change[which])


def _shown(value: Any, label: str = "") -> RenderableType:
    """A value that is JSON already; messages as they are in a conversation."""
    match value:
        case {"type": str(role), "data": {"content": _, **_rest} as fields}:
            return terminal.conversation([Typed(f"langchain.{_CLASSES.get(role, role)}", fields)])
    return Text(label).append_text(terminal.readable(value))
