"""Where Alembic runs our revisions, by one of three entries.

- On a connection in `config.attributes["connection"]`, within its transaction: how
  `checkpointer.schema` upgrades. Whoever hands it over holds the schema's lock.
- Offline, for `alembic upgrade head --sql`.
- On an engine of its own, for the `alembic` command.

No entry configures logging: `fileConfig` would turn the application's own loggers off.
"""

import asyncio
from typing import Any, Final, Literal

import sqlalchemy as sa
from alembic import context
from alembic.util import CommandError

from checkpointer.database import Database
from checkpointer.engine import create_engine, resolve_url
from checkpointer.errors import CheckpointerError
from checkpointer.tables import VERSION_TABLE, metadata, owns_table

NameKind = Literal[
    "schema",
    "table",
    "column",
    "index",
    "unique_constraint",
    "foreign_key_constraint",
    "check_constraint",
]


def include_name(name: str | None, kind: NameKind, parents: object) -> bool:
    """Leave the tables of an application that shares the database alone."""
    del parents
    return kind != "table" or owns_table(name)


OPTIONS: Final[dict[str, Any]] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "include_name": include_name,
    "compare_type": True,
    # SQLite's DDL is transactional as well, once the driver leaves BEGIN to us.
    "transactional_ddl": True,
    # SQLite can alter hardly anything of a table in place; elsewhere a batch is plain ALTER.
    "render_as_batch": True,
}


def migrate(connection: sa.Connection) -> None:
    """Run the revisions within the connection's transaction."""
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def migrate_offline(url: sa.URL) -> None:
    """Print the revisions' SQL."""
    context.configure(url=url, literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_online(url: sa.URL) -> None:
    """Lock the schema and run the revisions, in one transaction."""
    database = Database(create_engine(url), owned=True)

    def locked(connection: sa.Connection) -> None:
        database.dialect.lock_schema(connection)
        migrate(connection)

    try:
        await database.migrate(locked)
    finally:
        await database.dispose()


def main() -> None:
    """Choose the entry."""
    connection: sa.Connection | None = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    try:
        url = resolve_url(context.get_x_argument(as_dictionary=True).get("url"))
        if context.is_offline_mode():
            migrate_offline(url)
        else:
            asyncio.run(migrate_online(url))
    except CheckpointerError as exc:
        raise CommandError(str(exc)) from exc


main()
