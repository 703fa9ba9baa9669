"""All commands: parsed, called, and what is said of a wrong usage."""

from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.main import get_command

from checkpointer.commands import changes, looks
from checkpointer.commands.frame import app
from checkpointer.commands.output import INTERRUPTED, OK, WRONG_USAGE, note, write_error
from checkpointer.commands.usage import hidden

__all__ = ["app", "changes", "looks", "run"]

UsageError: Final[Any] = typer.BadParameter.__mro__[1]
"""The base of all that typer refuses; it exports only this one of its subclasses."""


def run(given: list[str]) -> int:
    """Parse the arguments and call the command; its exit code."""
    command = get_command(app)
    try:
        code = command.main(given or ["--help"], prog_name="checkpointer", standalone_mode=False)
    except UsageError as exc:
        message = _explained(exc, given)
        note(f"{_usage(exc)}checkpointer: {message}")
        write_error(exc, message, given)
        return WRONG_USAGE
    except typer.Abort:
        note("checkpointer: nothing was done")
        return INTERRUPTED
    if not given:
        return WRONG_USAGE
    return code if isinstance(code, int) else OK


def _usage(exc: Any) -> str:
    """How the usage should be."""
    return f"{exc.ctx.get_usage()}\nTry '{exc.ctx.command_path} --help'.\n" if exc.ctx else ""


def _explained(exc: Any, given: Sequence[str]) -> str:
    """What is wrong with the usage."""
    message = exc.format_message()
    if likely := getattr(exc, "possibilities", None):
        message = f"No such option: {exc.option_name}. Did you mean {likely[0]}?"
    return hidden(message, given)
