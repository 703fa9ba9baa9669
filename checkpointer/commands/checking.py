"""`verify`: whether what is stored is what was written."""

from dataclasses import asdict
from typing import Final

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count, line, size
from checkpointer.commands.output import FAILED, OK, note, write, write_json
from checkpointer.commands.points import missing
from checkpointer.commands.target import Target
from checkpointer.problems import ProblemKind, Verification

_GOES: Final = "Bytes that nothing names go from"
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
                "damaged": found.damaged,
                "threads": found.threads,
                "checkpoints": found.checkpoints,
                "writes": found.writes,
                "segments": found.segments,
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
    return sum(one.kind is ProblemKind.UNREFERENCED_SEGMENT for one in found.problems)


def _summary(found: Verification, where: str, *, repair: bool) -> str:
    garbage = _unreferenced(found)
    problems = count(len(found.problems) - garbage, "problem")
    state, mend = _state(found, problems)
    read = (
        f"read {count(found.threads, 'thread')}, {count(found.checkpoints, 'checkpoint')}, "
        f"{count(found.writes, 'write')} and {count(found.segments, 'segment')} of "
        f"{size(found.bytes)}"
    )
    rest = f"; {count(garbage, 'segment')} that nothing names"
    if repair:
        rest += f", {found.removed} removed"
    elif garbage:
        rest += " (--repair removes them)" if garbage > 1 else " (--repair removes it)"
    return f"{where} {state}: {read}{rest if garbage else ''}{mend}"


def _state(found: Verification, problems: str) -> tuple[str, str]:
    """How the store is, and what mends it."""
    if found.whole:
        return "is whole", ""
    if found.damaged:
        mend = "; restore these rows from a backup, or delete their threads"
        return f"is damaged, {problems}", mend
    return f"cannot all be read, {problems}", "; verify it with the version that wrote these rows"
