"""Bytes that a saver's tables take in a database, on disk, while the saver is open."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa
from psycopg import sql

from checkpointer import owns_table

OFFICIAL_TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "writes")


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, an index, or the TOAST table that holds a PostgreSQL table's long values.

    Attributes:
        name: Its name, a TOAST table's with its table's.
        rows: How many rows a table has; `None` for the others.
        size: Bytes in the database; `None` where SQLite was built without `dbstat`.
    """

    name: str
    rows: int | None
    size: int | None


def measure(url: str) -> tuple[int, list[Relation]]:
    """Bytes in the database that `url` names, and what they hold."""
    return measure_sqlite(url) if url.startswith("sqlite") else measure_postgresql(url)


def path_of(url: str) -> str:
    """The file that a URL of SQLite names."""
    return sa.make_url(url).database or ""


def libpq_of(url: str) -> str:
    """A URL of PostgreSQL as psycopg takes it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _counted(name: str) -> bool:
    return owns_table(name) or name in OFFICIAL_TABLES


def measure_sqlite(url: str) -> tuple[int, list[Relation]]:
    """Bytes of the file and its WAL, and what they hold, once the WAL has gone into the file."""
    path = Path(path_of(url))
    with closing(sqlite3.connect(path)) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise RuntimeError(f"the WAL of {path} is in use, it could not be checkpointed")
        size = path.stat().st_size
        wal = path.with_name(f"{path.name}-wal")
        size += wal.stat().st_size if wal.exists() else 0
        named = connection.execute("SELECT name, tbl_name, type FROM sqlite_master").fetchall()
        relations = [
            Relation(
                name,
                _count(connection, name) if type_ == "table" else None,
                _pages_size(connection, name),
            )
            for name, table, type_ in named
            if _counted(table)
        ]
    return size, relations


def _count(connection: sqlite3.Connection, table: str) -> int:
    count: int = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]  # noqa: S608
    return count


def _pages_size(connection: sqlite3.Connection, name: str) -> int | None:
    try:
        found = connection.execute("SELECT sum(pgsize) FROM dbstat WHERE name = ?", [name])
    except sqlite3.OperationalError:
        return None
    size: int = found.fetchone()[0]
    return size


_RELATIONS: Final = """
WITH tables AS (
  SELECT oid, relname, nullif(reltoastrelid, 0) AS toast FROM pg_class
   WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
)
SELECT relname, relname, true,
       pg_table_size(oid) - coalesce(pg_total_relation_size(toast), 0) FROM tables
UNION ALL
SELECT relname, relname || ' (TOAST)', false, pg_total_relation_size(toast) FROM tables
 WHERE toast IS NOT NULL
UNION ALL
SELECT relname, indexrelid::regclass::text, false, pg_total_relation_size(indexrelid)
  FROM tables JOIN pg_index ON indrelid = oid
"""
_TABLE: Final = sql.SQL("SELECT count(*), pg_total_relation_size({}::regclass) FROM {}")


def measure_postgresql(url: str) -> tuple[int, list[Relation]]:
    """Bytes of the saver's tables with their indexes and TOAST tables, and each of these."""
    relations: list[Relation] = []
    total = 0
    with psycopg.connect(libpq_of(url)) as connection:
        for table, name, is_table, size in connection.execute(_RELATIONS).fetchall():
            if not _counted(table):
                continue
            rows = None
            if is_table:
                counting = _TABLE.format(sql.Literal(name), sql.Identifier(name))
                [(rows, with_indexes)] = connection.execute(counting).fetchall()
                total += with_indexes
            relations.append(Relation(name, rows, size))
    return total, relations
