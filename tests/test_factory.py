"""`create_saver`: URLs, engines and options; what it refuses, and what it leaves alone."""

import asyncio
import socket
import sqlite3
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool
from storing import config, put

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DatabaseError,
    DriverError,
    SchemaMissingError,
    create_saver,
)
from checkpointer.engine import DEFAULT_URL, URL_VARIABLE, shown

THREAD = config()
SECRET = "s3cr3t"  # noqa: S105 - a test's password


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def url_of(saver: AsyncSQLAlchemySaver) -> str:
    return saver.engine.url.render_as_string(hide_password=False)


async def assert_works(saver: AsyncSQLAlchemySaver) -> None:
    """Puts, gets, lists and deletes, in several batches."""
    for number in range(3):
        stored = await put(saver, THREAD, str(number), text="x" * 5000, number=number)
        await saver.aput_writes(stored, [("text", number)], "a task")
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"text": "x" * 5000, "number": 2}
    assert found.pending_writes == [("a task", "text", 2)]
    assert len([one async for one in saver.alist(THREAD, filter={})]) == 3
    await saver.aprune(["a thread"])
    assert len([one async for one in saver.alist(THREAD)]) == 1


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("sqlite:////tmp/x.db", "sqlite+aiosqlite:////tmp/x.db"),
        ("sqlite+aiosqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("sqlite://", "sqlite+aiosqlite://"),
        ("sqlite:///:memory:", "sqlite+aiosqlite:///:memory:"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
        ("postgres://u@h/d?sslmode=disable", "postgresql+asyncpg://u@h/d?ssl=disable"),
        (
            "postgresql+psycopg://u@h/d?sslmode=require",
            "postgresql+psycopg://u@h/d?sslmode=require",
        ),
        ("postgresql:///d?host=/run/pg", "postgresql+asyncpg:///d?host=/run/pg"),
        ("postgresql://u:p%40%3A%2F@h/d", "postgresql+asyncpg://u:p%40%3A%2F@h/d"),
    ],
)
def test_a_url_is_given_an_async_driver(given: str, used: str) -> None:
    expected = sa.make_url(used)
    assert create_saver(given).engine.url == expected
    assert create_saver(sa.make_url(given)).engine.url == expected


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"postgres://u:{SECRET}@h/d")
    assert url_of(create_saver()) == f"postgresql+asyncpg://u:{SECRET}@h/d"
    assert url_of(create_saver("sqlite:///x.db")) == "sqlite+aiosqlite:///x.db"


@pytest.mark.parametrize("value", [None, ""])
async def test_without_a_url_a_file_in_the_working_directory_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(URL_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(URL_VARIABLE, value)
    monkeypatch.chdir(tmp_path)
    async with create_saver() as saver:
        assert url_of(saver) == DEFAULT_URL == "sqlite+aiosqlite:///checkpoints.db"
        assert files_in(tmp_path) == set()
        await assert_works(saver)
    assert "checkpoints.db" in files_in(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{SECRET}@h/d",
        f"mysql+aiomysql://u:{SECRET}@h/d",
        f"oracle+oracledb://u:{SECRET}@h/d",
        f"https://u:{SECRET}@h/d",
        f"redis://:{SECRET}@h/0",
    ],
)
def test_an_unknown_kind_of_database_is_refused(url: str) -> None:
    kind = url.partition(":")[0].partition("+")[0]
    with pytest.raises(ConfigurationError, match=f"found .*'{kind}', expected") as caught:
        create_saver(url)
    assert "postgresql" in str(caught.value)
    assert "sqlite" in str(caught.value)
    assert_secret(caught)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+pysqlite:///x.db", "sqlite+aiosqlite"),
        (f"postgresql+psycopg2://u:{SECRET}@h/d", "postgresql+asyncpg"),
        (f"postgresql+pg8000://u:{SECRET}@h/d", "postgresql+asyncpg"),
    ],
)
def test_a_driver_that_is_not_async_is_refused(url: str, expected: str) -> None:
    with pytest.raises(DriverError, match="not async") as caught:
        create_saver(url)
    assert f"{expected}://" in str(caught.value)
    assert_secret(caught)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+nosuch:///x.db", "sqlite+aiosqlite"),
        (f"postgresql+nosuch://u:{SECRET}@h/d", "postgresql+asyncpg"),
    ],
)
def test_an_unknown_driver_is_refused(url: str, expected: str) -> None:
    with pytest.raises(DriverError, match=r"found .*nosuch.*expected") as caught:
        create_saver(url)
    assert f"{expected}://" in str(caught.value)
    assert_secret(caught)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("sqlite:///x.db", "aiosqlite", "aiosqlite"),
        (f"postgresql://u:{SECRET}@h/d", "asyncpg", "asyncpg"),
        (f"postgresql+psycopg://u:{SECRET}@h/d", "psycopg", "psycopg[binary]"),
    ],
)
def test_a_missing_driver_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DriverError, match="is not installed") as caught:
        create_saver(url)
    assert f"pip install '{package}'" in str(caught.value)
    assert_secret(caught)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "checkpoints.db",
        "/tmp/checkpoints.db",  # noqa: S108 - a path, not a file
        f"postgresql://u:{SECRET}@h:port/d",
        f"://u:{SECRET}@h/d",
        f"postgresql//u:{SECRET}@h/d",
        b"sqlite:///x.db",
        Path("x.db"),
        7,
        pytest.param(object(), id="object"),
    ],
    ids=repr,
)
def test_what_is_no_url_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected") as caught:
        create_saver(url)
    assert_secret(caught)


def test_a_url_of_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"nonsense {SECRET}")
    with pytest.raises(ConfigurationError, match=URL_VARIABLE) as caught:
        create_saver()
    assert_secret(caught)


def assert_secret(caught: pytest.ExceptionInfo[BaseException]) -> None:
    """No message of the error or of its causes holds the password."""
    error: BaseException | None = caught.value
    assert "".join(traceback.format_exception_only(caught.value))
    while error is not None:
        assert SECRET not in "".join(traceback.format_exception_only(error))
        error = error.__cause__ or error.__context__


@cache
def unused_port() -> int:
    """A port at which nobody listens; nobody else gets it, because this process keeps it."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.detach()
    return port


async def test_no_message_holds_the_password(postgres_url: str) -> None:
    here = sa.make_url(postgres_url).set(username="nobody", password=SECRET)
    nowhere = sa.make_url(f"postgresql://nobody:{SECRET}@127.0.0.1:{unused_port()}/d")
    for url in (
        here.set(drivername="postgresql+asyncpg"),
        here.set(drivername="postgresql+psycopg"),
        here.set(drivername="postgresql+asyncpg", username="postgres", database="nobody"),
        nowhere,
        nowhere.set(drivername="postgresql+psycopg"),
    ):
        async with create_saver(url, patience=0) as saver:
            with pytest.raises(DatabaseError, match="nobody") as caught:
                await saver.aget_tuple(THREAD)
            assert_secret(caught)
            assert SECRET not in repr(saver)
            assert SECRET not in repr(saver.engine)


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_a_missing_schema_is_answered_without_the_password(database_url: str) -> None:
    async with create_saver(sa.make_url(database_url).set(password=SECRET)) as saver:
        with pytest.raises(SchemaMissingError, match="checkpointer upgrade") as caught:
            await saver.aget_tuple(THREAD)
        assert_secret(caught)


def test_a_sync_engine_is_refused() -> None:
    engine = sa.create_engine("sqlite://")
    with pytest.raises(
        ConfigurationError, match=r"sync.*expected an async one.*create_async_engine"
    ):
        create_saver(engine)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    engine.dispose()


def test_an_engine_of_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    monkeypatch.setattr(engine.dialect, "name", "mysql")
    with pytest.raises(ConfigurationError, match=r"'mysql'.*expected postgresql or sqlite"):
        create_saver(engine)


async def test_only_the_dialect_of_an_engine_tells_its_kind(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_async_engine(migrated_url)
    monkeypatch.setattr(engine.sync_engine, "url", sa.make_url("nosuch+driver://somewhere/d"))
    async with create_saver(engine) as saver:
        await assert_works(saver)
    await engine.dispose()


@pytest.mark.parametrize("cache_bytes", [-1, -(1 << 30)])
def test_a_negative_cache_is_refused(cache_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cache_bytes={cache_bytes}, expected 0 or more"):
        create_saver("sqlite://", cache_bytes=cache_bytes)


@pytest.mark.parametrize("cache_bytes", [0, 1, 10_000])
async def test_a_saver_works_with_a_small_cache_or_none(
    migrated_url: str, cache_bytes: int
) -> None:
    async with create_saver(migrated_url, cache_bytes=cache_bytes) as saver:
        await assert_works(saver)


async def test_options_reach_the_engine(migrated_url: str) -> None:
    async with create_saver(migrated_url, engine_options={"logging_name": "mine"}) as saver:
        assert saver.engine.sync_engine.logging_name == "mine"
        await assert_works(saver)


async def test_options_can_choose_another_pool(migrated_url: str) -> None:
    async with create_saver(migrated_url, engine_options={"poolclass": NullPool}) as saver:
        assert isinstance(saver.engine.pool, NullPool)
        await assert_works(saver)


async def test_options_can_choose_the_pool_size(migrated_url: str) -> None:
    options = {"pool_size": 3, "max_overflow": 1}
    async with create_saver(migrated_url, engine_options=options) as saver:
        await asyncio.gather(*(saver.aget_tuple(config(n)) for n in range(20)))
        assert "Pool size: 3" in saver.engine.pool.status()


@pytest.mark.parametrize("url", ["sqlite://", "postgresql://u@h/d"])
def test_an_option_that_no_engine_takes_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        create_saver(url, engine_options={"nosuch": 1})


def test_options_next_to_an_engine_are_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match=r"engine_options.*create_async_engine"):
        create_saver(engine, engine_options={"echo": True})


def test_an_option_of_the_url_that_asyncpg_does_not_know_is_told_with_what_to_do() -> None:
    url = "postgresql://h/d?sslmode=verify-full&sslrootcert=/ca.pem"
    with pytest.raises(ConfigurationError, match=r"'sslrootcert'.*asyncpg.*PGSSLROOTCERT.*psycopg"):
        create_saver(url)
    create_saver(url.replace("postgresql:", "postgresql+psycopg:"))


@pytest.mark.parametrize("url", ["sqlite:///nosuchdirectory/x.db", "postgresql://u:p@h.invalid/d"])
def test_making_a_saver_does_no_io_and_needs_no_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("input or output")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    monkeypatch.setattr(asyncio, "get_event_loop", refuse)
    create_saver(url)
    assert files_in(tmp_path) == set()


PROGRAM = """
import asyncio
import sys
from langgraph.graph import END, START, MessagesState, StateGraph
from checkpointer import create_saver

assert "alembic" not in sys.modules
builder = StateGraph(MessagesState)
builder.add_node("reply", lambda state: {"messages": [("ai", "hello")]})
builder.add_edge(START, "reply")
builder.add_edge("reply", END)
saver = create_saver(sys.argv[1])
graph = builder.compile(checkpointer=saver)
config = {"configurable": {"thread_id": "1"}}


async def main():
    async with saver:
        await graph.ainvoke({"messages": [("user", "hi")]}, config)
        state = await graph.aget_state(config)
        print([message.content for message in state.values["messages"]])


asyncio.run(main())
"""


def test_a_saver_may_be_made_before_its_loop(migrated_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, migrated_url],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("['hi', 'hello']\n", 0), ended.stderr


class TestEngineOfTheCaller:
    """An engine that was passed in keeps its settings, and is never disposed."""

    async def test_it_is_never_disposed(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url)
        disposed: list[object] = []
        event.listen(engine.sync_engine, "engine_disposed", disposed.append)
        async with engine.connect() as connection:
            async with create_saver(engine) as saver:
                assert saver.engine is engine
                await assert_works(saver)
            async with create_saver(engine) as saver:
                await saver.adelete_thread("a thread")
                await assert_works(saver)
            assert (await connection.execute(sa.select(sa.literal(1)))).scalar() == 1
        assert not disposed
        await engine.dispose()

    async def test_it_keeps_its_hooks_and_gets_none_of_ours(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url)
        async with create_saver(engine) as saver:
            await assert_works(saver)
        begun: list[str] = []
        event.listen(
            engine.sync_engine, "before_cursor_execute", lambda *args: begun.append(args[2])
        )
        async with engine.begin() as connection:
            await connection.execute(sa.select(sa.literal(1)))
        assert len(begun) == 1
        await engine.dispose()

    async def test_it_may_have_no_pool(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url, poolclass=NullPool)
        async with create_saver(engine) as saver:
            await assert_works(saver)
        await engine.dispose()

    @pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
    @pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "AUTOCOMMIT"])
    async def test_it_may_have_an_isolation_level_of_its_own(
        self, migrated_url: str, level: Any
    ) -> None:
        engine = create_async_engine(migrated_url, isolation_level=level)
        async with create_saver(engine) as saver:
            await assert_works(saver)
        async with engine.connect() as connection:
            shown = await connection.execute(sa.text("SHOW transaction_isolation"))
            assert level in {str(shown.scalar()).upper(), "AUTOCOMMIT"}
        await engine.dispose()

    @pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
    async def test_it_may_use_psycopg(self, migrated_url: str) -> None:
        url = sa.make_url(migrated_url).set(drivername="postgresql+psycopg")
        engine = create_async_engine(url)
        async with create_saver(engine) as saver:
            await assert_works(saver)
        await engine.dispose()

    async def test_sqlite_may_be_in_memory(self) -> None:
        engine = create_async_engine("sqlite+aiosqlite:///:memory:", poolclass=StaticPool)
        async with create_saver(engine) as saver:
            await assert_works(saver)
            await asyncio.gather(*(put(saver, config(n), "1", text="y") for n in range(20)))
        async with create_saver(engine) as other:
            assert len([one async for one in other.alist(None)]) == 21
        await engine.dispose()

    async def test_sqlite_may_be_in_the_drivers_legacy_mode(self, tmp_path: Path) -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'x.db'}",
            connect_args={"isolation_level": "IMMEDIATE"},
        )
        async with create_saver(engine) as saver:
            await assert_works(saver)
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE mine (id INTEGER)"))
        async with engine.connect() as connection:
            await connection.execute(sa.text("INSERT INTO mine VALUES (1)"))
            await connection.rollback()
            count = await connection.execute(sa.text("SELECT COUNT(*) FROM mine"))
            assert count.scalar() == 0
            raw = await connection.get_raw_connection()
            assert raw.isolation_level == "IMMEDIATE"
        await engine.dispose()

    async def test_sqlite_may_have_begin_hooks(self, tmp_path: Path) -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
        begun: list[str] = []

        def connect(connection: Any, record: object) -> None:
            connection.isolation_level = None

        def begin(connection: sa.Connection) -> None:
            begun.append("BEGIN")
            connection.exec_driver_sql("BEGIN EXCLUSIVE")

        event.listen(engine.sync_engine, "connect", connect)
        event.listen(engine.sync_engine, "begin", begin)
        async with create_saver(engine) as saver:
            await assert_works(saver)
        async with engine.begin() as sql:
            await sql.execute(sa.text("CREATE TABLE mine (id INTEGER)"))
        assert begun
        await engine.dispose()


def test_no_password_of_a_query_is_shown() -> None:
    url = sa.make_url("postgresql+asyncpg://host/app?user=app&password=s3cr3t&passfile=/secret")
    assert shown(url) == "postgresql+asyncpg://host/app?passfile=hidden&password=hidden&user=app"


def test_a_sqlite_url_with_two_slashes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"found the URL .*x\.db, expected.*three slashes"):
        create_saver("sqlite://x.db")
