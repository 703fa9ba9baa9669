"""Arguments of lists of threads and of retention, checked."""

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.identifiers import identifier
from checkpointer.inventory import ORDERS
from checkpointer.quoting import quoted
from checkpointer.reports import ThreadInfo

MAX_PAGE: Final = 10_000
"""Threads that one page may hold."""


def page_size(limit: object) -> int:
    """How many threads a page may hold.

    Raises:
        InvalidInputError: The limit is no int from 1 to `MAX_PAGE`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidInputError(
            f"found the limit {quoted(limit)}, expected an int from 1 to {MAX_PAGE}; pass the "
            f"page's after for more"
        )
    return limit


def check_flag(name: str, value: object) -> None:
    """Refuse what is no bool.

    Raises:
        InvalidInputError: It is none.
    """
    if not isinstance(value, bool):
        raise InvalidInputError(f"found {name} {quoted(value)}, expected a bool")


def sorted_by(order: object) -> dict[str, Any]:
    """The column that an order names, and its direction.

    Raises:
        InvalidInputError: It is no order.
    """
    known = [sign + column for column in ORDERS for sign in ("", "-")]
    if order not in known:
        raise InvalidInputError(
            f"found the order {quoted(order)}, expected one of {', '.join(known)}"
        )
    return {"column": str(order).removeprefix("-"), "descending": str(order).startswith("-")}


def times(**given: object) -> dict[str, datetime]:
    """Those of some times that are given, in UTC.

    Raises:
        InvalidInputError: One is no aware datetime, or UTC has no such time.
    """
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, datetime) or value.utcoffset() is None:
            raise InvalidInputError(
                f"found {name} {quoted(value)}, expected an aware datetime; pass one with a "
                f"tzinfo, such as datetime.now(UTC)"
            )
        try:
            found[name] = value.astimezone(UTC)
        except OverflowError:
            raise InvalidInputError(
                f"found {name} {quoted(value)}, expected a time from the year 1 to 9999 in UTC"
            ) from None
    return found


def cursor_of(last: ThreadInfo, order: str) -> str:
    """Where the page begins that follows a thread."""
    column = order.removeprefix("-")
    key = [last.thread_id] if column == "thread_id" else [getattr(last, column), last.thread_id]
    return base64.urlsafe_b64encode(json.dumps([order, *map(str, key)]).encode()).decode()


def cursor(after: object, order: str, dialect: Dialect) -> tuple[Any, ...] | None:
    """The sort value and the id of the thread that `cursor_of` was given.

    Raises:
        InvalidInputError: It was made of something else, or in another order; or the database can
            hold no such id.
    """
    if after is None:
        return None
    with suppress(ValueError, TypeError, OverflowError):
        stated, *values, thread_id = json.loads(base64.urlsafe_b64decode(str(after)))
        moments = [datetime.fromisoformat(value) for value in values]
        expected = 0 if order.endswith("thread_id") else 1
        aware = all(moment.tzinfo for moment in moments)
        if stated == order and len(moments) == expected and aware and isinstance(thread_id, str):
            in_utc = (moment.astimezone(UTC) for moment in moments)
            return (*in_utc, identifier("thread_id", thread_id, dialect))
    raise InvalidInputError(
        f"found {quoted(after)} as after, expected the after of a page in the order "
        f"{quoted(order)}; leave it out for the first page"
    )


def before(now: datetime, duration: timedelta) -> datetime:
    """So long ago; the first time that there is, if that is before it."""
    try:
        return now - duration
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
