"""A checkpoint database: look at its schema, upgrade it, verify what is stored."""

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpointer import schema
from checkpointer.database import Database
from checkpointer.dialects import dialect_named, dialect_of
from checkpointer.engine import (
    DEFAULT_URL,
    SCHEMA_VARIABLE,
    URL_VARIABLE,
    create_engine,
    in_schema,
    resolve_schema,
    resolve_url,
    shown,
)
from checkpointer.errors import CheckpointerError, InvalidInputError
from checkpointer.factory import create_saver
from checkpointer.problems import ProblemKind, Verification

OK: Final = 0
FAILED: Final = 1

EXIT_CODES: Final = (
    "Exit codes: 0 if all is well; 1 if the schema differs, damage was found or the database "
    "failed; 2 for a wrong usage."
)

Answer = tuple[int, str]
Command = Callable[..., Awaitable[Answer]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, call the command, print its answer.

    Returns:
        The process's exit code, as in `EXIT_CODES`. A wrong usage ends the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = vars(_parser(given).parse_args(given))
    try:
        code, answer = asyncio.run(_answer(**options))
    except CheckpointerError as exc:
        sys.stderr.write(f"checkpointer: {exc}\n")
        return FAILED
    sys.stdout.write(f"{answer}\n")
    return code


async def upgrade(url: sa.URL, *, schema_name: str | None) -> Answer:
    """Bring the schema to the newest revision, in one transaction."""
    database = Database(create_engine(url, schema=schema_name), owned=True, patience=0)
    try:
        await schema.upgrade(database)
    finally:
        await database.dispose()
    return OK, f"the schema is at revision {schema.EXPECTED_REVISION}"


async def current(url: sa.URL, *, schema_name: str | None) -> Answer:
    """Print the revision found, or "none". Changes nothing."""
    found, _ = await _look(url, schema_name)
    return OK, found or "none"


async def check(url: sa.URL, *, schema_name: str | None) -> Answer:
    """Fail unless the revision is the one that this version needs. Changes nothing."""
    found, database = await _look(url, schema_name)
    schema.require(database, found)
    return OK, f"found revision {found}, expected revision {schema.EXPECTED_REVISION}"


async def verify(
    url: sa.URL, *, schema_name: str | None, thread: str | None = None, repair: bool = False
) -> Answer:
    """Read everything, and name what is damaged. Changes nothing without --repair."""
    found, database = await _look(url, schema_name)
    schema.require(database, found)
    engine = create_engine(url, schema=schema_name) if repair else _plain_engine(url, schema_name)
    try:
        # What is damaged has no say in what is imported; nothing has to be remembered.
        async with create_saver(engine, allowed_types=[], cache_bytes=0) as saver:
            with _progress() as progress:
                verified = await saver.averify(thread, repair=repair, progress=progress)
    finally:
        await engine.dispose()
    if thread is not None and not verified.threads:
        raise InvalidInputError(
            f"found no thread {thread!r} in {shown(url)}, expected one that is stored there"
        )
    lines = [*map(str, verified.problems), _summary(verified, shown(url))]
    return OK if verified.whole else FAILED, "\n".join(lines)


COMMANDS: Final[dict[str, Command]] = {
    "upgrade": upgrade,
    "current": current,
    "check": check,
    "verify": verify,
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote no value: a URL in the wrong place would show its password."""

    given: Sequence[str] = ()
    """The arguments that are parsed."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end the process."""
        values = {part for one in self.given for part in _values(one)}
        for value in sorted(values - {"", *COMMANDS}, key=len, reverse=True):
            for text in (value, repr(value)[1:-1]):
                message = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "***", message)
        super().error(message)


def _values(argument: str) -> tuple[str, ...]:
    """What of an argument may be a value: all but the name of an option."""
    if argument.startswith("--"):
        return (argument.partition("=")[2],)
    return (argument, argument[2:]) if argument.startswith("-") else (argument,)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="checkpointer", description=__doc__, epilog=EXIT_CODES)
    parser.given = given
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        about = command.__doc__
        subparser = commands.add_parser(name, help=about, description=about, epilog=EXIT_CODES)
        subparser.add_argument(
            "--url", help=f"the database; default: ${URL_VARIABLE}, else {DEFAULT_URL}"
        )
        subparser.add_argument(
            "--schema",
            dest="schema_name",
            metavar="SCHEMA",
            help=f"the PostgreSQL schema of the tables; default: ${SCHEMA_VARIABLE}",
        )
        subparser.given = given
        subparser.set_defaults(command=command)
        if command is verify:
            subparser.add_argument("--thread", help="this thread alone; default: all")
            subparser.add_argument(
                "--repair", action="store_true", help="remove the chunks that nothing names"
            )
    return parser


async def _answer(
    command: Command, url: str | None, schema_name: str | None, **options: object
) -> Answer:
    resolved = resolve_url(url)
    dialect = dialect_named(resolved.get_backend_name())
    schema_name = resolve_schema(schema_name, dialect, chosen=url is not None)
    return await command(resolved, schema_name=schema_name, **options)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object] | None]:
    """What draws a bar, where there is a terminal to draw it on and rich to draw it with."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - an extra
    from rich.progress import MofNCompleteColumn, Progress  # noqa: PLC0415

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("threads", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _summary(found: Verification, where: str) -> str:
    unreferenced = sum(p.kind is ProblemKind.UNREFERENCED_CHUNK for p in found.problems)
    damages = len(found.problems) - unreferenced
    state = "is whole" if found.whole else f"is damaged, {damages} problems"
    read = (
        f"read {found.threads} threads, {found.checkpoints} checkpoints, {found.writes} writes and "
        f"{found.chunks} chunks of {found.bytes} bytes"
    )
    garbage = f"{unreferenced} chunks were unreferenced, {found.removed} removed"
    mend = "" if found.whole else "; restore these rows from a backup, or delete their threads"
    return f"{where} {state}: {read}; {garbage}{mend}"


async def _look(url: sa.URL, schema_name: str | None) -> tuple[str | None, Database]:
    """The revision found, without a trace of having looked."""
    database = Database(_plain_engine(url, schema_name), owned=True, patience=0)
    if database.dialect.upgrades_on_first_use and _is_absent(url.database):
        return None, database
    try:
        return await schema.current(database), database
    finally:
        await database.dispose()


def _plain_engine(url: sa.URL, schema_name: str | None) -> AsyncEngine:
    """An engine that leaves a database as it is."""
    # Raises our errors for a driver that cannot work. The engine is not used: its hooks switch a
    # SQLite file to WAL.
    connect_args = dialect_of(create_engine(url)).connect_args(url)
    return in_schema(create_async_engine(url, connect_args=connect_args), schema_name)


def _is_absent(path: str | None) -> bool:
    """Whether an embedded database's file is not there: to connect would make an empty one."""
    return bool(path) and not str(path).startswith((":", "file:")) and not Path(str(path)).exists()
