"""What threads, checkpoints, tasks, runs and channels are called, to text that is stored."""

from collections.abc import Iterable
from typing import Final

from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.quoting import quoted

MAX_THREAD_ID: Final = 512
MAX_KEY: Final = 2048
MAX_RUN_ID: Final = 2048
"""Bytes in UTF-8 of a thread's id; of namespace, checkpoint id and task id together; of a run's id.

The longest key has all four, and an entry of PostgreSQL's B-tree holds 2704 bytes, of which about
50 are its own. A thread's id has a limit by itself, because a copy puts another one before the rest
of each key. Each level of subgraphs takes 40 to 60 bytes of a namespace.
"""

_LIMITS: Final = {"thread_id": MAX_THREAD_ID, "run_id": MAX_RUN_ID}

_SHORT: Final = MAX_THREAD_ID // 4
_SHORT_KEY: Final = MAX_KEY // 4
"""Characters up to which nothing has to be counted: none takes more than four bytes."""


def identifier(kind: str, value: object, dialect: Dialect) -> str:
    """`value` as the text that is stored: the `str` of an int or a UUID, for example.

    Raises:
        InvalidInputError: It has no text of its own, the database cannot hold it, or it is a
            thread's or a run's and longer than these may be.
    """
    # Nearly all are plain ASCII, which any database can hold.
    if type(value) is str and value.isascii() and "\0" not in value:
        text = value
    else:
        text = text_of(kind, value)
        dialect.check_identifier(kind, text)
    if len(text) > _SHORT and (limit := _LIMITS.get(kind)):
        _check_size(kind, limit, text)
    return text


def identifiers(kind: str, values: Iterable[object], dialect: Dialect) -> list[str]:
    """Many of them.

    Raises:
        InvalidInputError: As for one; or it is no sequence, but a single one itself.
    """
    return [identifier(kind, value, dialect) for value in _sequence(kind, values)]


def channel_name(value: object, dialect: Dialect) -> str:
    """The name of a channel, which comes back as it is: only text does.

    Raises:
        InvalidInputError: It is no text, or the database cannot hold it.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"found {quoted(value)} as a channel name, expected a str")
    return identifier("channel name", value, dialect)


def channel_names(values: Iterable[object], dialect: Dialect) -> list[str]:
    """Many of them.

    Raises:
        InvalidInputError: As for one; or it is no sequence, but a single one itself.
    """
    return [channel_name(value, dialect) for value in _sequence("channel name", values)]


def _sequence(kind: str, values: Iterable[object]) -> Iterable[object]:
    if isinstance(values, str):
        raise InvalidInputError(
            f"found the single {kind} {quoted(values)}, expected a sequence; "
            f"pass [{quoted(values)}]"
        )
    if not isinstance(values, Iterable) or isinstance(values, bytes | bytearray):
        raise InvalidInputError(f"found {quoted(values)}, expected a sequence of {kind}s")
    return values


def text_of(kind: str, value: object) -> str:
    """The text that an identifier is stored as.

    Raises:
        InvalidInputError: It has none that means it and nothing else: what a list or bytes look
            like is no text, and what `object` says names a place in memory.
    """
    if isinstance(value, str):
        return str.__str__(value)  # the text of a str enum, not its name
    of_its_own = isinstance(value, int | float) or type(value).__str__ is not object.__str__
    if isinstance(value, bytes | bytearray) or not of_its_own:
        raise InvalidInputError(
            f"found {quoted(value)} as the {kind}, expected a str, or what has a text of its own, "
            f"such as an int or a UUID; pass a str"
        )
    try:
        return str.__str__(str(value))
    except Exception as exc:
        raise InvalidInputError(
            f"found {quoted(value)} as the {kind}, expected a str; its own text cannot be had: "
            f"{type(exc).__name__}"
        ) from exc


def check_key(namespace: str, checkpoint_id: str, task_id: str = "") -> None:
    """Refuse what is too long together.

    Raises:
        InvalidInputError: It is.
    """
    if len(namespace) + len(checkpoint_id) + len(task_id) > _SHORT_KEY:
        what = "checkpoint_ns, checkpoint_id and task_id together"
        _check_size(what, MAX_KEY, namespace, checkpoint_id, task_id)


def _check_size(what: str, limit: int, *parts: str) -> None:
    size = sum(len(part) if part.isascii() else len(part.encode()) for part in parts)
    if size > limit:
        raise InvalidInputError(
            f"found the {what} of {size} bytes in UTF-8, expected at most {limit}, as every "
            f"database can hold in a key; shorten it"
        )
