"""The command `checkpointer`: which parser it has, and how it ends."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from checkpointer.commands import fallback
from checkpointer.commands.output import (
    FAILED,
    INTERRUPTED,
    OK,
    WRONG_USAGE,
    note,
    write_error,
)
from checkpointer.errors import CheckpointerError, ConfigurationError, InvalidInputError

EXTRA: Final = ("typer", "rich")
"""The packages that `[cli]` installs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, call the command, print its answer.

    Returns:
        The process's exit code, as in `output.EXIT_CODES`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Closed by who started it (`>&-`): what is opened next must not be taken for it.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
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
    except OSError as exc:  # of a stream: a full disk, for example
        note(f"checkpointer: found that the output cannot be written: {exc}")
        code = FAILED
    except RecursionError:
        note("checkpointer: found a value nested too deeply, expected one that can be shown")
        code = FAILED
    except CheckpointerError as exc:
        note(f"checkpointer: {exc}")
        write_error(exc, str(exc), given)
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
    """Whether a stream takes no more; if so, the interpreter's end must not write to it."""
    try:
        stream.flush()
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(exc, BrokenPipeError) and stream is not sys.stderr:
            note(f"checkpointer: found that the output cannot be written: {exc}")
        return True
    return False


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
