"""Upgrades schemas, and tells what they are from the database's own catalog."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import sqlalchemy as sa

from checkpointer import schema
from checkpointer.database import Database
from checkpointer.engine import create_engine, resolve_url

Catalog = list[tuple[object, ...]]

SQLITE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"

POSTGRESQL = """
SELECT c.relkind::text, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
       a.attnotnull, l.collname, pg_get_expr(d.adbin, d.adrelid),
       CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid) END
FROM pg_class c
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = quote_ident(current_schema())::regnamespace
UNION ALL
SELECT contype::text, conname, conrelid::regclass::text, pg_get_constraintdef(oid),
       NULL, NULL, NULL, NULL
FROM pg_constraint WHERE connamespace = quote_ident(current_schema())::regnamespace
ORDER BY 1, 2, 3
"""


def open_database(url: str) -> Database:
    """A database on an engine of our own."""
    return Database(create_engine(resolve_url(url)), owned=True)


async def upgrade(url: str) -> str | None:
    """Upgrade a database; returns the revision that it has then."""
    database = open_database(url)
    try:
        await schema.upgrade(database)
        return await schema.current(database)
    finally:
        await database.dispose()


def execute(url: str, *statements: str) -> None:
    """Run and commit statements, past all of the package's own code."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database or "")) as connection:
            connection.executescript(";\n".join(statements))
    else:
        with psycopg.connect(_libpq(parsed), autocommit=True) as connection:
            connection.execute(";\n".join(statements).encode())


def query(url: str, statement: str) -> Catalog:
    """The rows of a query, past all of the package's own code."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database or "")) as connection:
            return connection.execute(statement).fetchall()
    with psycopg.connect(_libpq(parsed), autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


@contextmanager
def held(url: str, thread_id: str) -> Iterator[None]:
    """Within it, another process holds what a change of this thread, which is stored, needs."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database or "", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(_libpq(parsed)) as connection:
            select = "SELECT 1 FROM checkpointer_threads WHERE thread_id = %s FOR UPDATE"
            assert connection.execute(select, [thread_id]).fetchall()
            yield


def catalog(url: str) -> Catalog:
    """Every table, column, index and constraint of the database's, or of the URL's, schema."""
    sqlite = sa.make_url(url).get_backend_name() == "sqlite"
    rows = query(url, SQLITE if sqlite else POSTGRESQL)
    # SQLite keeps the spaces of the statement that made a table.
    return [tuple(" ".join(x.split()) if isinstance(x, str) else x for x in row) for row in rows]


def looking_at(url: str, schema: str) -> str:
    """The URL by which the functions here look at another schema than `public`."""
    name = '"{}"'.format(schema.replace('"', '""'))
    parsed = sa.make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
    return parsed.render_as_string(hide_password=False)


def empty_databases(create: Callable[[], str], count: int) -> list[str]:
    """The URLs of that many databases, no two the same, and each seen to be empty."""
    urls: list[str] = []
    while len(urls) < count:
        urls.append(create())
        # To look at it makes a SQLite file, so that the next one gets another name.
        assert catalog(urls[-1]) == []
    assert len(set(urls)) == count
    return urls


def stamp(url: str, revision: str) -> None:
    """Write a revision into the version table."""
    execute(url, f"UPDATE checkpointer_schema_version SET version_num = '{revision}'")


def _libpq(url: sa.URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
