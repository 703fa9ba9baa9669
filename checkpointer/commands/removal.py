"""`prune` and `delete`: what they would remove, a question, and the removal."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from rich.text import Text

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import count, line, size
from checkpointer.commands.output import FAILED, OK, note, write_json
from checkpointer.commands.points import missing
from checkpointer.commands.target import Target
from checkpointer.errors import InvalidInputError
from checkpointer.intake import Progress
from checkpointer.maintenance import retainer
from checkpointer.reports import PruneReport, RetentionPolicy
from checkpointer.saver import AsyncSQLAlchemySaver

SHOWN: Final = 20
"""Threads that a plan names."""

Run = Callable[[Sequence[str]], Awaitable[PruneReport]]
"""Removes what goes of some threads."""


async def prune(
    target: Target,
    thread_ids: Sequence[str],
    policy: RetentionPolicy | None,
    *,
    keep_last: int | None,
    dry_run: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> int:
    """Delete checkpoints that are no longer needed, of some threads or by a policy of all."""
    async with target.opened(writing=not dry_run) as saver:
        if policy is None:
            await _check_stored(saver, thread_ids)
            plan = await saver.aprune(thread_ids, keep_last=keep_last, dry_run=True)
            run: Run = partial(saver.aprune, keep_last=keep_last)
        else:
            run = partial(
                _with_progress, retainer(saver, policy)
            )  # ages as they are before the plan
            with terminal.progress("threads") as progress:
                plan = await saver.aretain(policy, dry_run=True, progress=progress)
        if dry_run:
            return _told(plan, as_json=as_json)
        return await _carried_out(plan, run, _summary(plan), yes=yes, as_json=as_json)


async def delete(
    target: Target,
    thread_ids: Sequence[str],
    *,
    dry_run: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> int:
    """Delete threads, with all that belongs to them."""
    async with target.opened(writing=not dry_run) as saver:
        plan = await _check_stored(saver, thread_ids)
        if dry_run:
            return _told(plan, as_json=as_json)
        run = partial(saver.aprune, strategy="delete")
        goes = f"{_summary(plan)}, and what is put to them meanwhile"
        return await _carried_out(plan, run, goes, yes=yes, as_json=as_json)


async def _with_progress(
    retain: Callable[[Sequence[str], Progress | None], Awaitable[PruneReport]],
    thread_ids: Sequence[str],
) -> PruneReport:
    with terminal.progress("threads") as progress:
        return await retain(thread_ids, progress)


async def _check_stored(saver: AsyncSQLAlchemySaver, thread_ids: Sequence[str]) -> PruneReport:
    """What deleting the threads would remove.

    Raises:
        InvalidInputError: One of them is not stored.
    """
    plan = await saver.aprune(thread_ids, strategy="delete", dry_run=True)
    stored = {one.thread_id for one in plan.threads} | plan.damaged.keys()
    for thread_id in thread_ids:
        if thread_id not in stored:
            raise missing(thread_id)
    return plan


async def _carried_out(plan: PruneReport, run: Run, goes: str, *, yes: bool, as_json: bool) -> int:
    """Ask, and remove what goes of the plan's threads, and of no others."""
    nothing = replace(plan, dry_run=False, threads=())
    if not plan.threads:
        return _told(nothing, as_json=as_json)
    if not as_json:
        _print_plan(plan)
    if not terminal.confirmed(f"{goes}. This cannot be undone. Go on?", yes=yes):
        note("checkpointer: nothing was removed")
        if as_json:
            write_json(_document(nothing))
        return FAILED
    done = await run([one.thread_id for one in plan.threads])
    damaged, skipped = {**plan.damaged, **done.damaged}, {**plan.skipped, **done.skipped}
    done = replace(done, examined=plan.examined, damaged=damaged, skipped=skipped)
    if as_json:
        write_json(_document(done))
    else:
        terminal.put(Text(f"removed: {_summary(done)}"))
    return _noted(done)


def _told(plan: PruneReport, *, as_json: bool) -> int:
    """Tell what nothing was done about."""
    if as_json:
        write_json(_document(plan))
    elif plan.threads:
        _print_plan(plan)
        terminal.put(Text(f"would remove: {_summary(plan)}"))
    else:
        terminal.put(Text("nothing to remove"))
    return _noted(plan)


def _noted(report: PruneReport) -> int:
    """Name the threads that were left as they are."""
    left = {**report.damaged, **report.skipped}
    for thread_id, reason in left.items():
        note(f"checkpointer: thread {line(thread_id)} was left as it is: {line(reason)}")
    return FAILED if left else OK


def _print_plan(plan: PruneReport) -> None:
    numbers = ("checkpoints", "writes", "segments", "bytes")
    table = terminal.table("thread", "goes", *numbers, right=numbers)
    for one in plan.threads[:SHOWN]:
        checkpoints = sum(map(len, one.checkpoints.values()))
        figures = (checkpoints, one.writes, one.segments)
        goes = "whole" if one.deleted else "in part"
        table.add_row(terminal.text(one.thread_id), goes, *map(str, figures), size(one.bytes))
    terminal.put(table)
    if len(plan.threads) > SHOWN:
        terminal.put(Text(f"and {count(len(plan.threads) - SHOWN, 'thread')} more", "dim"))


def _summary(report: PruneReport) -> str:
    whole = f", {count(report.deleted_threads, 'thread')} whole" if report.deleted_threads else ""
    return (
        f"{count(report.checkpoints, 'checkpoint')} of {count(len(report.threads), 'thread')}"
        f"{whole}; {size(report.bytes)}"
    )


def _document(report: PruneReport) -> dict[str, Any]:
    named = [
        {
            "thread_id": one.thread_id,
            "deleted": one.deleted,
            "checkpoints": {ns: list(ids) for ns, ids in one.checkpoints.items()},
            "writes": one.writes,
            "segments": one.segments,
            "bytes": one.bytes,
        }
        for one in report.threads
    ]
    return {
        "dry_run": report.dry_run,
        "examined": report.examined,
        "checkpoints": report.checkpoints,
        "writes": report.writes,
        "segments": report.segments,
        "bytes": report.bytes,
        "deleted_threads": report.deleted_threads,
        "threads": named,
        "damaged": dict(report.damaged),
        "skipped": dict(report.skipped),
    }


def chosen(
    thread_ids: Sequence[str], *, everything: bool, policy: dict[str, Any]
) -> RetentionPolicy | None:
    """The policy for all threads that options make up, `None` where threads are named.

    Raises:
        InvalidInputError: The options contradict each other, or say nothing.
    """
    given = [
        f"--{name.replace('_', '-')}" for name, value in policy.items() if value not in (None, [])
    ]
    if everything == bool(thread_ids):
        raise InvalidInputError(
            "found threads and --all, expected one of them"
            if everything
            else "found no thread, expected some, or --all"
        )
    if everything:
        if not {"--max-age", "--keep-last", "--idle-for"} & set(given):
            raise InvalidInputError(
                "found --all without a limit, expected --keep-last, --max-age or --idle-for"
            )
        return RetentionPolicy(
            max_age=policy["max_age"],
            keep_last=policy["keep_last"],
            idle_for=policy["idle_for"],
            protected_threads=policy["protect_thread"],
            protected_checkpoints=policy["protect_checkpoint"],
        )
    if extra := sorted({*given} - {"--keep-last"}):
        raise InvalidInputError(
            f"found {', '.join(extra)} with threads that are named, expected --all; of named "
            f"threads, --keep-last or else the latest checkpoints are kept"
        )
    return None
