"""The schema of a checkpoint database: look at it, or bring it to the newest revision."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from checkpointer import schema
from checkpointer.engine import DEFAULT_URL, URL_VARIABLE, Database, create_engine, resolve_url
from checkpointer.errors import CheckpointerError

OK: Final = 0
FAILED: Final = 1

Command = Callable[[sa.URL], Awaitable[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, call the command, print its answer.

    Returns:
        The process's exit code: 0, or 1 where the schema differs or the database fails. A wrong
        usage ends the process with 2.
    """
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        answer = asyncio.run(_answer(command, parsed.url))
    except CheckpointerError as exc:
        sys.stderr.write(f"checkpointer: {exc}\n")
        return FAILED
    sys.stdout.write(f"{answer}\n")
    return OK


async def upgrade(url: sa.URL) -> str:
    """Bring the schema to the newest revision, in one transaction."""
    database = Database(create_engine(url), owned=True)
    try:
        await schema.upgrade(database)
    finally:
        await database.dispose()
    return f"the schema is at revision {schema.EXPECTED_REVISION}"


async def current(url: sa.URL) -> str:
    """Print the revision found, or "none". Changes nothing."""
    found, _ = await _look(url)
    return found or "none"


async def check(url: sa.URL) -> str:
    """Fail unless the revision is the one that this version needs. Changes nothing."""
    found, database = await _look(url)
    schema.require(database, found)
    return f"found revision {found}, expected revision {schema.EXPECTED_REVISION}"


COMMANDS: Final[dict[str, Command]] = {"upgrade": upgrade, "current": current, "check": check}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="checkpointer", description=__doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        subparser.add_argument(
            "--url", help=f"the database; default: ${URL_VARIABLE}, else {DEFAULT_URL}"
        )
        subparser.set_defaults(command=command)
    return parser


async def _answer(command: Command, url: str | None) -> str:
    return await command(resolve_url(url))


async def _look(url: sa.URL) -> tuple[str | None, Database]:
    """The revision found, without a trace of having looked."""
    # Raises our errors for a driver that cannot work. The engine is not used: its hooks switch a
    # SQLite file to WAL.
    create_engine(url)
    database = Database(create_async_engine(url), owned=True)
    if database.dialect.upgrades_on_first_use and _is_absent(url.database):
        return None, database
    try:
        return await schema.current(database), database
    finally:
        await database.dispose()


def _is_absent(path: str | None) -> bool:
    """Whether an embedded database's file is not there: to connect would make an empty one."""
    return bool(path) and not str(path).startswith((":", "file:")) and not Path(str(path)).exists()
