"""`copy` and `import`: from one database to another."""

from collections.abc import Awaitable, Mapping, Sequence

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count, line, size
from checkpointer.commands.output import FAILED, OK, WRONG_USAGE, note, write, write_json
from checkpointer.commands.target import Target
from checkpointer.errors import CheckpointerError, InvalidInputError, TransferError
from checkpointer.importing import import_official
from checkpointer.moving import TransferReport
from checkpointer.transfer import copy_store

Failures = Mapping[str, CheckpointerError]
"""Why threads were not moved, by their ids."""


async def copy(
    source: Target, target: Target, thread_ids: Sequence[str], *, as_json: bool = False
) -> int:
    """Copy threads from one of our databases to another. Ends well if cut off and run again."""
    async with source.opened() as reader, target.made() as writer:
        with terminal.progress("threads") as progress:
            moving = copy_store(reader, writer, thread_ids=thread_ids or None, progress=progress)
            report, failed = await _ended(moving)
    return _told(report, failed, (source, target), named=bool(thread_ids), as_json=as_json)


async def import_(
    source: Target, target: Target, thread_ids: Sequence[str], *, as_json: bool = False
) -> int:
    """Take threads over from the tables of LangGraph's own savers."""
    source.check_there("")
    async with target.made() as writer:
        with terminal.progress("threads") as progress:
            moving = import_official(
                source.url,
                writer,
                schema=source.schema,
                thread_ids=thread_ids or None,
                progress=progress,
            )
            report, failed = await _ended(moving)
    return _told(report, failed, (source, target), named=bool(thread_ids), as_json=as_json)


async def _ended(moving: Awaitable[TransferReport]) -> tuple[TransferReport, Failures]:
    """What was moved, and why the rest was not."""
    try:
        return await moving, {}
    except TransferError as exc:
        return exc.report, exc.failures


def _told(
    report: TransferReport,
    failed: Failures,
    where: tuple[Target, Target],
    *,
    named: bool,
    as_json: bool,
) -> int:
    source, target = where
    for thread_id, reason in failed.items():
        note(f"checkpointer: thread {line(thread_id)} was not moved: {line(str(reason))}")
    # A thread that was named, and is not there.
    wrong = named and all(isinstance(reason, InvalidInputError) for reason in failed.values())
    code = OK if not failed else WRONG_USAGE if wrong else FAILED
    if as_json:
        figures = {
            "threads": report.threads,
            "skipped": report.skipped,
            "checkpoints": report.checkpoints,
            "writes": report.writes,
            "bytes": report.bytes,
        }
        reasons = {thread_id: str(reason) for thread_id, reason in failed.items()}
        names = {"source": source.names, "target": target.names}
        write_json({**names, **figures, "failed": reasons})
        return code
    there = f"; {count(report.skipped, 'thread')} already there" if report.skipped else ""
    write(
        f"{source.shown} -> {target.shown}: {count(report.threads, 'thread')}, "
        f"{count(report.checkpoints, 'checkpoint')} and {count(report.writes, 'write')}, "
        f"{size(report.bytes)}{there}"
    )
    return code
