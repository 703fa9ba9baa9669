"""When an attempt is made again, and what is told of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import exc as sa_exc

from checkpointer import DatabaseBusyError, DatabaseError, DatabaseUnavailableError
from checkpointer.faults import Fault, fault_of, translated
from checkpointer.retrying import Retrying

AWAY = DatabaseUnavailableError("away")
BUSY = DatabaseBusyError("busy")
REFUSED = DatabaseError("refused")


def attempts(*outcomes: Exception | str) -> tuple[Callable[[], object], list[float]]:
    """An attempt that has these outcomes, the last one for ever; and the times of its calls."""
    called: list[float] = []

    async def attempt() -> str:
        called.append(time.monotonic())
        await asyncio.sleep(0)
        outcome = outcomes[min(len(called), len(outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt, called


async def run(retrying: Retrying, *outcomes: Exception | str) -> tuple[str, Sequence[float]]:
    attempt, called = attempts(*outcomes)
    return await retrying.run(attempt), called  # type: ignore[arg-type]


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "checkpointer")


async def test_a_success_is_returned_and_nothing_told(caplog: pytest.LogCaptureFixture) -> None:
    done, called = await run(Retrying("x://", 30), "done")
    assert (done, len(called)) == ("done", 1)
    assert caplog.records == []


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none of them takes any time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    return pauses


@pytest.mark.parametrize("failure", [AWAY, BUSY])
async def test_the_second_attempt_follows_at_once(
    slept: list[float], failure: DatabaseError
) -> None:
    done, called = await run(Retrying("x://", 30), failure, "done")
    assert (done, len(called)) == ("done", 2)
    assert slept == []


async def test_pauses_grow_within_bounds(slept: list[float]) -> None:
    retrying = Retrying("x://", 30)
    for _ in range(20):
        await run(retrying, *[AWAY] * 9, "done")
    waits = [slept[n::8] for n in range(8)]
    assert all(len(set(some)) > 10 for some in waits)  # no two callers come back together
    assert max(waits[0]) <= 0.05
    assert 0.3 < max(waits[-1]) <= 1


async def test_what_the_database_refuses_is_not_tried_again() -> None:
    attempt, called = attempts(REFUSED)
    with pytest.raises(DatabaseError) as caught:
        await Retrying("x://", 30).run(attempt)  # type: ignore[arg-type]
    assert caught.value is REFUSED
    assert len(called) == 1


async def test_without_patience_there_is_one_attempt(caplog: pytest.LogCaptureFixture) -> None:
    attempt, called = attempts(AWAY)
    with pytest.raises(DatabaseUnavailableError) as caught:
        await Retrying("x://", 0).run(attempt)  # type: ignore[arg-type]
    assert caught.value is AWAY
    assert len(called) == 1
    assert messages(caplog, logging.WARNING) == []


@pytest.mark.parametrize("failure", [AWAY, BUSY])
async def test_past_the_patience_the_last_error_is_raised(failure: DatabaseError) -> None:
    started = time.monotonic()
    with pytest.raises(type(failure), match=rf"^{failure}; tried again for .*patience") as caught:
        await run(Retrying("x://", 0.3), failure)
    assert type(caught.value) is type(failure)
    assert 0.2 < time.monotonic() - started < 15


async def test_an_outage_is_told_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retrying = Retrying("x://", 0.2)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailableError):
            await run(retrying, AWAY)
    retrying._patience = 30  # noqa: SLF001 - enough for what follows, however slow
    await asyncio.gather(*(run(retrying, AWAY, AWAY, "done") for _ in range(10)))
    await run(retrying, "done")
    assert messages(caplog, logging.WARNING) == ["away; operations are tried again for 0.2 s"]
    (back,) = messages(caplog, logging.INFO)
    assert back.startswith("the database x:// is back after ")
    await run(retrying, AWAY, "done")
    assert len(messages(caplog, logging.WARNING)) == 2


async def test_what_began_before_a_failure_does_not_end_the_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retrying = Retrying("x://", 30)
    begun, answer, failed, back = (asyncio.Event() for _ in range(4))

    async def slow() -> None:
        begun.set()
        await answer.wait()

    async def failing() -> None:
        if not failed.is_set():
            failed.set()
            raise AWAY
        await back.wait()

    under_way = asyncio.create_task(retrying.run(slow))
    await begun.wait()
    outage = asyncio.create_task(retrying.run(failing))
    await failed.wait()
    answer.set()
    await under_way
    assert len(messages(caplog, logging.WARNING)) == 1
    assert messages(caplog, logging.INFO) == []
    back.set()
    await outage
    assert len(messages(caplog, logging.INFO)) == 1


async def test_others_that_hold_the_database_are_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forgotten: list[int] = []
    retrying = Retrying("x://", 30)
    retrying.on_away = lambda: forgotten.append(1)
    await run(retrying, BUSY, BUSY, "done")
    assert messages(caplog, logging.WARNING) == []
    assert forgotten == []
    await run(retrying, AWAY, "done")
    assert forgotten == [1]


async def test_a_pause_can_be_cancelled() -> None:
    task = asyncio.create_task(run(Retrying("x://", 30), AWAY))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Driver(Exception):  # noqa: N818 - as drivers name theirs
    """An error of a driver."""

    def __init__(self, sqlstate: str | None = None, sqlite_errorcode: int | None = None) -> None:
        super().__init__("told so")
        if sqlstate is not None:
            self.sqlstate = sqlstate
        if sqlite_errorcode is not None:
            self.sqlite_errorcode = sqlite_errorcode


FAULTS = {
    "connection lost": (sa_exc.DBAPIError(None, None, Driver("08006")), Fault.AWAY),
    "shutting down": (sa_exc.DBAPIError(None, None, Driver("57P01")), Fault.AWAY),
    "starting": (Driver("57P03"), Fault.AWAY),
    "invalidated": (
        sa_exc.DBAPIError(None, None, Driver(), connection_invalidated=True),
        Fault.AWAY,
    ),
    "socket": (ConnectionRefusedError("no"), Fault.AWAY),
    "stalled": (TimeoutError("no"), Fault.AWAY),
    "psycopg's connecting": (sa_exc.OperationalError(None, None, Driver()), Fault.AWAY),
    "serialization": (sa_exc.DBAPIError(None, None, Driver("40001")), Fault.BUSY),
    "deadlock": (sa_exc.OperationalError(None, None, Driver("40P01")), Fault.BUSY),
    "no connection left": (sa_exc.DBAPIError(None, None, Driver("53300")), Fault.BUSY),
    "lock timeout": (sa_exc.DBAPIError(None, None, Driver("55P03")), Fault.BUSY),
    "pool": (sa_exc.TimeoutError("no"), Fault.BUSY),
    "SQLITE_BUSY_SNAPSHOT": (
        sa_exc.DBAPIError(None, None, Driver(sqlite_errorcode=517)),
        Fault.BUSY,
    ),
    "SQLITE_LOCKED": (sa_exc.DBAPIError(None, None, Driver(sqlite_errorcode=6)), Fault.BUSY),
    "SQLITE_FULL": (
        sa_exc.OperationalError(None, None, Driver(sqlite_errorcode=13)),
        Fault.REFUSED,
    ),
    "password": (sa_exc.DBAPIError(None, None, Driver("28P01")), Fault.REFUSED),
    "syntax": (sa_exc.ProgrammingError(None, None, Driver("42601")), Fault.REFUSED),
    "cancelled by statement_timeout": (
        sa_exc.OperationalError(None, None, Driver("57014")),
        Fault.REFUSED,
    ),
    "no error of a driver": (sa_exc.ArgumentError("no"), Fault.REFUSED),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_by_state_code_and_class(name: str) -> None:
    exc, fault = FAULTS[name]
    assert fault_of(exc) is fault
    error = translated(exc, "x://")
    assert fault.value in str(error)
    assert isinstance(error, DatabaseUnavailableError) == (fault is not Fault.REFUSED)
    assert isinstance(error, DatabaseBusyError) == (fault is Fault.BUSY)
