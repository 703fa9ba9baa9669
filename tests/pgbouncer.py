"""PgBouncer before the tests' PostgreSQL, and where its program comes from.

As a program, it fetches PgBouncer from Debian's or Ubuntu's packages, unless it is installed. It
unpacks them beside the virtual environment's own programs; it installs nothing into the system, and
needs no rights.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import sqlalchemy as sa

UNPACKED: Final = Path(sys.prefix) / "pgbouncer"

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


def program() -> Path | None:
    """PgBouncer's program: the installed one, or the one that was unpacked."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    installed = shutil.which("pgbouncer", path=path)
    unpacked = UNPACKED / "usr" / "sbin" / "pgbouncer"
    if installed:
        return Path(installed)
    return unpacked if unpacked.exists() else None


@contextmanager
def running(server: sa.URL, **settings: object) -> Iterator[sa.URL]:
    """Run a PgBouncer before a server.

    Args:
        server: The server, reached as its owner.
        settings: Of PgBouncer, beside or instead of `SETTINGS`.

    Yields:
        The same URL, through PgBouncer; any of the server's databases can be named in it.
    """
    found = program()
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
                [found, "--quiet", configuration], env=_environment(found), stdout=log, stderr=log
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


def _environment(found: Path) -> dict[str, str]:
    """Where the unpacked program finds its libraries; an installed one knows by itself."""
    if not found.is_relative_to(UNPACKED):
        return {**os.environ}
    libraries = sorted({str(path.parent) for path in UNPACKED.rglob("*.so*")})
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def _wait_for(url: sa.URL, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            psycopg.connect(url.render_as_string(hide_password=False)).close()
        except psycopg.OperationalError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not answer:\n{log.read_text()}") from exc
            time.sleep(0.02)
        else:
            return


def fetch(target: Path) -> None:
    """Unpack PgBouncer and its libraries, with package lists of our own.

    Those of the system may be missing or old, and changing them takes root.

    Raises:
        OSError: There is no `apt-get`.
        subprocess.CalledProcessError: The packages could not be fetched.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        top = Path(name)
        for folder in ("state/lists/partial", "cache/archives/partial", "packages", "unpacked"):
            (top / folder).mkdir(parents=True)
        options = {
            "Dir::State": top / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": top / "cache",
            # As root, apt would download as a user who may not enter this directory.
            "APT::Sandbox::User": "root",
        }
        apt = [f"-o{key}={value}" for key, value in options.items()]
        # Of several sources, one that fails need not be the one that has the packages.
        _run("apt-get", *apt, "-qq", "update", check=False)
        depends = _run("apt-cache", *apt, "depends", "pgbouncer", stdout=subprocess.PIPE).stdout
        libraries = re.findall(r"Depends: (lib(?!c6\b)\S+)", depends)
        packages = top / "packages"
        _run("apt-get", *apt, "-qq", "download", "pgbouncer", *libraries, cwd=packages)
        for package in packages.glob("*.deb"):
            _run("dpkg", "-x", package, top / "unpacked")
        (top / "unpacked").rename(target)


def _run(
    *command: str | Path, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, text=True, **options)


def main() -> None:
    """Fetch PgBouncer if it is not there. Without it, only its own tests cannot run."""
    if program() is not None:
        return
    try:
        fetch(UNPACKED)
    except (OSError, subprocess.CalledProcessError) as exc:
        sys.stderr.write(
            f"found no pgbouncer and no packages of it ({exc}), expected one of them; its tests "
            f"are skipped, and fail where CI is set; install pgbouncer to run them\n"
        )


if __name__ == "__main__":
    main()
