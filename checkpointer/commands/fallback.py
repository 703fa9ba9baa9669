"""The commands that need no extra, on argparse; what to install for the others."""

import argparse
import asyncio
from collections.abc import Sequence
from importlib import metadata
from typing import Final, NoReturn

from checkpointer.commands import revisions
from checkpointer.commands.harmless import harmless
from checkpointer.commands.output import EXIT_CODES, WRONG_USAGE, note
from checkpointer.commands.target import Target
from checkpointer.commands.usage import hidden
from checkpointer.engine import DEFAULT_URL, SCHEMA_VARIABLE, URL_VARIABLE
from checkpointer.schema import DISTRIBUTION

URL_HELP: Final = f"The database; default: ${URL_VARIABLE}, else {DEFAULT_URL}."
SCHEMA_HELP: Final = f"The PostgreSQL schema of the tables; default: ${SCHEMA_VARIABLE}."
JSON_HELP: Final = "Print a JSON document."
SQL_HELP: Final = "Print the SQL of all revisions instead, and do not connect."

WITHOUT: Final = {
    "upgrade": revisions.upgrade,
    "current": revisions.current,
    "check": revisions.check,
}
"""The commands that need no extra."""

WITH: Final = frozenset(
    {
        *("threads", "show", "history", "diff", "stats", "prune"),
        *("delete", "copy", "import", "verify", "export"),
    }
)
"""The commands that do."""

INSTALL: Final = f"pip install '{DISTRIBUTION}[cli]'"


def run(given: list[str]) -> int:
    """Parse the arguments and call the command; its exit code."""
    if given and given[0] in WITH:
        note(f"checkpointer: `checkpointer {given[0]}` needs the extra [cli]; run: {INSTALL}")
        return WRONG_USAGE
    options = vars(_parser(given).parse_args(given))
    command = WITHOUT[options["command"]]
    target = Target.named(options["url"], options["schema"])
    if options.get("sql"):
        return revisions.upgrade_sql(target)
    return asyncio.run(command(target, as_json=options["json"]))


class _Parser(argparse.ArgumentParser):
    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        super().error(harmless(hidden(message, self.given)))


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    about = f"A checkpoint database: look at its schema, upgrade it. All else: {INSTALL}"
    parser = _Parser(prog="checkpointer", description=about, epilog=EXIT_CODES)
    parser.given = given
    version = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in WITHOUT.items():
        doc = command.__doc__
        one = commands.add_parser(name, help=doc, description=doc, epilog=EXIT_CODES)
        one.given = given
        one.add_argument("--url", help=URL_HELP)
        one.add_argument("--schema", help=SCHEMA_HELP)
        one.add_argument("--json", action="store_true", help=JSON_HELP)
        if command is revisions.upgrade:
            one.add_argument("--sql", action="store_true", help=SQL_HELP)
    return parser
