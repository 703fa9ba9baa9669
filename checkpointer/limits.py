"""How long work waits for an answer of the server before it is cut off."""

import asyncio
from types import TracebackType
from typing import Final, Self

TIMEOUT: Final = 30.0
"""Seconds that a server may take for an answer, unless told otherwise, and that another process's
transaction may hold a file."""


GRACE: Final = 1.0
"""Seconds for an answer that may have arrived while the event loop was blocked."""

LATE: Final = 0.1
"""Seconds after which the end of the wait comes so late that the event loop was blocked."""


class Limit:
    """Cuts off what runs inside of it when the server does not answer.

    Waiting begins with `extend`: before that, there is no limit. The time for which something else
    blocked the event loop counts, but what has arrived by then is taken: the wait ends a moment
    after the loop is free.

    Args:
        seconds: How long one answer may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._allowed = seconds
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._end is not None:
            self._end.cancel()
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except TimeoutError:
            raise TimeoutError(
                f"found no answer within {self._allowed:g} s, expected one; see "
                f"create_saver(timeout=...)"
            ) from None

    def extend(self, times: int = 1) -> None:
        """Begin to wait anew, for so many times the seconds of one answer."""
        self._allowed = times * self._seconds
        if self._end is not None:
            self._end.cancel()
        if self._timeout.when() is not None:  # it was about to be cut off
            self._timeout.reschedule(None)
        self._end = self._loop.call_later(self._allowed, self._cut_off)

    def _cut_off(self) -> None:
        now = self._loop.time()
        blocked = self._end is not None and now > self._end.when() + LATE
        self._timeout.reschedule(now + GRACE if blocked else now)
