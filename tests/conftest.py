"""What all tests share: each database-backed test runs on SQLite and on a real PostgreSQL."""

import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pgbouncer
import pytest
import sqlalchemy as sa
from commanding import Run, runner
from databases import (
    Databases,
    PostgreSQLDatabases,
    SQLiteDatabases,
    migrated_template,
    postgres_server,
)
from debian import PGBOUNCER
from hypothesis import settings
from langchain_core.runnables import RunnableConfig

import checkpointer
from checkpointer import serde, underlying
from checkpointer.engine import SCHEMA_VARIABLE, URL_VARIABLE

STEPWISE_VARIABLE = "CHECKPOINTER_TEST_STEPWISE"
"""Set, all tests of SQLite that run in this process take the way that `stepwise` takes."""

SERVER_VARIABLE = "CHECKPOINTER_TEST_POSTGRES_URL"

DATABASES = {"database_kind", "postgres_url", "pgbouncer_url", "sqlite_template"}
"""The fixtures of which a test that needs a database takes one."""

settings.register_profile("default", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=20, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the unit tests, which use no database."""
    for item in items:
        if DATABASES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("unit")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long the tests of each file took, the slowest files first."""
    seconds = defaultdict[str, float](float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.location[0]] += report.duration
    terminalreporter.section("seconds a file")
    for file, total in sorted(seconds.items(), key=lambda item: -item[1]):
        if total >= 1:
            terminalreporter.write_line(f"{total:7.1f} {file}")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The admin URL, in libpq's form, of the server named in the environment or of our own."""
    if url := os.environ.get(SERVER_VARIABLE):
        yield url
    else:
        with postgres_server() as url:
            yield url


@pytest.fixture(scope="session")
def pgbouncer_url(postgres_url: str) -> Iterator[sa.URL]:
    """The admin URL through a PgBouncer in transaction mode; fails on CI where there is none."""
    if PGBOUNCER.find() is None:
        missing = "found no pgbouncer; `make test` fetches it where there are packages of it"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with pgbouncer.running(sa.make_url(postgres_url)) as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A file at the newest schema, to copy from."""
    with migrated_template(SQLiteDatabases(tmp_path_factory.mktemp("template"))) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_template(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database at the newest schema, to copy from."""
    with migrated_template(PostgreSQLDatabases(postgres_url)) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of database that the test runs on; the test's id names it.

    `stepwise` is SQLite where aiosqlite's thread takes no functions.
    """
    kind: str = request.param
    if kind != "stepwise" and STEPWISE_VARIABLE not in os.environ:
        return kind
    monkeypatch.setattr(underlying, "_takes_functions", takes_none)
    return "sqlite" if kind == "stepwise" else kind


async def takes_none(driver: object, cursor: object) -> bool:
    """What is found of an aiosqlite whose thread takes no functions."""
    return False


@pytest.fixture
def databases(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Databases:
    """Makes further databases of the kind that the test runs on."""
    if database_kind == "sqlite":
        return SQLiteDatabases(tmp_path)
    return PostgreSQLDatabases(request.getfixturevalue("postgres_url"))


@pytest.fixture
def new_database_url(databases: Databases) -> Iterator[Callable[[], str]]:
    """Call it for the URL of one more empty database; all are dropped after the test."""
    urls: list[str] = []

    def create() -> str:
        urls.append(databases.create())
        return urls[-1]

    yield create
    for url in urls:
        databases.drop(url)


@pytest.fixture
def new_migrated_url(
    database_kind: str, databases: Databases, request: pytest.FixtureRequest
) -> Iterator[Callable[[], str]]:
    """Call it for the URL of one more database at the newest schema; all are dropped later."""
    template: str = request.getfixturevalue(f"{database_kind}_template")
    urls: list[str] = []

    def create() -> str:
        urls.append(databases.copy(template))
        return urls[-1]

    yield create
    for url in urls:
        databases.drop(url)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of the test's database.

    It has nothing in it, unless the test takes `migrated_url` or `saver` too: it is theirs then.
    """
    migrated = "migrated_url" in request.fixturenames
    factory = "new_migrated_url" if migrated else "new_database_url"
    create: Callable[[], str] = request.getfixturevalue(factory)
    return create()


@pytest.fixture
def migrated_url(database_url: str) -> str:
    """The URL of the test's database, at the newest schema and without rows."""
    return database_url


@pytest.fixture
async def saver(migrated_url: str) -> AsyncIterator["checkpointer.AsyncSQLAlchemySaver"]:
    """A saver on `migrated_url`. After the test, no connection may still be in use."""
    async with checkpointer.create_saver(migrated_url) as saver:
        yield saver
        checked_out = getattr(saver.engine.pool, "checkedout", lambda: 0)()
        assert checked_out == 0, f"{checked_out} connections were not given back to the pool"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `checkpointer` in this process, in which nothing names a database."""
    for variable in (URL_VARIABLE, SCHEMA_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return runner(capsys)


@pytest.fixture
def config() -> RunnableConfig:
    """The root namespace of a thread that no other test uses."""
    return {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts the test, and the programs that it starts.

    A shell has what it starts in the background ignore it, and what that starts, too.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", params=["private", "public"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module's tests with LangGraph's private names, and again without them."""
    assert serde.private_way() is not None, "the private names are not what is expected"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "public":
            patch.setattr(serde, "private_way", lambda: None)
        yield request.param
