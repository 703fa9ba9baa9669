"""What operations take from the database, counted while somebody asks for it; never what they say.

With telemetry off nothing here runs: `Database`, `Writer` and `Backend` ask once whether there is
a `Telemetry`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy.sql.base import Executable

from checkpointer.execution import NOTHING, Connection, Parameters

T = TypeVar("T")

current: Final = ContextVar["Figures | None"]("checkpointer_figures", default=None)
"""The figures of the operation that is under way here; set only while telemetry is on."""

clock: Final = time.perf_counter
"""Seconds, the same in all threads."""

_ONE_THREAD: Final = ("thread_id", "of_thread", "source", "target")
_MANY_THREADS: Final = ("thread_ids", "threads_thread_id", "wanted_thread_id")
"""What statements call the parameters that name threads."""


@dataclass(slots=True)
class Figures:
    """What one operation has taken so far.

    Attributes:
        span: What telemetry knows it by.
        threads: The threads that its statements named or returned. Only how many is told.
        rows: Read from the database, or handed over to a commit.
        bytes: Of manifests, writes and segments in these rows.
        statements: Sent to the database.
        round_trips: To the server; on SQLite, hops to a connection's thread.
        wait: Seconds from asking for a connection until work began on it: for a turn, for a
            connection, for a lock on the file, and between attempts; for puts, for their commit.
        puts: How many puts the commit had.
        asked: When a transaction was first asked for, in nanoseconds since 1970.
        began: When work last began, by `clock`.
    """

    span: Any = None
    threads: set[str] = field(default_factory=set)
    rows: int = 0
    bytes: int = 0
    statements: int = 0
    round_trips: int = 0
    wait: float = 0.0
    puts: int = 0
    asked: int | None = None
    began: float | None = None

    def counted(
        self, work: Callable[[Connection], T], *, travels: bool, begins: bool
    ) -> Callable[[Connection], T]:
        """The same work, counted here each time that it is run.

        Args:
            work: A unit of work.
            travels: Whether each statement is a round trip; otherwise the transaction is one.
            begins: Whether a transaction is begun and committed round it.
        """
        self.asked = self.asked or time.time_ns()
        waiting_since = clock()

        def run(connection: Connection) -> T:
            nonlocal waiting_since
            self.began = clock()
            self.wait += self.began - waiting_since
            before = self.statements
            try:
                return work(_Counting(connection, self))
            finally:
                sent = self.statements - before
                self.round_trips += sent + 2 * begins if travels else 1
                waiting_since = clock()  # for the next attempt, if there is one

        return run


class Telemetry(ABC):
    """Who asks for figures."""

    @abstractmethod
    def operation(self, name: str) -> AbstractContextManager[Figures]:
        """Count what is done meanwhile as one operation; within another one, as its part."""

    @abstractmethod
    def step(self, name: str) -> AbstractContextManager[None]:
        """Count what is done meanwhile as one operation, if the database is asked at all."""

    @abstractmethod
    def commit(self, puts: Sequence[tuple[Any, object]]) -> AbstractContextManager[object]:
        """Count a transaction that stores a batch, here and for each put's own operation.

        Args:
            puts: What is stored, each with the key that `await_commit` was given.
        """

    @abstractmethod
    def await_commit(self, put: Any, key: object) -> None:
        """Note that the operation under way waits for the commit of a put, known by `key`."""

    @abstractmethod
    def looked_up(self, kind: str, *, found: int, missing: int) -> None:
        """Count looks into the cache: by kind: `value`."""


class _Counting(Connection):
    """A connection whose statements are counted.

    Args:
        connection: Where they run.
        figures: Where they are counted.
    """

    def __init__(self, connection: Connection, figures: Figures) -> None:
        self._connection = connection
        self._figures = figures

    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Sequence[Any]:
        """All rows of a statement."""
        self._count([parameters])
        rows = self._connection.fetch(statement, parameters)
        figures = self._figures
        figures.rows += len(rows)
        figures.bytes += bytes_in(value for row in rows for value in row)
        if rows and hasattr(rows[0], "thread_id"):
            figures.threads.update(row.thread_id for row in rows)
        return rows

    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement once for each row of parameters."""
        self._count(rows)
        self._connection.execute(statement, *rows)

    def _count(self, rows: Sequence[Parameters]) -> None:
        """Count one statement, and the threads that its parameters name."""
        self._figures.statements += 1
        threads = self._figures.threads
        for parameters in rows:
            threads.update(parameters[name] for name in _ONE_THREAD if name in parameters)
            for name in _MANY_THREADS:
                threads.update(parameters.get(name, ()))


def bytes_in(values: Iterable[object]) -> int:
    """How many bytes there are among some values."""
    return sum(len(value) for value in values if isinstance(value, bytes | memoryview))
