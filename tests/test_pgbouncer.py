"""Through PgBouncer, which gives each transaction another connection of the server.

`test_conformance.py` runs LangGraph's own suite through it as well.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle, islice, product
from typing import Any, get_args
from uuid import uuid4

import pgbouncer
import pytest
import sqlalchemy as sa
from pgbouncer import SERVER_CONNECTIONS, on_each, through, url_through
from scenarios import SCENARIOS, expected_of, left_behind, play
from schemas import catalog, query
from scripted import Durability
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from storing import LARGE, config, operate, put, stored_contents

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    create_saver,
    pooler,
)

Saver = AsyncSQLAlchemySaver

AGENTS = 50

CONNECT_ARGS: dict[str, dict[str, Any]] = {
    "asyncpg": {"statement_cache_size": 0},
    "psycopg": {"prepare_threshold": None},
}
"""What docs/pooling.md tells an application to give its own engine."""

SESSION = """
SELECT (SELECT count(*) FROM pg_prepared_statements),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings)
"""
"""What stays with a connection of the server for whoever uses it next."""

PREPARED = "SELECT count(*) FROM pg_prepared_statements"

pytestmark = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
every_driver = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture
def direct_url(database_url: str, driver: str) -> sa.URL:
    """The test's database, past PgBouncer."""
    return sa.make_url(database_url).set(drivername=f"postgresql+{driver}")


@pytest.fixture
def pooled_url(direct_url: sa.URL, pgbouncer_url: sa.URL) -> sa.URL:
    """The test's database through PgBouncer."""
    return through(pgbouncer_url, direct_url)


def connected(url: str, condition: str = "TRUE") -> int:
    """How many clients the server has for a database, its own workers aside."""
    others = (
        "datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    found = query(url, f"SELECT count(*) FROM pg_stat_activity WHERE {others} AND {condition}")
    return int(str(found[0][0]))


@pytest.mark.long
@every_driver
async def test_fifty_agents_at_once_leave_what_they_leave_in_memory(
    migrated_url: str, direct_url: sa.URL, pooled_url: sa.URL
) -> None:
    kinds = [*product(SCENARIOS, get_args(Durability))]
    # Ids that are made equal where what two threads leave is compared.
    agents = [(kind, config(str(uuid4()))) for kind in islice(cycle(kinds), AGENTS)]
    expected = {
        (name, how): await expected_of(SCENARIOS[name], how, config(str(uuid4())))
        for name, how in kinds
    }
    async with create_saver(pooled_url) as saver:
        graphs = {name: scenario.builder(saver) for name, scenario in SCENARIOS.items()}
        outputs = await asyncio.gather(
            *(play(graphs[name], SCENARIOS[name].steps, how, at) for (name, how), at in agents)
        )
        clients = saver.engine.pool.checkedin()  # type: ignore[attr-defined]
        servers = connected(migrated_url)
    assert 0 < servers <= SERVER_CONNECTIONS < clients
    async with create_saver(direct_url, cache_bytes=0) as cold:
        for output, ((name, how), at) in zip(outputs, agents, strict=True):
            left = await left_behind(SCENARIOS[name].builder(cold), output, at)
            assert left == expected[name, how], (name, how)
        assert (await cold.averify()).whole


Make = Callable[[sa.URL], sa.URL | AsyncEngine]


def engine(url: sa.URL) -> AsyncEngine:
    """As docs/pooling.md has an application make its own."""
    return create_async_engine(url, connect_args=CONNECT_ARGS[url.get_driver_name()])


def watched_engine(url: sa.URL) -> AsyncEngine:
    """One whose statements go through SQLAlchemy's own execution."""
    watched = engine(url)
    event.listen(watched.sync_engine, "after_cursor_execute", lambda *_: None)
    return watched


def without_caches(*names: str) -> Make:
    """A URL that turns caches of prepared statements off."""
    return lambda url: url.update_query_dict(dict.fromkeys(names, "0"))


CACHE, CACHE_OF_SQLALCHEMY = "statement_cache_size", "prepared_statement_cache_size"


@pytest.mark.parametrize(
    ("driver", "make"),
    [
        pytest.param("asyncpg", without_caches(), id="asyncpg"),
        pytest.param("asyncpg", without_caches(CACHE), id="asyncpg-no-cache"),
        pytest.param("asyncpg", without_caches(CACHE_OF_SQLALCHEMY), id="asyncpg-other-cache"),
        pytest.param("asyncpg", without_caches(CACHE, CACHE_OF_SQLALCHEMY), id="asyncpg-no-caches"),
        pytest.param("asyncpg", engine, id="asyncpg-engine"),
        pytest.param("asyncpg", watched_engine, id="asyncpg-watched-engine"),
        pytest.param("psycopg", without_caches(), id="psycopg"),
        pytest.param("psycopg", engine, id="psycopg-engine"),
    ],
)
async def test_every_operation_does_what_it_does_without(
    make: Make, pooled_url: sa.URL, migrated_url: str, new_migrated_url: Callable[[], str]
) -> None:
    async with create_saver(make(pooled_url)) as saver:
        found = await operate(saver)
    await saver.engine.dispose()
    url = new_migrated_url()
    async with create_saver(url) as reference:
        assert found == await operate(reference)
    assert stored_contents(migrated_url) == stored_contents(url)


@pytest.mark.parametrize(
    ("driver", "make"),
    [
        pytest.param("asyncpg", without_caches(), id="asyncpg"),
        pytest.param("asyncpg", engine, id="asyncpg-engine"),
        pytest.param("psycopg", without_caches(), id="psycopg"),
    ],
)
async def test_connections_of_the_server_stay_as_they_were(
    make: Make, migrated_url: str, pooled_url: sa.URL
) -> None:
    before = on_each(pooled_url, SESSION)
    async with create_saver(make(pooled_url)) as saver:
        await operate(saver)
    await saver.engine.dispose()
    assert on_each(pooled_url, SESSION) == before
    assert [row[0][:2] for row in before] == [(0, 0)] * SERVER_CONNECTIONS


@every_driver
async def test_without_a_pooler_statements_are_prepared(
    migrated_url: str, direct_url: sa.URL
) -> None:
    async with create_saver(direct_url, engine_options={"pool_size": 1}) as saver:
        for _ in range(8):  # psycopg prepares what comes more often than five times
            await saver.aget_tuple(config())
        async with saver.engine.connect() as connection:
            assert await connection.scalar(sa.text(PREPARED))


@pytest.mark.parametrize(("size", "prepared"), [({}, False), ({CACHE: "100"}, True)])
async def test_a_pooler_is_used_with_prepared_statements_where_the_url_says_so(
    migrated_url: str,
    postgres_url: str,
    pgbouncer_url: sa.URL,
    size: dict[str, str],
    prepared: bool,  # noqa: FBT001
) -> None:
    with pgbouncer.running(sa.make_url(postgres_url), pool_mode="session") as session_pooler:
        url = url_through(session_pooler, migrated_url).update_query_dict(size)
        async with create_saver(url, engine_options={"pool_size": 1}) as saver:
            await put(saver, config(), "1", a=LARGE)
            async with saver.engine.connect() as connection:
                assert bool(await connection.scalar(sa.text(PREPARED))) == prepared


@pytest.mark.parametrize("driver", ["asyncpg"])
async def test_numbers_in_a_url_are_taken_as_numbers(migrated_url: str, direct_url: sa.URL) -> None:
    options = {
        "statement_cache_size": "7",
        "max_cached_statement_lifetime": "100",
        "max_cacheable_statement_size": "10000",
        "timeout": "5.5",
        "command_timeout": "5",
    }
    async with create_saver(direct_url.update_query_dict(options)) as saver:
        await put(saver, config(), "1")
        assert await saver.aget_tuple(config()) is not None
    with pytest.raises(ConfigurationError, match="found statement_cache_size=few in the URL"):
        create_saver(direct_url.update_query_dict({"statement_cache_size": "few"}))


@every_driver
async def test_any_number_of_savers_may_upgrade_at_once(
    database_url: str, pooled_url: sa.URL, new_migrated_url: Callable[[], str]
) -> None:
    async def upgrade() -> None:
        async with create_saver(pooled_url) as saver:
            await saver.setup()

    await asyncio.gather(*(upgrade() for _ in range(8)))
    assert catalog(database_url) == catalog(new_migrated_url())
    assert {row[0][1] for row in on_each(pooled_url, SESSION)} == {0}


def test_commands_work_one_after_the_other(
    database_url: str, postgres_url: str, pgbouncer_url: sa.URL
) -> None:
    """Each is a process of its own, which would give its statements the same names."""
    server = sa.make_url(postgres_url)
    with pgbouncer.running(server, default_pool_size=1) as pooler_url:
        url = url_through(pooler_url, database_url).render_as_string(hide_password=False)
        for command in ("upgrade", "check", "current", "upgrade"):
            arguments = [sys.executable, "-m", "checkpointer", command, "--url", url]
            ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr


@pytest.fixture
def question(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it for what each new connection is asked."""

    def ask(sql: str) -> None:
        monkeypatch.setattr(pooler, "_question", lambda _: sql)

    return ask


@every_driver
@pytest.mark.parametrize(
    ("sql", "error"),
    [("SELECT 1 / 0", DatabaseError), ("SELECT pg_sleep(60)", DatabaseUnavailableError)],
)
async def test_a_connection_that_cannot_be_asked_is_closed(
    migrated_url: str,
    direct_url: sa.URL,
    sql: str,
    error: type[DatabaseError],
    question: Callable[[str], None],
) -> None:
    question(sql)
    async with create_saver(direct_url, timeout=0.5, patience=0) as saver:
        with pytest.raises(error):
            await saver.aget_tuple(config())
        async with asyncio.timeout(40):
            # A query goes on where it is; the server notices at its end that nobody waits for it.
            while connected(migrated_url, "state <> 'active'"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@every_driver
async def test_an_engine_that_prepares_statements_is_told_what_to_change(
    pooled_url: sa.URL, migrated_url: str
) -> None:
    engine = create_async_engine(pooled_url)
    async with create_saver(engine) as saver:

        async def use() -> None:
            for _ in range(3):
                await asyncio.gather(*(operate(saver) for _ in range(5)))

        with pytest.raises(DatabaseError, match=r"pooler.*URL instead.*connect_args=") as caught:
            await use()
    assert not isinstance(caught.value, DatabaseUnavailableError)
    await asyncio.sleep(0)
    await engine.dispose()
