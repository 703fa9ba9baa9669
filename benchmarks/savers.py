"""Savers to measure, ours and the official ones, and empty databases to open them on."""

import os
import runpy
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sizes import libpq_of, path_of

import checkpointer

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import DictRow

Saver: TypeAlias = BaseCheckpointSaver[Any]
Opener: TypeAlias = Callable[[str], AbstractAsyncContextManager[Saver]]

SERVER_VARIABLE: Final = "CHECKPOINTER_TEST_POSTGRES_URL"
SERVER_SETTINGS: Final = "max_connections = 200\n"
"""What differs from PostgreSQL's defaults: above all, `fsync` and `synchronous_commit` are on."""

POOL_SIZE: Final = 20
"""Connections of the official saver's pool; ours has as many by default."""

WARMING: Final = POOL_SIZE + 4
"""Threads for a pool's connections, which take turns: each has prepared its statements then."""


@asynccontextmanager
async def _open_ours(url: str) -> AsyncIterator[Saver]:
    async with checkpointer.create_saver(url) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def _open_official_sqlite(url: str) -> AsyncIterator[Saver]:
    async with AsyncSqliteSaver.from_conn_string(path_of(url)) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def _open_official_postgresql(url: str) -> AsyncIterator[Saver]:
    # The options of AsyncPostgresSaver.from_conn_string, on a pool.
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        libpq_of(url), min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=options, open=False
    )
    async with pool:
        await pool.wait()
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@asynccontextmanager
async def _open_memory(url: str) -> AsyncIterator[Saver]:
    del url
    yield InMemorySaver()


SAVERS: Final[dict[str, Opener]] = {
    "ours-sqlite": _open_ours,
    "official-sqlite": _open_official_sqlite,
    "ours-postgresql": _open_ours,
    "official-postgresql": _open_official_postgresql,
}
FLOOR: Final = "in-memory"
"""LangGraph's `InMemorySaver`: what a put or a read costs without any database."""

_OPENERS: Final = SAVERS | {FLOOR: _open_memory}


@dataclass(frozen=True, slots=True)
class Subject:
    """A saver that is open, for one workload.

    Attributes:
        name: One of `SAVERS`, or `FLOOR`.
        url: Its database.
        saver: The saver.
        workload: Begins the ids of the workload's threads.
        quick: Whether workloads keep to their small form.
        round_trips: Round trips on the wire up to now, where a proxy counts them.
        points: What the workload notes on the way for a curve, as x and y.
    """

    name: str
    url: str
    saver: Saver
    workload: str
    quick: bool = False
    round_trips: Callable[[], int] | None = None
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        """Whether it is the saver of this project."""
        return self.name.startswith("ours")

    @property
    def database(self) -> str:
        """`sqlite`, `postgresql` or, for the floor, `memory`."""
        return self.name.rpartition("-")[2]

    def thread(self, name: str) -> str:
        """A thread's id, which no other workload has."""
        return f"{self.workload}: {name}"

    def pick(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full


def open_saver(name: str, url: str) -> AbstractAsyncContextManager[Saver]:
    """A saver as its users open it, over a database that may have been used before."""
    return _OPENERS[name](url)


@contextmanager
def databases(savers: Sequence[str]) -> Iterator[Callable[[str], str]]:
    """Call it with a saver's name for the URL of an empty database, which is removed later."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    made = runpy.run_path(str(tests / "databases.py"))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cp-")))
        kinds: dict[str, Any] = {}
        if any("sqlite" in name for name in savers):
            kinds["sqlite"] = made["SQLiteDatabases"](directory)
        if any("postgresql" in name for name in savers):
            admin = os.environ.get(SERVER_VARIABLE) or stack.enter_context(
                made["postgres_server"](SERVER_SETTINGS, in_memory=False)
            )
            kinds["postgresql"] = made["PostgreSQLDatabases"](admin)

        def create(name: str) -> str:
            if name == FLOOR:
                return ""
            kind = kinds[name.rpartition("-")[2]]
            url: str = kind.create()
            stack.callback(kind.drop, url)
            return url

        yield create
