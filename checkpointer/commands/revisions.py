"""`upgrade`, `current` and `check`: the schema's revision. They need no extra."""

import sys

from checkpointer import schema
from checkpointer.commands.output import FAILED, OK, note, write, write_json
from checkpointer.commands.target import Target
from checkpointer.errors import SchemaError


async def upgrade(target: Target, *, as_json: bool = False) -> int:
    """Bring the schema to the newest revision, in one transaction."""
    before = await target.revision()
    await target.upgrade()
    if as_json:
        write_json({**target.names, "before": before, "revision": schema.EXPECTED_REVISION})
    else:
        write(f"{target.shown}: the schema is at revision {schema.EXPECTED_REVISION}")
    return OK


def upgrade_sql(target: Target) -> int:
    """Print the SQL of all revisions, for an administrator who runs it by hand."""
    schema.write_sql(target.url, target.schema, sys.stdout)
    return OK


async def current(target: Target, *, as_json: bool = False) -> int:
    """Print the schema's revision. Changes nothing."""
    found = await target.revision()
    if as_json:
        write_json({**target.names, "revision": found})
    else:
        missing = "no such file" if target.is_absent else "no schema"
        write(f"{target.shown}: {missing if found is None else f'revision {found}'}")
    return OK


async def check(target: Target, *, as_json: bool = False) -> int:
    """Fail unless the revision is the one that this version needs. Changes nothing."""
    found: str | None = schema.EXPECTED_REVISION
    code, message = OK, None
    try:
        await target.check()
    except SchemaError as exc:
        found, code, message = exc.found, FAILED, str(exc)
    if as_json:
        revisions = {"found": found, "expected": schema.EXPECTED_REVISION}
        write_json({**target.names, "ok": code == OK, **revisions, "message": message})
    elif message is None:
        write(
            f"{target.shown}: found revision {found}, expected revision {schema.EXPECTED_REVISION}"
        )
    if message is not None:
        note(f"checkpointer: {message}")
    return code
