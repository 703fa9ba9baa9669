"""The options that commands share, and how their values are read."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from checkpointer.commands.fallback import JSON_HELP, SCHEMA_HELP, URL_HELP

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])")


def duration(value: str) -> timedelta:
    """A duration such as `30d`: seconds, minutes, hours, days or weeks."""
    found = _DURATION.fullmatch(value)
    if found is None:
        raise typer.BadParameter(f"{value!r} is no duration such as 45s, 90m, 12h, 30d or 2w")
    try:
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    except OverflowError as exc:
        raise typer.BadParameter(f"{value!r} is too long") from exc


def moment(value: str) -> datetime:
    """A moment in ISO 8601, in UTC unless it says otherwise; or a duration: so long ago."""
    if _DURATION.fullmatch(value):
        try:
            return datetime.now(UTC) - duration(value)
        except OverflowError as exc:
            raise typer.BadParameter(f"{value!r} is too long ago") from exc
    try:
        found = datetime.fromisoformat(value)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{value!r} is no time such as 2026-01-31, 2026-01-31T12:00 or 30d (ago)"
        ) from exc
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def json_object(value: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(value)
    except ValueError as exc:
        raise typer.BadParameter(f"{value!r} is no JSON: {exc}") from exc
    except RecursionError as exc:
        raise typer.BadParameter("the JSON is nested too deeply") from exc
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{value!r} is no JSON object")
    return found


Url = Annotated[str | None, typer.Option("--url", metavar="URL", help=URL_HELP)]
Schema = Annotated[str | None, typer.Option("--schema", metavar="NAME", help=SCHEMA_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")]
Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NS", help="The subgraph's namespace.")
]
Everything = Annotated[bool, typer.Option("--all", help="LangGraph's own channels, too.")]
Thread = Annotated[str, typer.Argument(metavar="THREAD", help="The thread's id.")]
AllThreads = Annotated[bool, typer.Option("--all", help="All threads.")]
KeepLast = Annotated[
    int | None, typer.Option(min=1, help="Keep the latest so many of each namespace.")
]
MaxAge = Annotated[
    timedelta | None,
    typer.Option(parser=duration, metavar="DURATION", help="Keep those younger than 30d."),
]
IdleFor = Annotated[
    timedelta | None,
    typer.Option(parser=duration, metavar="DURATION", help="Drop threads unused for 90d."),
]
ProtectThread = Annotated[
    list[str] | None, typer.Option(metavar="THREAD", help="Leave it as it is; repeatable.")
]
ProtectCheckpoint = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Keep it; repeatable.")
]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="The URL of the database to read.")]
Destination = Annotated[
    str, typer.Argument(metavar="TARGET", help="The URL of the database to write.")
]
Chosen = Annotated[
    list[str] | None, typer.Option("--threads", metavar="THREAD", help="This thread; repeatable.")
]
SourceSchema = Annotated[
    str | None, typer.Option(metavar="NAME", help="The PostgreSQL schema of SOURCE's tables.")
]
TargetSchema = Annotated[
    str | None, typer.Option(metavar="NAME", help="The PostgreSQL schema of TARGET's tables.")
]
Moment = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="A time, or 30d: so long ago."),
]
