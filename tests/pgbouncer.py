"""PgBouncer before the tests' PostgreSQL."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from debian import PGBOUNCER

SERVER_CONNECTIONS: Final = 5
"""To each database: few, and another one for each transaction, so that what relies on the state of
one meets another."""

SETTINGS: Final = {
    "pool_mode": "transaction",
    "default_pool_size": SERVER_CONNECTIONS,
    "server_round_robin": 1,
    "max_client_conn": 1000,
    "auth_type": "any",
    "listen_port": 5432,
}


@contextmanager
def running(server: sa.URL, **settings: object) -> Iterator[sa.URL]:
    """Run a PgBouncer before a server.

    Args:
        server: The server, reached as its owner.
        settings: Of PgBouncer, beside or instead of `SETTINGS`.

    Yields:
        The same URL, through PgBouncer; any of the server's databases can be named in it.
    """
    found = PGBOUNCER.find()
    assert found is not None
    host = str(server.query.get("host", server.host))
    # The path of a unix socket may have about 100 characters.
    with tempfile.TemporaryDirectory(prefix="cp-") as name:
        directory = Path(name)
        options = SETTINGS | {"unix_socket_dir": directory} | settings
        if os.geteuid() == 0:
            # It refuses to run as root. The socket of a server of our own is for its owner only.
            owner = Path(host).owner() if host.startswith("/") else "nobody"
            shutil.chown(directory, owner)
            options["user"] = owner
        target = f"host={host} port={server.port or 5432} user={server.username}"
        if server.password:
            target += f" password={server.password}"
        lines = ["[databases]", f"* = {target}", "[pgbouncer]"]
        lines += [f"{key} = {value}" for key, value in options.items()]
        configuration = directory / "pgbouncer.ini"
        configuration.write_text("\n".join(lines))
        configuration.chmod(0o644)
        reached = sa.URL.create(
            server.drivername,
            username=server.username,
            database=server.database,
            query={"host": name},
        )
        with (directory / "log").open("w+") as log:
            process = subprocess.Popen(
                [found, "--quiet", configuration],
                env=PGBOUNCER.environment(found),
                stdout=log,
                stderr=log,
            )
            try:
                _wait_for(reached, process, Path(log.name))
                yield reached
            finally:
                process.terminate()
                process.wait()


def on_each(reached: sa.URL, statement: str) -> list[list[tuple[Any, ...]]]:
    """What a statement finds on each of the server connections behind a PgBouncer to a database.

    It makes those that are not there yet.
    """
    libpq = reached.set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as held:
        # A transaction each, all open at once, so that none is lent twice.
        clients = [held.enter_context(psycopg.connect(libpq)) for _ in range(SERVER_CONNECTIONS)]
        return [client.execute(statement.encode()).fetchall() for client in clients]


def url_through(pooler: sa.URL, url: str | sa.URL) -> sa.URL:
    """The URL of a database of the server, through a PgBouncer."""
    parsed = sa.make_url(url)
    return pooler.set(drivername=parsed.drivername, database=parsed.database)


def through(pooler: sa.URL, url: str | sa.URL) -> sa.URL:
    """The same, once PgBouncer has all its connections to the database."""
    reached = url_through(pooler, url)
    on_each(reached, "SELECT pg_backend_pid()")
    return reached


def _wait_for(url: sa.URL, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url.render_as_string(hide_password=False)).close()
        except psycopg.OperationalError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not answer:\n{log.read_text()}") from exc
            time.sleep(0.02)
        else:
            return
