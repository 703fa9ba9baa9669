"""`copy` and `import`: from one database to another."""

from collections.abc import Sequence

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count, size
from checkpointer.commands.output import OK, write, write_json
from checkpointer.commands.target import Target
from checkpointer.importing import import_official
from checkpointer.moving import TransferReport
from checkpointer.transfer import copy_store


async def copy(
    source: Target, target: Target, thread_ids: Sequence[str], *, as_json: bool = False
) -> int:
    """Copy threads from one of our databases to another. Ends well if cut off and run again."""
    async with source.opened() as reader, target.made() as writer:
        with terminal.progress("threads") as progress:
            report = await copy_store(
                reader, writer, thread_ids=thread_ids or None, progress=progress
            )
    return _told(report, source, target, as_json=as_json)


async def import_(
    source: Target, target: Target, thread_ids: Sequence[str], *, as_json: bool = False
) -> int:
    """Take threads over from the tables of LangGraph's own savers."""
    source.check_there("")
    async with target.made() as writer:
        with terminal.progress("threads") as progress:
            report = await import_official(
                source.url,
                writer,
                schema=source.schema,
                thread_ids=thread_ids or None,
                progress=progress,
            )
    return _told(report, source, target, as_json=as_json)


def _told(report: TransferReport, source: Target, target: Target, *, as_json: bool) -> int:
    if as_json:
        figures = {
            "threads": report.threads,
            "skipped": report.skipped,
            "checkpoints": report.checkpoints,
            "writes": report.writes,
            "bytes": report.bytes,
        }
        write_json({"source": source.names, "target": target.names, **figures})
        return OK
    there = f"; {count(report.skipped, 'thread')} already there" if report.skipped else ""
    write(
        f"{source.shown} -> {target.shown}: {count(report.threads, 'thread')}, "
        f"{count(report.checkpoints, 'checkpoint')} and {count(report.writes, 'write')}, "
        f"{size(report.bytes)}{there}"
    )
    return OK
