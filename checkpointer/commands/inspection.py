"""`threads` and `stats`: which threads there are, and what they take."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import size
from checkpointer.commands.output import OK, note, write, write_json
from checkpointer.commands.points import missing
from checkpointer.commands.target import Target
from checkpointer.reports import ThreadInfo


async def threads(
    target: Target,
    *,
    limit: int,
    after: str | None,
    order: str,
    updated_before: datetime | None,
    updated_after: datetime | None,
    metadata: dict[str, Any] | None,
    as_json: bool = False,
) -> int:
    """List threads: when they were used, and what they take."""
    async with target.opened() as saver:
        page = await saver.alist_threads(
            limit=limit,
            after=after,
            order=order,
            updated_before=updated_before,
            updated_after=updated_after,
            metadata=metadata,
        )
    if as_json:
        write_json({"threads": [_document(one) for one in page.threads], "after": page.after})
        return OK
    if not page.threads:
        note("no threads")
        return OK
    _print_threads(page.threads)
    if page.after is not None:
        note(f"more threads follow: --after {page.after}")
    return OK


async def stats(
    target: Target, thread_id: str | None, *, largest: int, as_json: bool = False
) -> int:
    """Tell what is stored: rows and bytes by table, and what sharing saves."""
    async with target.opened() as saver:
        found = await saver.astats(thread_id, largest=largest)
    if thread_id is not None and not found.threads:
        raise missing(thread_id)
    if as_json:
        tables = {
            name: {"rows": one.rows, "bytes": one.bytes} for name, one in found.tables.items()
        }
        logical = {"logical_bytes": found.logical_bytes, "stored_bytes": found.stored_bytes}
        named = [_document(one) for one in found.largest]
        rest = {"saving": found.saving, "largest": named}
        write_json({"threads": found.threads, "tables": tables, **logical, **rest})
        return OK
    table = terminal.table("table", "rows", "bytes", right=("rows", "bytes"))
    for name, one in found.tables.items():
        table.add_row(name, str(one.rows), size(one.bytes))
    terminal.put(table)
    write(
        f"\n{size(found.logical_bytes)} of values stand in {size(found.stored_bytes)}: "
        f"{found.saving:.0%} saved"
    )
    if found.largest and thread_id is None:
        write("\nlargest threads")
        _print_threads(found.largest)
    return OK


def _print_threads(found: Sequence[ThreadInfo]) -> None:
    numbers = ("checkpoints", "bytes")
    table = terminal.table("thread", "created", "updated", *numbers, right=numbers)
    for one in found:
        table.add_row(
            terminal.text(one.thread_id),
            terminal.moment(one.created_at),
            terminal.moment(one.updated_at),
            str(one.checkpoints),
            size(one.stored_bytes),
        )
    terminal.put(table)


def _document(one: ThreadInfo) -> dict[str, Any]:
    return {
        "thread_id": one.thread_id,
        "created_at": one.created_at.isoformat(),
        "updated_at": one.updated_at.isoformat(),
        "checkpoints": one.checkpoints,
        "stored_bytes": one.stored_bytes,
    }
