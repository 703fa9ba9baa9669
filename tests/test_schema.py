"""The schema is held against the expected revision, and equals the declared tables."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from schemas import catalog, empty_databases, execute, open_database, query, stamp, upgrade

from checkpointer import schema
from checkpointer.database import Database
from checkpointer.errors import SchemaMissingError, SchemaOutdatedError, SchemaTooNewError
from checkpointer.tables import VERSION_TABLE, metadata

CHECKOUT = Path(__file__).parent.parent
MIGRATIONS = CHECKOUT / "migrations"
EIGHT = 8
ROUNDS = 3

STORAGE_OPTIONS = """
SELECT relname, reloptions FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL ORDER BY relname
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = open_database(database_url)
    yield database
    await database.dispose()


def test_revisions_are_the_scripts_in_their_order() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    walked = [script.revision for script in scripts.walk_revisions()]
    assert list(schema.REVISIONS) == walked[::-1]
    assert scripts.get_current_head() == schema.EXPECTED_REVISION


async def test_a_missing_schema_is_named_with_the_command_that_mends_it(database: Database) -> None:
    with pytest.raises(SchemaMissingError) as caught:
        await schema.verify(database)
    assert (caught.value.found, caught.value.expected) == (None, "0001")
    url = database.engine.url.render_as_string(hide_password=True)
    for part in ("no schema", "0001", "checkpointer upgrade", url):
        assert part in str(caught.value)


async def test_a_schema_that_was_downgraded_to_nothing_is_missing(database_url: str) -> None:
    await upgrade(database_url)
    execute(database_url, f"DELETE FROM {VERSION_TABLE}")
    database = open_database(database_url)
    with pytest.raises(SchemaMissingError):
        await schema.verify(database)
    await database.dispose()


async def test_verify_changes_nothing(database: Database, database_url: str) -> None:
    before = catalog(database_url)
    with pytest.raises(SchemaMissingError):
        await schema.verify(database)
    assert catalog(database_url) == before == []


async def test_an_older_schema_is_named_with_the_command_that_mends_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await schema.upgrade(database)
    monkeypatch.setattr(schema, "REVISIONS", ("0001", "0002"))
    monkeypatch.setattr(schema, "EXPECTED_REVISION", "0002")
    with pytest.raises(SchemaOutdatedError) as caught:
        await schema.verify(database)
    assert (caught.value.found, caught.value.expected) == ("0001", "0002")
    for part in ("0001", "0002", "checkpointer upgrade"):
        assert part in str(caught.value)


@pytest.mark.parametrize("action", [schema.verify, schema.ensure, schema.upgrade])
async def test_a_newer_schema_is_refused_and_left_alone(
    database_url: str, action: Callable[[Database], Awaitable[None]]
) -> None:
    await upgrade(database_url)
    stamp(database_url, "9999")
    before = catalog(database_url)
    database = open_database(database_url)
    with pytest.raises(SchemaTooNewError) as caught:
        await action(database)
    await database.dispose()
    assert (caught.value.found, caught.value.expected) == ("9999", "0001")
    for part in ("9999", "0001", "pip install --upgrade langgraph-checkpoint-sqlalchemy"):
        assert part in str(caught.value)
    assert catalog(database_url) == before
    assert query(database_url, f"SELECT * FROM {VERSION_TABLE}") == [("9999",)]


async def test_a_password_is_hidden_in_errors() -> None:
    database = open_database("postgresql://app:secret@localhost/app")
    with pytest.raises(SchemaMissingError) as caught:
        schema.require(database, None)
    assert "app:***@localhost" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_the_revisions_make_the_tables_that_the_code_declares(
    new_database_url: Callable[[], str], database_kind: str
) -> None:
    migrated, declared = empty_databases(new_database_url, 2)
    await upgrade(migrated)
    database = open_database(declared)
    await database.migrate(metadata.create_all)
    await database.dispose()
    of_version_table = {VERSION_TABLE, f"{VERSION_TABLE}_pkc"}

    def comparable(url: str) -> list[tuple[object, ...]]:
        return [row for row in catalog(url) if not of_version_table & set(row)]

    expected = comparable(declared)
    assert set(metadata.tables) <= {str(row[1]) for row in expected}
    assert comparable(migrated) == expected
    if database_kind == "postgresql":
        options = query(migrated, STORAGE_OPTIONS)
        assert options == query(declared, STORAGE_OPTIONS)
        assert options == [("checkpointer_threads", ["fillfactor=50"])]


async def test_autogenerate_finds_no_difference_to_the_declared_tables(database: Database) -> None:
    await schema.upgrade(database)

    def differences(connection: sa.Connection) -> list[object]:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    assert await database.inspect(differences) == []


OPEN = """
import asyncio, sys
import checkpointer

async def use():
    async with checkpointer.create_saver(sys.argv[1]) as saver:
        await saver.setup()
        assert await saver.aget_tuple({"configurable": {"thread_id": "1"}}) is None

asyncio.run(use())
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("alembic", "mako")))
"""


async def test_a_saver_on_a_database_at_the_newest_revision_does_not_import_alembic(
    database_url: str,
) -> None:
    await upgrade(database_url)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", OPEN, database_url],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def logging_state() -> tuple[object, ...]:
    application = logging.getLogger("an.application")
    return application.disabled, application.level, logging.root.level, list(logging.root.handlers)


async def test_upgrades_leave_the_applications_logging_alone(
    new_database_url: Callable[[], str],
) -> None:
    before = logging_state()
    await upgrade(new_database_url())
    assert logging_state() == before

    config = Config(CHECKOUT / "alembic.ini")
    config.cmd_opts = None
    config.set_main_option("script_location", str(MIGRATIONS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINTER_URL", new_database_url())
        await asyncio.to_thread(command.upgrade, config, "head")
    assert logging_state() == before
