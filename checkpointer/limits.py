"""How long work waits for an answer of the server before it is cut off."""

import asyncio
from types import TracebackType
from typing import Final, Self

TIMEOUT: Final = 30.0
"""Seconds that a server may take for an answer, unless told otherwise, and that another process's
transaction may hold a file."""


class Limit:
    """Cuts off what runs inside of it when the server does not answer.

    Waiting begins with `extend`: before that, there is no limit.

    Args:
        seconds: How long one answer may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._allowed = seconds
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        self._timeout.reschedule(self._loop.time() + self._allowed)
