"""The commands that change a database, or may do so, with their options."""

import asyncio
from typing import Annotated

import typer

from checkpointer.commands import (
    checking,
    removal,
    revisions,
    transfers,
)
from checkpointer.commands.fallback import SQL_HELP
from checkpointer.commands.frame import command
from checkpointer.commands.options import (
    AllThreads,
    AsJson,
    Chosen,
    Destination,
    DryRun,
    IdleFor,
    KeepLast,
    MaxAge,
    ProtectCheckpoint,
    ProtectThread,
    Schema,
    Source,
    SourceSchema,
    TargetSchema,
    Url,
    Yes,
)
from checkpointer.commands.target import Target
from checkpointer.dialects import dialect_named
from checkpointer.engine import resolve_schema, resolve_url


@command("Schema")
def upgrade(
    *,
    url: Url = None,
    schema: Schema = None,
    sql: Annotated[bool, typer.Option("--sql", help=SQL_HELP)] = False,
    as_json: AsJson = False,
) -> int:
    """Bring the schema to the newest revision, in one transaction."""
    target = Target.named(url, schema)
    return (
        revisions.upgrade_sql(target)
        if sql
        else asyncio.run(revisions.upgrade(target, as_json=as_json))
    )


@command("Remove")
def prune(
    thread: Annotated[
        list[str] | None, typer.Argument(metavar="THREAD", help="These threads.")
    ] = None,
    *,
    url: Url = None,
    schema: Schema = None,
    everything: AllThreads = False,
    keep_last: KeepLast = None,
    max_age: MaxAge = None,
    idle_for: IdleFor = None,
    protect_thread: ProtectThread = None,
    protect_checkpoint: ProtectCheckpoint = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Delete checkpoints that are no longer needed: shows what goes, then asks.

    Of named threads, the latest checkpoint of each namespace is kept, or --keep-last so many. With
    --all, at least one of --keep-last, --max-age and --idle-for says what goes.
    """
    limits = {
        "max_age": max_age,
        "keep_last": keep_last,
        "idle_for": idle_for,
        "protect_thread": protect_thread or [],
        "protect_checkpoint": protect_checkpoint or [],
    }
    policy = removal.chosen(thread or [], everything=everything, policy=limits)
    return asyncio.run(
        removal.prune(
            Target.named(url, schema),
            thread or [],
            policy,
            keep_last=keep_last,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    )


@command("Remove")
def delete(
    thread: Annotated[list[str], typer.Argument(metavar="THREAD", help="The threads' ids.")],
    *,
    url: Url = None,
    schema: Schema = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Delete threads, with all that belongs to them: shows what goes, then asks."""
    target = Target.named(url, schema)
    return asyncio.run(removal.delete(target, thread, dry_run=dry_run, yes=yes, as_json=as_json))


@command("Check")
def verify(
    *,
    url: Url = None,
    schema: Schema = None,
    thread: Annotated[str | None, typer.Option(metavar="THREAD", help="This thread alone.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove the bytes that nothing names; asks before.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Read everything, and name what is damaged. Changes nothing without --repair."""
    target = Target.named(url, schema)
    return asyncio.run(checking.verify(target, thread, repair=repair, yes=yes, as_json=as_json))


@command("Move")
def copy(
    source: Source,
    target: Destination,
    *,
    threads: Chosen = None,
    source_schema: SourceSchema = None,
    target_schema: TargetSchema = None,
    as_json: AsJson = False,
) -> int:
    """Copy threads from one database of ours to another. May be cut off and run again."""
    named = Target.named(source, source_schema), Target.named(target, target_schema)
    return asyncio.run(transfers.copy(*named, threads or [], as_json=as_json))


@command("Move", name="import")
def import_(
    source: Source,
    target: Destination,
    *,
    threads: Chosen = None,
    source_schema: SourceSchema = None,
    target_schema: TargetSchema = None,
    as_json: AsJson = False,
) -> int:
    """Take threads over from the tables of LangGraph's own savers, which stay as they are."""
    url = resolve_url(source)
    if source_schema is not None:  # the environment's is that of our tables
        source_schema = resolve_schema(
            source_schema, dialect_named(url.get_backend_name()), chosen=True
        )
    official = Target(url, source_schema)
    named = official, Target.named(target, target_schema)
    return asyncio.run(transfers.import_(*named, threads or [], as_json=as_json))
