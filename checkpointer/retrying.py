"""Transactions that are run again while the database is away, or held by others."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from checkpointer.errors import DatabaseBusyError, DatabaseUnavailableError

T = TypeVar("T")

FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 1.0
"""Seconds. Pauses are random, up to a bound that doubles from the first to the last, so that many
callers do not come back at once."""

_log: Final = logging.getLogger("checkpointer")


class Retrying:
    """Runs attempts until one succeeds, for as long as the database is given to come back.

    Args:
        where: The database's URL, without secrets.
        patience: Seconds from the first failure on; 0 for one attempt only.
    """

    def __init__(self, where: str, patience: float) -> None:
        self._where = where
        self._patience = patience
        self._away_since: float | None = None
        self._last_failure = 0.0
        self.on_away: Callable[[], None] | None = None
        """Called each time that the database turns out to be away."""

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt returns. Each must be a whole transaction that may be run twice.

        Raises:
            DatabaseUnavailableError: The last attempt's, when patience has run out.
        """
        try:
            done = await self.run_once(attempt)
        except DatabaseUnavailableError:
            if not self._patience:
                raise
        else:
            return done
        started = time.monotonic()
        retrying = AsyncRetrying(
            sleep=asyncio.sleep,
            stop=stop_after_delay(self._patience),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LAST_PAUSE),
            retry=retry_if_exception_type(DatabaseUnavailableError),
            reraise=True,
        )
        try:
            return await retrying(partial(self.run_once, attempt))
        except DatabaseUnavailableError as exc:
            tried = f"tried again for {time.monotonic() - started:.1f} s"
            raise type(exc)(f"{exc}; {tried}, see create_saver(patience=...)") from exc.__cause__

    async def run_once(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What one attempt returns.

        Raises:
            DatabaseUnavailableError: It may be made again.
        """
        started = time.monotonic()
        try:
            done = await attempt()
        except DatabaseBusyError as exc:
            _log.debug("%s; trying again", exc)
            raise
        except DatabaseUnavailableError as exc:
            self._is_away(exc)
            raise
        # One outage ends many connections, one after the other, while others still answer.
        if self._away_since is not None and started > self._last_failure:
            away, self._away_since = time.monotonic() - self._away_since, None
            _log.info("the database %s is back after %.1f s", self._where, away)
        return done

    def _is_away(self, exc: DatabaseUnavailableError) -> None:
        if self.on_away is not None:
            self.on_away()
        self._last_failure = time.monotonic()
        if self._away_since is None and self._patience:
            self._away_since = self._last_failure
            _log.warning("%s; operations are tried again for %g s", exc, self._patience)
