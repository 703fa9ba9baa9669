"""Databases that are held, full, read-only or not as the URL says: a clear error, nothing torn."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from databases import PostgreSQLDatabases
from sqlalchemy.pool import AsyncAdaptedQueuePool
from storing import config, put, row_counts

from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    create_saver,
)

THREAD = config()

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


def path_of(url: str) -> Path:
    return Path(str(sa.make_url(url).database))


def libpq(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def refused(match: str) -> Iterator[None]:
    """Within here, the database refuses: told at once, without a word of trying again."""
    started = time.monotonic()
    with pytest.raises(DatabaseError, match=match) as caught:
        yield
    assert not isinstance(caught.value, DatabaseUnavailableError)
    assert "refused" in str(caught.value)
    assert time.monotonic() - started < 25  # less than the patience


@on_sqlite
@pytest.mark.parametrize("begin", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_file_that_another_process_holds_is_waited_for(
    migrated_url: str, begin: str
) -> None:
    async with create_saver(migrated_url, timeout=0.1) as saver:
        await put(saver, THREAD, "1")
        with closing(sqlite3.connect(path_of(migrated_url), isolation_level=None)) as other:
            other.execute(f"BEGIN {begin}")
            puts = [asyncio.create_task(put(saver, config(n), "1")) for n in range(5)]
            await asyncio.sleep(0.7)
            assert not any(one.done() for one in puts)
            other.execute("ROLLBACK")
            await asyncio.gather(*puts)
        assert len([one async for one in saver.alist(None)]) == 6


@on_sqlite
async def test_a_file_that_is_held_too_long_is_an_error(migrated_url: str) -> None:
    async with create_saver(migrated_url, timeout=0.1, patience=0.3) as saver:
        await put(saver, THREAD, "1")
        with closing(sqlite3.connect(path_of(migrated_url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseBusyError, match=r"held by others.*locked.*tried again"):
                await put(saver, THREAD, "2")
            assert await saver.aget_tuple(THREAD) is not None
        await put(saver, THREAD, "3")


async def test_a_table_that_is_locked_in_a_shared_cache_is_waited_for() -> None:
    name = f"file:{uuid4().hex}?mode=memory&cache=shared&uri=true"
    with closing(sqlite3.connect(name, uri=True, isolation_level=None)) as other:
        options = {"poolclass": AsyncAdaptedQueuePool}
        async with create_saver(f"sqlite:///{name}", engine_options=options) as saver:
            await put(saver, THREAD, "1")
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM checkpointer_writes")
            putting = asyncio.create_task(put(saver, THREAD, "2"))
            await asyncio.sleep(0.5)
            assert not putting.done()
            other.execute("COMMIT")
            await putting


async def test_a_pool_without_a_free_connection_is_busy(migrated_url: str) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    async with create_saver(migrated_url, patience=0.3, engine_options=options) as saver:
        await put(saver, THREAD, "1")
        async with saver.engine.connect():
            with pytest.raises(DatabaseBusyError, match=r"held by others.*limit"):
                await saver.aget_tuple(THREAD)
        assert await saver.aget_tuple(THREAD) is not None


READ_AND_PUT = """
import asyncio, json, sys
from checkpointer import DatabaseError, create_saver

async def main():
    at = {"configurable": {"thread_id": "a thread", "checkpoint_ns": ""}}
    async with create_saver(sys.argv[1]) as saver:
        found = await saver.aget_tuple(at)
        told = ""
        try:
            await saver.aput_writes(found.config, [("a", 1)], "task")
        except DatabaseError as exc:
            told = str(exc)
        verified = (await saver.averify()).whole
    print(json.dumps([found.checkpoint["id"], told, verified]))

asyncio.run(main())
"""


POWERLESS: Sequence[str] = (
    [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search",
    ]
    if os.geteuid() == 0
    else []
)
"""Before a command: files' modes hold for it, which root may ignore."""


@on_sqlite
@pytest.mark.parametrize("writable", ["file", "directory", "nothing"])
async def test_a_file_that_cannot_be_written_can_be_read(
    new_migrated_url: Callable[[], str], tmp_path: Path, writable: str
) -> None:
    url = new_migrated_url()
    async with create_saver(url) as saver:
        await put(saver, THREAD, "1", a=["x" * 1000] * 100)
    directory = tmp_path / "store"
    directory.mkdir()
    copied = directory / "checkpoints.db"
    shutil.copy(path_of(url), copied)
    copied.chmod(0o666 if writable == "file" else 0o444)
    directory.chmod(0o777 if writable == "directory" else 0o555)
    parameters = "" if writable == "directory" else "file:"
    location = f"{parameters}{copied}" + ("?mode=ro&immutable=1&uri=true" if parameters else "")
    done = subprocess.run(
        [*POWERLESS, sys.executable, "-c", READ_AND_PUT, f"sqlite:///{location}"],
        capture_output=True,
        text=True,
        check=False,
    )
    directory.chmod(0o755)
    assert done.returncode == 0, done.stderr
    found, told, verified = json.loads(done.stdout)
    assert found == "1"
    assert "refused" in told
    assert "readonly" in told
    assert "let this process write to the file and to its directory" in told
    assert verified


async def test_a_directory_that_is_not_there_is_named_with_its_mend(tmp_path: Path) -> None:
    async with create_saver(f"sqlite:///{tmp_path}/missing/x.db") as saver:
        with refused("unable to open.*create the file's directory"):
            await saver.aget_tuple(THREAD)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        problem = f"a small file system cannot be mounted here: {done.stderr.strip()}"
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S607


async def assert_whole_when_full(saver: AsyncSQLAlchemySaver, match: str, free: Path) -> None:
    """Put until the disk is full; what was acknowledged is there; with space, it goes on."""
    acknowledged = []
    with refused(match):
        for number in range(10_000):
            await put(saver, config(str(number)), "1", a=os.urandom(100_000))
            acknowledged.append(str(number))
    assert len(acknowledged) > 3
    found = [one.config.get("configurable", {})["thread_id"] async for one in saver.alist(None)]
    assert sorted(found) == sorted(acknowledged)
    assert (await saver.averify()).whole
    free.unlink()
    await put(saver, config("after"), "1", a=os.urandom(50_000))
    assert await saver.aget_tuple(config("after")) is not None
    assert (await saver.averify()).whole


async def test_a_full_disk_is_an_error_and_tears_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "4m") as disk:
        (disk / "reserve").write_bytes(os.urandom(1_000_000))
        async with create_saver(f"sqlite:///{disk}/checkpoints.db") as saver:
            await assert_whole_when_full(saver, r"full.*free space", disk / "reserve")


@pytest.fixture
async def on_small_disk(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """A database of PostgreSQL whose tables lie on a small disk, and that disk."""
    name = f"small_{uuid4().hex}"
    directory = Path("/tmp") / name  # noqa: S108 - the server's user has to get there
    with small_disk(directory, "24m") as disk, psycopg.connect(postgres_url, autocommit=True) as c:
        place = disk / "tables"
        place.mkdir()
        owner = c.execute(b"SHOW data_directory").fetchone()
        assert owner is not None
        data = Path(owner[0]).stat()
        os.chown(place, data.st_uid, data.st_gid)
        disk.chmod(0o755)
        c.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'".encode())
        c.execute(f"CREATE DATABASE {name} TABLESPACE {name}".encode())
        url = sa.make_url(postgres_url).set(drivername="postgresql+asyncpg", database=name)
        try:
            yield url.render_as_string(hide_password=False), disk
        finally:
            PostgreSQLDatabases(postgres_url).drop(str(url))
            c.execute(f"DROP TABLESPACE {name}".encode())
    directory.rmdir()


async def test_a_full_disk_of_a_server_is_an_error_and_tears_nothing(
    on_small_disk: tuple[str, Path],
) -> None:
    url, disk = on_small_disk
    async with create_saver(url) as saver:
        await saver.setup()
        (disk / "reserve").write_bytes(os.urandom(1_000_000))
        await assert_whole_when_full(saver, r"(?s)No space left.*free space", disk / "reserve")


@pytest.fixture
def role(postgres_url: str) -> Iterator[str]:
    """A role that may do nothing."""
    name = f"role_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield name
        connection.execute(f"DROP ROLE {name}".encode())


DRIVERS = ["asyncpg", "psycopg"]


def as_role(url: str, role: str, driver: str) -> str:
    parsed = sa.make_url(url).set(username=role, drivername=f"postgresql+{driver}")
    return parsed.render_as_string(hide_password=False)


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_role_that_may_only_read_reads(migrated_url: str, role: str, driver: str) -> None:
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "1", a=["x" * 1000] * 100)
    async with create_saver(as_role(migrated_url, role, driver)) as saver:
        with refused(r"permission denied.*GRANT"):
            await saver.aget_tuple(THREAD)
    before = row_counts(migrated_url)
    with psycopg.connect(libpq(migrated_url), autocommit=True) as connection:
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
        try:
            async with create_saver(as_role(migrated_url, role, driver)) as saver:
                assert await saver.aget_tuple(THREAD) is not None
                assert len([one async for one in saver.alist(None)]) == 1
                assert (await saver.averify()).whole
                for writing in (put(saver, THREAD, "2"), saver.adelete_thread("a thread")):
                    with refused(r"permission denied.*GRANT .*INSERT, UPDATE and DELETE"):
                        await writing
        finally:
            connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}".encode())
    assert row_counts(migrated_url) == before


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_only_reads_is_read(
    migrated_url: str, postgres_url: str, driver: str
) -> None:
    async with create_saver(migrated_url) as saver:
        await put(saver, THREAD, "1")
    name = sa.make_url(migrated_url).database
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {name} SET default_transaction_read_only TO on".encode()
        )
    url = sa.make_url(migrated_url).set(drivername=f"postgresql+{driver}")
    async with create_saver(url) as saver:
        assert await saver.aget_tuple(THREAD) is not None
        with refused("read-only.*needs the primary"):
            await put(saver, THREAD, "2")


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_database_that_is_not_there_is_named_with_its_mend(
    migrated_url: str, driver: str
) -> None:
    missing = sa.make_url(migrated_url).set(database="missing", drivername=f"postgresql+{driver}")
    async with create_saver(missing, patience=1) as saver:
        with pytest.raises(DatabaseError, match='database "missing" does not exist'):
            await saver.aget_tuple(THREAD)


@pytest.mark.parametrize(
    "options", [{"patience": -1}, {"patience": float("inf")}, {"patience": "1"}, {"timeout": 0}]
)
def test_times_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"found {next(iter(options))}=.*expected"):
        create_saver("sqlite://", **options)  # type: ignore[arg-type]
