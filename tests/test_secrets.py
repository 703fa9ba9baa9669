"""No password in a log line, an error, an output or a repr, however a call ends."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa
from databases import postgres_server
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from storing import config, put
from test_factory import unused_port

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    SchemaMissingError,
    create_saver,
)
from checkpointer.cli import main
from checkpointer.commands.fallback import WITHOUT
from checkpointer.engine import URL_VARIABLE, shown

COMMANDS: Final = (*WITHOUT, "verify", "threads", "stats")
"""Commands that take a URL and need nothing else; `tests/test_cli_frame.py` tries all."""


MARK: Final = "3cr3t"
"""Part of every password here, and of nothing else."""

PASSWORDS: Final = {
    "plain": f"s{MARK}",
    "odd": f"s{MARK}@:/?#[]%&=+ '\"\\\u00fc%41-s{MARK}",
}
SECRET: Final = PASSWORDS["plain"]
CHECKOUT: Final = Path(__file__).parent.parent
DRIVERS: Final = ("asyncpg", "psycopg")
LOGGERS: Final = (
    None,
    *("checkpointer", "sqlalchemy", "alembic", "asyncio"),
    *("sqlalchemy.engine", "sqlalchemy.pool", "sqlalchemy.dialects", "aiosqlite", "psycopg"),
)


def hides(*texts: object) -> None:
    for text in texts:
        shown_ = text if isinstance(text, str) else repr(text)
        assert MARK not in shown_.lower(), shown_


def hides_error(error: BaseException | None) -> None:
    """Neither the error, nor what it has caused or hidden, holds a password."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        hides("".join(traceback.format_exception(one)), str(one), repr(one), one.args)
        waiting += [one.__cause__, one.__context__, getattr(one, "orig", None)]
        waiting += getattr(one, "exceptions", ())


def hides_repr(saver: AsyncSQLAlchemySaver) -> None:
    """Nothing that the saver consists of shows a password."""
    seen: set[int] = set()
    waiting: list[Any] = [saver, saver.engine, saver.engine.url, saver.engine.sync_engine]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        hides(repr(one), str(one))
        if type(one).__module__.startswith("checkpointer"):
            names = [name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ())]
            waiting += [*getattr(one, "__dict__", {}).values()]
            waiting += [getattr(one, name) for name in names if hasattr(one, name)]


@pytest.fixture(autouse=True)
def _nothing_is_heard(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """After each test, nothing logged or printed may hold a password. Warnings are errors."""
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, name)
    yield
    for record in caplog.records:
        hides(logging.Formatter().format(record), vars(record))
    hides(*capfd.readouterr())


async def outcome(make: Callable[[], AsyncSQLAlchemySaver]) -> BaseException | None:
    """Make and use a saver, in a loop that logs all it does; how that has failed."""
    loop = asyncio.get_running_loop()
    loop.set_debug(enabled=True)
    loop.slow_callback_duration = 0
    try:
        saver = make()
        hides_repr(saver)
        try:
            async with saver:
                await saver.setup()
                await put(saver, config(), "1", text="x")
                assert await saver.aget_tuple(config()) is not None
        finally:
            hides_repr(saver)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it must hide the password
        hides_error(exc)
        return exc
    return None


def encoded(password: str) -> str:
    return quote(password, safe="")


def in_userinfo(url: sa.URL, password: str) -> dict[str, Any]:
    return {"url_or_engine": url.set(password=password).render_as_string(hide_password=False)}


def in_parts(url: sa.URL, password: str) -> dict[str, Any]:
    return {"url_or_engine": url.set(password=password)}


def in_query(url: sa.URL, password: str) -> dict[str, Any]:
    text = url.set(username=None).render_as_string(hide_password=False)
    mark = "&" if url.query else "?"
    return {
        "url_or_engine": f"{text}{mark}user={url.username}&password=x&password={encoded(password)}"
    }


def in_connect_args(url: sa.URL, password: str) -> dict[str, Any]:
    return {"url_or_engine": url, "engine_options": {"connect_args": {"password": password}}}


def in_the_environment(url: sa.URL, password: str) -> dict[str, Any]:
    os.environ[URL_VARIABLE] = in_userinfo(url, password)["url_or_engine"]
    return {}


def in_an_engine(url: sa.URL, password: str) -> dict[str, Any]:
    return {"url_or_engine": create_async_engine(url.set(password=password))}


Place: TypeAlias = Callable[[sa.URL, str], dict[str, Any]]
"""Puts a password in its place; returns the arguments of `create_saver`."""

PLACES: Final[tuple[Place, ...]] = (
    in_userinfo,
    in_parts,
    in_query,
    in_connect_args,
    in_the_environment,
    in_an_engine,
)


def through(driver: str, url: sa.URL) -> sa.URL:
    return url.set(drivername=f"postgresql+{driver}")


async def dispose(options: dict[str, Any]) -> None:
    """Close the connections of an engine that the test itself has made."""
    if isinstance(engine := options.get("url_or_engine"), AsyncEngine):
        await engine.dispose()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "")


@pytest.fixture(scope="module")
def scram_url() -> Iterator[sa.URL]:
    """The admin's URL of a server that asks all others for their password."""
    with postgres_server() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("SHOW hba_file").fetchone()
            assert found is not None
            rules = "local all postgres trust\nlocal all all scram-sha-256\n"
            Path(found[0]).write_text(rules)
            connection.execute("SELECT pg_reload_conf()")
        yield sa.make_url(url)


@dataclass(frozen=True)
class Role:
    """A role that has to tell its password, and owns two empty databases.

    Attributes:
        url: Without the password, of the database that tests may upgrade.
        empty: The same of the other one.
    """

    password: str
    url: sa.URL
    empty: sa.URL


@pytest.fixture(scope="module")
def roles(scram_url: sa.URL) -> list[Role]:
    """One role for each of the passwords."""
    admin = scram_url.set(drivername="postgresql").render_as_string(hide_password=False)
    made = []
    with psycopg.connect(admin, autocommit=True) as connection:
        for kind, password in PASSWORDS.items():
            name, empty = sql.Identifier(kind), sql.Identifier(f"{kind} and empty")
            role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password))
            connection.execute(role)
            for database in (name, empty):
                made_by = sql.SQL("CREATE DATABASE {} OWNER {}").format(database, name)
                connection.execute(made_by)
            url = scram_url.set(username=kind, password=None, database=kind)
            made.append(Role(password, url, url.set(database=f"{kind} and empty")))
    return made


@pytest.mark.xdist_group("scram")
@pytest.mark.parametrize("driver", DRIVERS)
class TestServers:
    """PostgreSQL, through both drivers."""

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_right_password_works_and_is_not_shown(
        self, roles: list[Role], driver: str, place: Place
    ) -> None:
        for role in roles:
            options = place(through(driver, role.url), role.password)
            assert await outcome(lambda: create_saver(**options)) is None  # noqa: B023
            await dispose(options)

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_refused_password_is_not_shown(
        self, roles: list[Role], driver: str, place: Place
    ) -> None:
        for role in roles:
            options = place(through(driver, role.url), f"{role.password}{MARK}")
            error = await outcome(lambda: create_saver(**options, patience=0.1))  # noqa: B023
            assert isinstance(error, DatabaseError)
            assert "password" in str(error)
            assert str(role.url.username) in str(error)

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_database_that_is_not_there_is_named_without_it(
        self, roles: list[Role], driver: str, place: Place
    ) -> None:
        for role in roles:
            options = place(through(driver, role.url.set(database="nowhere")), role.password)
            error = await outcome(lambda: create_saver(**options, patience=0))  # noqa: B023
            assert isinstance(error, DatabaseError)
            assert "nowhere" in str(error)

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_server_that_is_not_there_is_named_without_it(
        self, driver: str, place: Place
    ) -> None:
        url = sa.make_url(f"postgresql+{driver}://nobody@127.0.0.1:{unused_port()}/d")
        for password in PASSWORDS.values():
            options = place(url, password)
            error = await outcome(lambda: create_saver(**options, patience=0.1))  # noqa: B023
            assert isinstance(error, DatabaseUnavailableError)
            assert "nobody" in str(error)

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_missing_schema_is_told_without_it(
        self, roles: list[Role], driver: str, place: Place
    ) -> None:
        for role in roles:
            options = place(through(driver, role.empty), role.password)
            async with create_saver(**options) as saver:
                with pytest.raises(SchemaMissingError, match="checkpointer upgrade") as caught:
                    await saver.aget_tuple(config())
            hides_error(caught.value)
            await dispose(options)

    @pytest.mark.parametrize(
        "query",
        [
            "sslpassword={}",
            "passfile=/{}",
            "nosuch={}",
            "options=-c%20nosuch%3D{}",
            "key={}",
            "krbsrvname={}&gsslib=gssapi",
            "sslkey=/{}&sslmode=disable",
        ],
    )
    async def test_what_else_may_be_secret_in_a_query_is_not_shown(
        self, scram_url: sa.URL, driver: str, query: str
    ) -> None:
        """Most of these drivers refuse; SQLAlchemy's own repr of a URL would show them."""
        text = through(driver, scram_url).set(username="nobody").render_as_string()
        url = f"{text}&{query.format(SECRET)}"
        with pytest.raises(Exception) as caught:  # noqa: PT011, PT012
            async with create_saver(url, patience=0) as saver:
                hides(repr(saver), str(saver), shown(saver.engine.url))
                assert "nobody" in repr(saver)
                await saver.setup()
        assert not isinstance(caught.value, AssertionError)
        hides_error(caught.value)

    async def test_a_saver_for_sync_calls_shows_none(self, driver: str) -> None:
        url = sa.make_url(f"postgresql+{driver}://nobody@127.0.0.1:{unused_port()}/d")

        def use() -> None:
            with create_saver(url.set(password=PASSWORDS["odd"]), patience=0) as saver:
                with pytest.raises(DatabaseUnavailableError) as caught:
                    saver.get_tuple(config())
                hides_error(caught.value)
                hides_repr(saver)

        await asyncio.to_thread(use)


WRONG_URLS: Final = (
    "",
    f"s{MARK}",
    f"u:s{MARK}@h/d",
    f"//u:s{MARK}@h/d",
    f"://u:s{MARK}@h/d",
    f"postgresql:u:s{MARK}@h/d",
    f"postgresql//u:s{MARK}@h/d",
    f" postgresql://u:s{MARK}@h/d",
    f"'postgresql://u:s{MARK}@h/d'",
    f"{URL_VARIABLE}=postgresql://u:s{MARK}@h/d",
    f"jdbc:postgresql://h/d?user=u&password=s{MARK}",
    f"postgresql://u:s{MARK}@h:port/d",
    f"postgresql://u:s{MARK}@h:1,g:2/d",
    f"postgresql://u:p@s{MARK}@h/d",
    f"postgresql://u:p@s/{MARK}@h/d",
    f"postgresql://u:p@:{MARK}@h/d",
    f"postgresql://u:p@s:{MARK}@h:5432/d",
    f"postgresql://u:p@s?{MARK}@h/d",
    f"postgresql://me@tenant:p@s{MARK}@h/d",
    f"postgresql://u:p@/s{MARK}@/d?host=/tmp",
    f"mysql://u:s{MARK}@h/d",
    f"postgresql+nosuch://u:s{MARK}@h/d",
    f"postgresql+psycopg2://u:s{MARK}@h/d",
    f"mysql://h/d?password=s{MARK}",
    f"sqlite://u:s{MARK}@h/x.db",
    f"sqlite://x.db?key=s{MARK}",
    f"sqlite://h/x.db?key=s{MARK}&uri=true",
)


@pytest.mark.parametrize("number", range(len(WRONG_URLS)))
class TestWrongURLs:
    """What is no URL, or none that can work, is refused without quoting its password."""

    @pytest.mark.parametrize("whence", ["argument", "environment"])
    def test_it_is_refused(self, monkeypatch: pytest.MonkeyPatch, number: int, whence: str) -> None:
        url = WRONG_URLS[number]
        if whence == "environment":
            if not url:
                pytest.skip("an empty variable is as good as none")
            monkeypatch.setenv(URL_VARIABLE, url)
        with pytest.raises(ConfigurationError, match="expected") as caught:
            create_saver(url if whence == "argument" else None)
        hides_error(caught.value)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_the_commands_refuse_it(
        self, capfd: pytest.CaptureFixture[str], number: int, command: str
    ) -> None:
        code, out, err = run(capfd, command, "--url", WRONG_URLS[number])
        assert (code, out) == (2, "")
        assert "expected" in err
        assert "Traceback" not in err


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in a thread, where its event loop does not replace pytest's."""
    with ThreadPoolExecutor(1) as thread:
        code = thread.submit(main, arguments).result()
    out, err = capfd.readouterr()
    hides(out, err)
    return code, out, err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@tenant:p@h/d",
        "postgresql+psycopg://u:p@h/d?application_name=a@b",
        "postgresql://u:p%40@h/d%40",
        "postgresql://u@h/d@",
        "sqlite:////home/me@tenant/x.db",
        "sqlite:///a:b@c/x.db",
    ],
)
def test_an_at_sign_in_its_place_is_taken(url: str) -> None:
    given, used = sa.make_url(url), create_saver(url).engine.url
    assert (used.username, used.password, used.host, used.database) == (
        *(given.username, given.password, given.host, given.database),
    )


WRONG_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "unknown": {"nosuch": SECRET},
    "connect_args": {"connect_args": {"password": SECRET, "nosuch": SECRET}},
    "not connect_args": {"connect_args": SECRET},
    "password of another type": {"connect_args": {"password": {SECRET: SECRET}}},
    "poolclass": {"poolclass": SECRET},
    "plugins": {"plugins": [SECRET]},
}


@pytest.mark.xdist_group("scram")
@pytest.mark.parametrize("kind", WRONG_OPTIONS)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_options_that_cannot_work_are_refused_without_their_values(
    roles: list[Role], driver: str, kind: str
) -> None:
    url = through(driver, roles[0].url)
    error = await outcome(lambda: create_saver(url, engine_options=WRONG_OPTIONS[kind], patience=0))
    assert error is not None


async def threads_end() -> None:
    """Wait for aiosqlite's threads of connections that failed: they still need the event loop."""
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)


class TestSQLite:
    """Keys of encrypted files stand in a URI's query."""

    async def test_a_key_is_not_shown(self, tmp_path: Path) -> None:
        url = f"sqlite:///file:{tmp_path}/x.db?key={SECRET}&uri=true"
        saver = create_saver(url)
        hides(repr(saver), str(saver), saver)
        assert "x.db" in repr(saver)
        async with saver:
            await put(saver, config(), "1", text="x")
        assert "x.db" in {path.name for path in tmp_path.iterdir()}

    @pytest.mark.parametrize(
        "file", ["nosuch/x.db?key={}&uri=true", "x?mode=ro&hexkey={}&uri=true"]
    )
    async def test_a_file_that_cannot_be_opened_is_told_without_it(
        self, tmp_path: Path, file: str
    ) -> None:
        async with create_saver(f"sqlite:///file:{tmp_path}/{file.format(SECRET)}") as saver:
            with pytest.raises(DatabaseError) as caught:
                await saver.aget_tuple(config())
        await threads_end()
        hides_error(caught.value)
        hides(repr(saver))

    async def test_a_key_in_the_name_of_the_file_is_not_shown(self, tmp_path: Path) -> None:
        name = f"file:{tmp_path}/nosuch/x.db?mode=ro&key={SECRET}"
        url = sa.URL.create("sqlite+aiosqlite", database=name, query={"uri": "true"})
        async with create_saver(url) as saver:
            with pytest.raises(DatabaseError, match=r"x\.db") as caught:
                await saver.aget_tuple(config())
        await threads_end()
        hides_error(caught.value)
        hides(repr(saver))

    @pytest.mark.parametrize("command", COMMANDS)
    def test_the_commands_do_not_show_it(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str
    ) -> None:
        url = f"sqlite:///file:{tmp_path}/x.db?key={SECRET}&uri=true"
        run(capfd, command, "--url", url)
        run(capfd, "upgrade", "--url", url)
        assert run(capfd, command, "--url", url)[0] == 0


WRONG_USAGE: Final = (
    [f"postgresql://u:{SECRET}@h/d"],
    ["check", f"postgresql://u:{SECRET}@h/d"],
    ["check", "--ulr", f"postgresql://u:{SECRET}@h/d"],
    ["check", f"--ulr=postgresql://u:{SECRET}@h/d"],
    ["--url", f"postgresql://u:{SECRET}@h/d", "check"],
    [f"--url=postgresql://u:{SECRET}@h/d", "check"],
    ["check", f"--={SECRET}"],
    ["check", f"--help={SECRET}"],
    ["check", f"-h{SECRET}"],
    ["check", f"-{SECRET}"],
    ["check", "--password", SECRET],
    ["check", "--url", "x", PASSWORDS["odd"]],
    [PASSWORDS["odd"]],
    ["verify", "--thread", "x", f"it's \\ {SECRET}\n"],
)


@pytest.mark.parametrize("number", range(len(WRONG_USAGE)))
def test_a_wrong_usage_is_told_without_values(
    capfd: pytest.CaptureFixture[str], number: int
) -> None:
    code, out, err = run(capfd, *WRONG_USAGE[number])
    assert (code, out) == (2, "")
    assert "checkpointer: " in err


def test_a_wrong_usage_names_what_can_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    url = f"postgresql://u:{SECRET}@h/d"
    for arguments, part in {
        ("check", "--ulr=x"): "No such option: --ulr. Did you mean --url?",
        ("check", f"--ulr={url}"): "No such option: --ulr. Did you mean --url?",
        ("chec",): "No such command 'chec'. Did you mean 'check'?",
        (url,): "No such command '***'",
        ("verify", "check"): "unexpected extra argument(s) (check)",
        ("verify", url): "unexpected extra argument(s) (***)",
        ("verify", f"pa ss@{SECRET}"): "unexpected extra argument(s) (***)",
        ("history", "x", "--limit", url): "Invalid value for '--limit'",
    }.items():
        code, _, err = run(capfd, *arguments)
        assert code == 2
        assert part in err


@pytest.mark.xdist_group("scram")
class TestCommands:
    """`checkpointer` and `alembic`."""

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("driver", DRIVERS)
    def test_no_command_shows_a_password(
        self, capfd: pytest.CaptureFixture[str], roles: list[Role], driver: str, command: str
    ) -> None:
        away = sa.make_url(f"postgresql+{driver}://u@127.0.0.1:{unused_port()}/d")
        for place in (in_userinfo, in_query):
            for role in roles:

                def with_url(url: sa.URL, password: str, command: str = command) -> int:
                    text = place(url, password)["url_or_engine"]  # noqa: B023
                    return run(capfd, command, "--url", text)[0]

                url = through(driver, role.url)
                assert with_url(url, role.password, "upgrade") == 0
                assert with_url(url, role.password) == 0
                assert with_url(url, f"{role.password}{MARK}") == 1
                assert with_url(url.set(database="nowhere"), role.password) == 1
                assert with_url(away, role.password) == 1
                if command != "upgrade":
                    missing = with_url(through(driver, role.empty), role.password)
                    assert missing == (0 if command == "current" else 1)

    def test_no_process_shows_a_password(self, roles: list[Role]) -> None:
        """With all warnings and asyncio's debug log."""
        role = roles[-1]

        def urls(url: sa.URL) -> Iterator[str]:
            for password in (role.password, f"{role.password}{MARK}"):
                yield in_userinfo(url, password)["url_or_engine"]

        right, wrong = urls(through("asyncpg", role.url))
        other, _ = urls(through("psycopg", role.url))
        missing, _ = urls(role.empty)
        nowhere, _ = urls(sa.make_url(f"postgresql://u@127.0.0.1:{unused_port()}/d"))
        no_url = f"postgresql://u:p@{SECRET}@h/d"
        for works, variable, *arguments in (
            (True, right, "alembic", "upgrade", "head"),
            (True, wrong, "alembic", "-x", f"url={other}", "current", "--verbose"),
            (True, right, "alembic", "upgrade", "head", "--sql"),
            (False, wrong, "alembic", "check"),
            (False, nowhere, "alembic", "upgrade", "head"),
            (False, right, "alembic", "-x", f"url={no_url}", "upgrade", "head"),
            (False, missing, "checkpointer", "verify"),
        ):
            ended = subprocess.run(
                [sys.executable, "-W", "always", "-m", *arguments],
                cwd=CHECKOUT,
                env=os.environ | {URL_VARIABLE: variable, "PYTHONASYNCIODEBUG": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            hides(ended.stdout, ended.stderr)
            assert (ended.returncode == 0) is works, (arguments, ended.stderr)
            assert "Traceback" not in ended.stderr


def test_a_saver_says_which_database_it_works_on() -> None:
    assert repr(create_saver("sqlite:///x.db")) == (
        "<AsyncSQLAlchemySaver on sqlite+aiosqlite:///x.db>"
    )
    saver = create_saver(f"postgres://u:{SECRET}@h:5433/d?sslmode=require&passfile=x")
    assert repr(saver) == (
        "<AsyncSQLAlchemySaver on postgresql+asyncpg://u:***@h:5433/d?passfile=hidden&ssl=require>"
    )
    assert repr(saver.with_allowlist([])) == repr(saver)


def test_a_password_of_a_query_is_given_to_the_driver() -> None:
    for driver in DRIVERS:
        url = create_saver(f"postgresql+{driver}://a:b@h/d?user=u&password=x&password=y").engine.url
        assert (url.username, url.password, dict(url.query)) == ("u", "y", {})


def test_the_checks_of_this_module_find_a_password() -> None:
    def fail() -> None:
        try:
            int(SECRET)
        except ValueError:
            raise CheckpointerError("x") from None

    with pytest.raises(CheckpointerError) as caught:
        fail()
    with pytest.raises(AssertionError):
        hides_error(caught.value)
    with pytest.raises(AssertionError):
        hides([SECRET])
