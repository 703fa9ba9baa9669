"""The command `checkpointer`: which parser it has, and how it ends."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TextIO

from checkpointer.commands import fallback
from checkpointer.commands.output import FAILED, INTERRUPTED, OK, WRONG_USAGE, note
from checkpointer.errors import CheckpointerError, ConfigurationError, InvalidInputError

EXTRA: Final = ("typer", "rich")
"""The packages that `[cli]` installs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, call the command, print its answer.

    Returns:
        The process's exit code, as in `output.EXIT_CODES`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # of what stands in for a stream
            # A terminal's encoding may lack characters that are stored.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _parser()(given)
    except SystemExit as exc:
        code = OK if exc.code is None else exc.code if isinstance(exc.code, int) else FAILED
    except BrokenPipeError:
        code = FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except CheckpointerError as exc:
        note(f"checkpointer: {exc}")
        wrong = isinstance(exc, ConfigurationError | InvalidInputError)
        code = WRONG_USAGE if wrong else FAILED
    if code == INTERRUPTED:
        note("checkpointer: interrupted")
    return FAILED if _is_broken(sys.stdout) or _is_broken(sys.stderr) else code


def _parser() -> Callable[[list[str]], int]:
    """All commands, or without the extra those that need none."""
    try:
        from checkpointer.commands import app  # noqa: PLC0415 - an extra
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in EXTRA:
            raise
        return fallback.run
    return app.run


def _is_broken(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more; if so, the interpreter's end must not write to it."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False
