"""The schema's revision: read it, hold it against the one that this version needs, upgrade.

The only module that imports Alembic, and only once there is something to upgrade.
"""

import asyncio
import shlex
from argparse import Namespace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, TextIO

import sqlalchemy as sa

from checkpointer.database import Database
from checkpointer.engine import URL_VARIABLE, shown
from checkpointer.errors import (
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from checkpointer.quoting import quoted
from checkpointer.tables import VERSION_TABLE

REVISIONS: Final = ("0001",)
"""All revisions in order, so that an older one is told from a newer one without Alembic."""

EXPECTED_REVISION: Final = "0001"
"""The revision that this version of the package needs."""

DISTRIBUTION: Final = "langgraph-checkpoint-sqlalchemy"

# Alembic's `context` and `op` are globals of the process: one upgrade at a time may use them,
# over all event loops and threads.
_alembic_in_use: Final = Lock()
_RETRY_SECONDS: Final = 0.01


async def current(database: Database) -> str | None:
    """The database's revision, or `None` where there is no schema. Changes nothing.

    Raises:
        DatabaseError: The database refused or failed.
    """
    return await database.inspect(partial(read_revision, schema=database.schema))


async def verify(database: Database) -> None:
    """Hold the database's revision against `EXPECTED_REVISION`. Changes nothing.

    Raises:
        SchemaMissingError: The database has no schema.
        SchemaOutdatedError: It is at an older revision.
        SchemaTooNewError: It is at a revision that this version does not know.
        DatabaseError: The database refused or failed.
    """
    require(database, await current(database))


def require(database: Database, found: str | None) -> None:
    """Hold a revision that was found against `EXPECTED_REVISION`.

    Raises:
        SchemaMissingError: There is none.
        SchemaOutdatedError: It is an older one.
        SchemaTooNewError: It is one that this version does not know.
    """
    if found == EXPECTED_REVISION:
        return
    url = where = shown(database.engine.url)
    expected = f"expected revision {EXPECTED_REVISION}"
    upgrade = "checkpointer upgrade"
    if database.schema is not None:
        upgrade += f" --schema {shlex.quote(database.schema)}"
        where = f"the PostgreSQL schema {quoted(database.schema)} of {url}"
    mend = f"run: {upgrade} --url {shlex.quote(url)}"
    if url != database.engine.url.render_as_string(hide_password=False):
        mend = f"set {URL_VARIABLE} to that URL with its password, and run: {upgrade}"
    if found is None:
        raise SchemaMissingError(
            f"found no schema in {url}, {expected}; {mend}"
            if database.schema is None
            else f"found no tables of ours in {where}, {expected}; {mend}",
            found=found,
            expected=EXPECTED_REVISION,
        )
    if found in REVISIONS:
        raise SchemaOutdatedError(
            f"found revision {found} in {where}, {expected}; {mend}",
            found=found,
            expected=EXPECTED_REVISION,
        )
    raise SchemaTooNewError(
        f"found revision {found} in {where}, {expected}, and this version knows nothing newer; "
        f"run: pip install --upgrade {DISTRIBUTION}",
        found=found,
        expected=EXPECTED_REVISION,
    )


async def ensure(database: Database) -> None:
    """What a saver does before its first use: upgrade an embedded database, verify a server's.

    Raises:
        SchemaMissingError: A server's database has no schema.
        SchemaOutdatedError: A server's database is at an older revision.
        SchemaTooNewError: It is at a revision that this version does not know.
        DatabaseError: The database refused or failed.
    """
    if database.dialect.upgrades_on_first_use:
        await upgrade(database)
    else:
        await verify(database)


async def upgrade(database: Database) -> None:
    """Bring the database to `EXPECTED_REVISION`, in one transaction: whole or not at all.

    Any number of processes, threads and tasks may upgrade the same database at once.

    Raises:
        SchemaTooNewError: It is at a revision that this version does not know.
        DatabaseError: The database refused or failed.
    """
    # Nothing goes back from the newest revision, so that finding it needs no lock.
    if await current(database) == EXPECTED_REVISION:
        return
    # Waiting for Alembic inside of the transaction could stop the event loop that the upgrade
    # under way needs; so the transaction ends, and is tried again. An event would know one loop.
    while not await database.migrate(partial(_upgrade_locked, database)):  # noqa: ASYNC110
        await asyncio.sleep(_RETRY_SECONDS)


def read_revision(connection: sa.Connection, schema: str | None) -> str | None:
    """The revision of the tables in a schema, or `None` where there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    # No option of the connection changes the schema of this kind of table.
    version = sa.table(VERSION_TABLE, sa.column("version_num", sa.String), schema=schema)
    revision: str | None = connection.scalar(sa.select(version.c.version_num))
    return revision


def _upgrade_locked(database: Database, connection: sa.Connection) -> bool:
    """Lock, then inspect, then upgrade. False if another upgrade has Alembic: try again."""
    database.dialect.lock_schema(connection)
    found = read_revision(connection, database.schema)
    if found == EXPECTED_REVISION:
        return True
    if found is not None and found not in REVISIONS:
        require(database, found)
    # Released in here: SQLite's thread goes on with this function when its caller is cancelled.
    if not _alembic_in_use.acquire(blocking=False):
        return False
    try:
        _run_alembic(connection)
    finally:
        _alembic_in_use.release()
    return True


def write_sql(url: sa.URL, schema: str | None, output: TextIO) -> None:
    """Write the SQL of all revisions, for an administrator who runs it by hand.

    Args:
        url: The database, which is not connected to.
        schema: The PostgreSQL schema of the tables.
        output: Where to write.
    """
    from alembic import command  # noqa: PLC0415

    named = [f"url={url.render_as_string(hide_password=False)}"]
    named += [] if schema is None else [f"schema={schema}"]
    config = _alembic_config(output_buffer=output, cmd_opts=Namespace(x=named))
    with _alembic_in_use:
        command.upgrade(config, EXPECTED_REVISION, sql=True)


def _run_alembic(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415

    config = _alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, EXPECTED_REVISION)


def _alembic_config(**options: Any) -> Any:
    from alembic.config import Config  # noqa: PLC0415

    # No ini file: its logging section would turn the application's own loggers off.
    config = Config(**options)
    config.set_main_option("script_location", str(_script_location()).replace("%", "%%"))
    return config


def _script_location() -> Path:
    """The revisions: inside the package where a wheel put them, else beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
