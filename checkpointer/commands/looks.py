"""The commands that only look, with their options."""

import asyncio
from typing import Annotated, Any

import typer

from checkpointer.commands import (
    differences,
    forks,
    inspection,
    looking,
    revisions,
)
from checkpointer.commands.frame import command
from checkpointer.commands.options import (
    AsJson,
    Everything,
    Moment,
    Namespace,
    Schema,
    Thread,
    Url,
    json_object,
)
from checkpointer.commands.target import Target


@command("Schema")
def current(*, url: Url = None, schema: Schema = None, as_json: AsJson = False) -> int:
    """Print the schema's revision. Changes nothing."""
    return asyncio.run(revisions.current(Target.named(url, schema), as_json=as_json))


@command("Schema")
def check(*, url: Url = None, schema: Schema = None, as_json: AsJson = False) -> int:
    """Fail unless the revision is the one that this version needs. Changes nothing."""
    return asyncio.run(revisions.check(Target.named(url, schema), as_json=as_json))


@command("Look")
def threads(
    *,
    url: Url = None,
    schema: Schema = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="The page after this, as printed below it.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="thread_id, created_at or updated_at; with - before it, descending.")
    ] = "-updated_at",
    updated_before: Moment = None,
    updated_after: Moment = None,
    metadata: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=json_object, metavar="JSON", help="What a checkpoint's metadata must contain."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List threads, the last used first: when they were used, and what they take."""
    return asyncio.run(
        inspection.threads(
            Target.named(url, schema),
            limit=limit,
            after=after,
            order=order,
            updated_before=updated_before,
            updated_after=updated_after,
            metadata=metadata,
            as_json=as_json,
        )
    )


@command("Look")
def show(
    thread: Thread,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="Its id; default: the latest.")
    ] = None,
    *,
    url: Url = None,
    schema: Schema = None,
    namespace: Namespace = "",
    everything: Everything = False,
    as_json: AsJson = False,
) -> int:
    """Print the state of a thread: messages as a conversation, all else as JSON."""
    return asyncio.run(
        looking.show(
            Target.named(url, schema),
            thread,
            checkpoint,
            namespace=namespace,
            everything=everything,
            as_json=as_json,
        )
    )


@command("Look")
def history(
    thread: Thread,
    *,
    url: Url = None,
    schema: Schema = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NS", help="This namespace alone; '' for the root graph.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> int:
    """Draw the tree of a thread's checkpoints: forks, steps, nodes, times, interrupts."""
    return asyncio.run(
        forks.history(
            Target.named(url, schema), thread, namespace=namespace, limit=limit, as_json=as_json
        )
    )


@command("Look")
def diff(
    thread: Thread,
    before: Annotated[str, typer.Argument(metavar="A", help="A checkpoint's id.")],
    after: Annotated[
        str | None, typer.Argument(metavar="B", help="Another's; default: the one after A.")
    ] = None,
    *,
    url: Url = None,
    schema: Schema = None,
    namespace: Namespace = "",
    everything: Everything = False,
    as_json: AsJson = False,
) -> int:
    """Show which channels changed from one checkpoint to another, and how."""
    return asyncio.run(
        differences.diff(
            Target.named(url, schema),
            thread,
            before,
            after,
            namespace=namespace,
            everything=everything,
            as_json=as_json,
        )
    )


@command("Look")
def stats(
    thread: Annotated[
        str | None, typer.Argument(metavar="THREAD", help="This thread alone.")
    ] = None,
    *,
    url: Url = None,
    schema: Schema = None,
    largest: Annotated[int, typer.Option(min=0, help="Name the largest so many threads.")] = 10,
    as_json: AsJson = False,
) -> int:
    """Tell what is stored: rows and bytes by table, and what sharing saves."""
    target = Target.named(url, schema)
    return asyncio.run(inspection.stats(target, thread, largest=largest, as_json=as_json))


@command("Look")
def export(thread: Thread, *, url: Url = None, schema: Schema = None) -> int:
    """Print a thread as JSON lines, one a checkpoint, oldest first."""
    return asyncio.run(looking.export(Target.named(url, schema), thread))
