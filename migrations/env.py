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
from sqlalchemy.schema import CreateSchema

from checkpointer.database import Database
from checkpointer.dialects import dialect_named
from checkpointer.engine import create_engine, resolve_schema, resolve_url
from checkpointer.errors import CheckpointerError
from checkpointer.execution import schema_of
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


OPTIONS: Final[dict[str, Any]] = {
    "version_table": VERSION_TABLE,
    "compare_type": True,
    # SQLite's DDL is transactional as well, once the driver leaves BEGIN to us.
    "transactional_ddl": True,
    # SQLite can alter hardly anything of a table in place; elsewhere a batch is plain ALTER.
    "render_as_batch": True,
}


def options_for(schema: str | None, *, default: str | None = None) -> dict[str, Any]:
    """What Alembic is told of our tables.

    Args:
        schema: Where they stand.
        default: What the database calls the schema that needs no name.
    """
    # Autogenerate, too, finds the default schema under no name.
    compared = None if schema == default else schema

    def include_name(name: str | None, kind: NameKind, parents: object) -> bool:
        """Leave the tables of an application that shares the database alone."""
        del parents
        return name == compared if kind == "schema" else kind != "table" or owns_table(name)

    declared = metadata
    if compared is not None:
        declared = sa.MetaData(naming_convention=metadata.naming_convention)
        for table in metadata.tables.values():
            table.to_metadata(declared, schema=compared)
    return OPTIONS | {
        "target_metadata": declared,
        "version_table_schema": compared,
        "include_name": include_name,
        "include_schemas": compared is not None,
    }


def migrate(connection: sa.Connection) -> None:
    """Run the revisions within the connection's transaction, in the schema of its tables."""
    schema = schema_of(connection)
    # Looked for first: a role may work in a schema that is there without the right to make one.
    if schema is not None and not sa.inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema, if_not_exists=True))
    default = connection.dialect.default_schema_name
    context.configure(connection=connection, **options_for(schema, default=default))
    with context.begin_transaction():
        context.run_migrations()


def migrate_offline(url: sa.URL, schema: str | None) -> None:
    """Print the revisions' SQL."""
    context.configure(url=url, literal_binds=True, **options_for(schema))
    with context.begin_transaction():
        if schema is not None:
            context.execute(CreateSchema(schema, if_not_exists=True))
        context.run_migrations()


async def migrate_online(url: sa.URL, schema: str | None) -> None:
    """Lock the schema and run the revisions, in one transaction."""
    database = Database(create_engine(url, schema=schema), owned=True, patience=0)

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
        given = context.get_x_argument(as_dictionary=True)
        url = resolve_url(given.get("url"))
        dialect = dialect_named(url.get_backend_name())
        schema = resolve_schema(given.get("schema"), dialect, chosen="url" in given)
        if context.is_offline_mode():
            migrate_offline(url, schema)
        else:
            asyncio.run(migrate_online(url, schema))
    except CheckpointerError as exc:
        raise CommandError(str(exc)) from exc


main()
