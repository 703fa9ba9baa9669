"""An upgrade happens once, whoever asks at the same time, and whole or not at all."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from schemas import catalog, empty_databases, execute, open_database, query, upgrade
from sqlalchemy.ext.asyncio import create_async_engine

from checkpointer import schema
from checkpointer.database import Database
from checkpointer.errors import SchemaMissingError, SchemaOutdatedError
from checkpointer.tables import VERSION_TABLE

CHECKOUT = Path(__file__).parent.parent
MIGRATIONS = CHECKOUT / "migrations"
EIGHT = 8
ROUNDS = 3


# Engines of the user's have no hook of ours: SQLite's driver opens transactions by itself, and
# commits DDL at once.
ENGINES: dict[str, Callable[[str], Database]] = {
    "our engine": open_database,
    "the user's engine": lambda url: Database(create_async_engine(url), owned=True),
    "the user's engine in AUTOCOMMIT": lambda url: Database(
        create_async_engine(url, isolation_level="AUTOCOMMIT"), owned=True
    ),
    "the user's engine in SERIALIZABLE": lambda url: Database(
        create_async_engine(url, isolation_level="SERIALIZABLE"), owned=True
    ),
}


@pytest.fixture(params=ENGINES)
async def database(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    database = ENGINES[request.param](database_url)
    yield database
    await database.dispose()


def revise(directory: Path, revision: str, after: str, *body: str) -> None:
    lines = "\n    ".join(body)
    (directory / "versions" / f"{revision}.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = {revision!r}\ndown_revision = {after!r}\n"
        f"def upgrade():\n    {lines}\n"
    )


@pytest.fixture
def second_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with statements: from then on a revision 0002 of them is the expected one."""
    directory = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, directory, ignore=shutil.ignore_patterns("__pycache__"))

    def create(*body: str) -> None:
        revise(directory, "0002", "0001", *body)
        monkeypatch.setattr(schema, "_script_location", lambda: directory)
        monkeypatch.setattr(schema, "REVISIONS", ("0001", "0002"))
        monkeypatch.setattr(schema, "EXPECTED_REVISION", "0002")

    return create


async def test_first_use_upgrades_an_embedded_database_and_only_verifies_a_server(
    database: Database, database_kind: str
) -> None:
    if database_kind == "sqlite":
        await schema.ensure(database)
    else:
        with pytest.raises(SchemaMissingError):
            await schema.ensure(database)
        await schema.upgrade(database)
        await schema.ensure(database)
    await schema.verify(database)


async def test_first_use_upgrades_an_older_embedded_database_only(
    database: Database, database_kind: str, second_revision: Callable[..., None]
) -> None:
    await schema.upgrade(database)
    second_revision("op.create_table('checkpointer_more', sa.Column('a', sa.Integer))")
    if database_kind == "sqlite":
        await schema.ensure(database)
        assert await schema.current(database) == "0002"
    else:
        with pytest.raises(SchemaOutdatedError):
            await schema.ensure(database)
        assert await schema.current(database) == "0001"


@pytest.mark.parametrize("start", ["empty", "an older revision"])
async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    database: Database, database_url: str, start: str, second_revision: Callable[..., None]
) -> None:
    if start == "an older revision":
        await schema.upgrade(database)
        execute(
            database_url, "INSERT INTO checkpointer_segments VALUES ('thread', 1, 0, 4, 'data')"
        )
    found, before = await schema.current(database), catalog(database_url)
    changes = (
        "op.create_table('checkpointer_more', sa.Column('a', sa.Integer))",
        "op.execute('INSERT INTO checkpointer_more VALUES (1)')",
        "op.execute('DELETE FROM checkpointer_segments')",
        "op.drop_table('checkpointer_writes')",
    )
    second_revision(*changes, "raise RuntimeError('in the middle')")
    with pytest.raises(RuntimeError, match="in the middle"):
        await schema.upgrade(database)
    assert catalog(database_url) == before
    assert await schema.current(database) == found
    if start == "an older revision":
        assert query(database_url, "SELECT count(*) FROM checkpointer_segments") == [(1,)]

    # The same changes take effect once nothing fails, so they were really undone above.
    second_revision(*changes)
    await schema.upgrade(database)
    assert await schema.current(database) == "0002"
    assert query(database_url, "SELECT * FROM checkpointer_more") == [(1,)]


async def test_an_upgrade_that_is_cancelled_leaves_the_next_one_free(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    run_alembic = schema._run_alembic  # noqa: SLF001

    def cancelled(connection: sa.Connection) -> None:
        # On SQLite this runs in another thread, which goes on without its caller.
        loop.call_soon_threadsafe(tasks[0].cancel)
        run_alembic(connection)

    monkeypatch.setattr(schema, "_run_alembic", cancelled)
    tasks.append(asyncio.create_task(schema.upgrade(database)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    monkeypatch.undo()
    await schema.upgrade(database)
    await schema.verify(database)


async def test_eight_tasks_on_one_engine_upgrade_an_empty_database_at_once(
    database: Database, database_url: str
) -> None:
    await asyncio.gather(*(schema.upgrade(database) for _ in range(EIGHT)))
    await schema.verify(database)
    assert query(database_url, f"SELECT * FROM {VERSION_TABLE}") == [("0001",)]


async def test_eight_tasks_with_their_own_engines_upgrade_an_empty_database_at_once(
    new_database_url: Callable[[], str],
) -> None:
    for _ in range(ROUNDS):
        url = new_database_url()
        assert set(await asyncio.gather(*(upgrade(url) for _ in range(EIGHT)))) == {"0001"}


async def test_eight_tasks_upgrade_different_databases_at_once(
    new_database_url: Callable[[], str],
) -> None:
    urls = empty_databases(new_database_url, EIGHT)
    assert set(await asyncio.gather(*map(upgrade, urls))) == {"0001"}


def test_eight_event_loops_in_threads_upgrade_at_once(
    new_database_url: Callable[[], str],
) -> None:
    shared, *others = empty_databases(new_database_url, 1 + EIGHT // 2)
    urls = [shared] * (EIGHT // 2) + others
    start = threading.Barrier(EIGHT)

    def run(url: str) -> str | None:
        start.wait()
        return asyncio.run(upgrade(url))

    with ThreadPoolExecutor(EIGHT) as pool:
        assert set(pool.map(run, urls)) == {"0001"}


UPGRADE_EACH_LINE = """
import asyncio, sys
from alembic import command
from checkpointer import schema
from checkpointer.database import Database
from checkpointer.engine import create_engine, resolve_url

async def upgrade(url):
    database = Database(create_engine(resolve_url(url)), owned=True)
    await schema.upgrade(database)
    print(await schema.current(database), flush=True)
    await database.dispose()

print("ready", flush=True)
for line in sys.stdin:
    asyncio.run(upgrade(line.strip()))
"""


def test_eight_processes_upgrade_an_empty_database_at_once(
    new_database_url: Callable[[], str],
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE_EACH_LINE],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(EIGHT)
    ]
    urls = empty_databases(new_database_url, ROUNDS)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    # All of them start a round together, as near as the system lets them.
    for url in urls:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{url}\n")
            process.stdin.flush()
    for process in processes:
        answer, errors = process.communicate(timeout=120)
        assert (answer, errors, process.returncode) == ("0001\n" * ROUNDS, "", 0)
    for url in urls:
        assert query(url, f"SELECT * FROM {VERSION_TABLE}") == [("0001",)]
