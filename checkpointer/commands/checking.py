"""`verify`: whether what is stored is what was written."""

from dataclasses import asdict
from typing import Final

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count, line, size
from checkpointer.commands.output import FAILED, OK, note, write, write_json
from checkpointer.commands.points import missing
from checkpointer.commands.target import Target
from checkpointer.problems import ProblemKind, Verification

_GOES: Final = "Chunks that nothing names go from"
_FINAL: Final = "This cannot be undone. Go on?"


async def verify(
    target: Target,
    thread_id: str | None,
    *,
    repair: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> int:
    """Read everything, and name what is damaged. Changes nothing without --repair."""
    async with target.opened(writing=repair, cache_bytes=0) as saver:
        where = target.shown if thread_id is None else f"thread {thread_id!r} of {target.shown}"
        refused = repair and not terminal.confirmed(f"{_GOES} {where}. {_FINAL}", yes=yes)
        if refused:
            note("checkpointer: nothing is removed")
            repair = False
        with terminal.progress("threads") as progress:
            found = await saver.averify(thread_id, repair=repair, progress=progress)
    if thread_id is not None and not found.threads:
        raise missing(thread_id)
    if as_json:
        write_json(
            {
                **target.names,
                "whole": found.whole,
                "threads": found.threads,
                "checkpoints": found.checkpoints,
                "writes": found.writes,
                "chunks": found.chunks,
                "bytes": found.bytes,
                "unreferenced": _unreferenced(found),
                "removed": found.removed,
                "problems": [asdict(one) for one in found.problems],
            }
        )
    else:
        for one in found.problems:
            write(line(str(one)))
        write(_summary(found, target.shown, repair=repair))
    return OK if found.whole and not refused else FAILED


def _unreferenced(found: Verification) -> int:
    return sum(one.kind is ProblemKind.UNREFERENCED_CHUNK for one in found.problems)


def _summary(found: Verification, where: str, *, repair: bool) -> str:
    garbage = _unreferenced(found)
    damages = count(len(found.problems) - garbage, "problem")
    state = "is whole" if found.whole else f"is damaged, {damages}"
    read = (
        f"read {count(found.threads, 'thread')}, {count(found.checkpoints, 'checkpoint')}, "
        f"{count(found.writes, 'write')} and {count(found.chunks, 'chunk')} of {size(found.bytes)}"
    )
    rest = f"; {count(garbage, 'chunk')} that nothing names"
    if repair:
        rest += f", {found.removed} removed"
    elif garbage:
        rest += " (--repair removes them)" if garbage > 1 else " (--repair removes it)"
    mend = "" if found.whole else "; restore these rows from a backup, or delete their threads"
    return f"{where} {state}: {read}{rest if garbage else ''}{mend}"
