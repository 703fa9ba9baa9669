"""The program on typer: its name, its general options, and how a command is declared."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Final, TypeVar

import typer

from checkpointer.commands.output import EXIT_CODES, write
from checkpointer.schema import DISTRIBUTION

Command = TypeVar("Command", bound=Callable[..., int])

ABOUT: Final = "A checkpoint database: its schema, its threads, what they hold, and moving them."

app: Final = typer.Typer(
    name="checkpointer",
    help=ABOUT,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def command(group: str, *, name: str | None = None) -> Callable[[Command], Command]:
    """What declares a function a command.

    Args:
        group: Under which heading it stands.
        name: Its name, if that is not the function's.
    """
    return app.command(name, epilog=EXIT_CODES, rich_help_panel=group)


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callbacks
    if value:
        write(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback(help=ABOUT)
def main(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the general options, each of which ends the program."""
    del show_version
