"""What commands answer: an exit code, and what is printed, for people or as JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from checkpointer.commands.harmless import harmless

OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit codes: 0 if all is well; 1 if the schema differs, damage was found, the database failed, "
    "or you said no; 2 for a wrong usage, which a URL that cannot work and an unknown thread are "
    "too; 130 after Ctrl-C."
)


def write(text: str) -> None:
    """Print a line, or several, to stdout."""
    sys.stdout.write(f"{text}\n")


def write_json(document: Any) -> None:
    """Print a JSON document. In ASCII: no terminal obeys it, and surrogates survive."""
    write(json.dumps(document, indent=2, allow_nan=False))


def note(text: str) -> None:
    """Print a message to stderr, where it is in nobody's way. No terminal obeys it."""
    sys.stderr.write(f"{harmless(text)}\n")


def write_error(exc: Exception, message: str, given: Sequence[str]) -> None:
    """Print a command's error as its JSON document, if the arguments ask for one."""
    if "--json" in given[: given.index("--") if "--" in given else None]:
        write_json({"error": {"type": type(exc).__name__, "message": message}})
