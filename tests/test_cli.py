"""The commands: `checkpointer` of the package, and `alembic` in a checkout."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from schemas import catalog, empty_databases, execute, query, stamp

from checkpointer import create_saver
from checkpointer.cli import main
from checkpointer.tables import VERSION_TABLE, metadata

CHECKOUT = Path(__file__).parent.parent
VERSION_ROWS = f"SELECT version_num FROM {VERSION_TABLE}"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a thread, where its event loop does not replace pytest's."""
    monkeypatch.delenv("CHECKPOINTER_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with ThreadPoolExecutor(1) as thread:
            code = thread.submit(main, arguments).result()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def alembic(
    *arguments: str, environment_url: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CHECKPOINTER_URL"}
    if environment_url is not None:
        environment["CHECKPOINTER_URL"] = environment_url
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def hidden(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def test_upgrade_then_current_and_check_name_the_revision(run: Run, database_url: str) -> None:
    at_head = (0, "the schema is at revision 0001\n", "")
    assert run("upgrade", "--url", database_url) == at_head
    assert run("current", "--url", database_url) == (0, "0001\n", "")
    checked = (0, "found revision 0001, expected revision 0001\n", "")
    assert run("check", "--url", database_url) == checked
    assert run("upgrade", "--url", database_url) == at_head
    assert set(metadata.tables) <= {str(row[1]) for row in catalog(database_url)}


def test_looking_at_a_database_without_schema_changes_nothing(run: Run, database_url: str) -> None:
    code, out, err = run("check", "--url", database_url)
    assert (code, out) == (1, "")
    for part in ("found no schema in", hidden(database_url), "expected revision 0001"):
        assert part in err
    assert "run: checkpointer upgrade" in err
    assert run("current", "--url", database_url) == (0, "none\n", "")
    if database_url.startswith("sqlite"):
        assert not Path(sa.make_url(database_url).database or "").exists()
    assert catalog(database_url) == []


def test_looking_at_an_applications_sqlite_file_leaves_every_byte(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "application.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    before = path.read_bytes()
    assert run("current", "--url", f"sqlite:///{path}")[0] == 0
    assert run("check", "--url", f"sqlite:///{path}")[0] == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_check_names_a_newer_revision_and_leaves_it(run: Run, database_url: str) -> None:
    run("upgrade", "--url", database_url)
    stamp(database_url, "9999")
    before = catalog(database_url)
    for command in ("check", "upgrade"):
        code, out, err = run(command, "--url", database_url)
        assert (code, out) == (1, "")
        assert "found revision 9999" in err
        assert "expected revision 0001" in err
        assert "pip install --upgrade langgraph-checkpoint-sqlalchemy" in err
    assert run("current", "--url", database_url) == (0, "9999\n", "")
    assert catalog(database_url) == before


def test_check_names_an_older_revision(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("upgrade", "--url", database_url)
    monkeypatch.setattr("checkpointer.schema.REVISIONS", ("0001", "0002"))
    monkeypatch.setattr("checkpointer.schema.EXPECTED_REVISION", "0002")
    code, out, err = run("check", "--url", database_url)
    assert (code, out) == (1, "")
    assert "found revision 0001" in err
    assert "expected revision 0002" in err
    assert "run: checkpointer upgrade" in err


def test_the_environment_names_the_database_and_the_option_goes_first(
    run: Run, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = empty_databases(new_database_url, 2)
    monkeypatch.setenv("CHECKPOINTER_URL", named)
    assert run("upgrade")[0] == 0
    assert run("current")[1] == "0001\n"
    assert run("current", "--url", other)[1] == "none\n"


def test_without_a_url_the_file_checkpoints_db_is_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("upgrade")[0] == 0
    assert query(f"sqlite:///{tmp_path}/checkpoints.db", VERSION_ROWS) == [("0001",)]


@pytest.mark.parametrize("command", ["upgrade", "current", "check"])
def test_a_server_that_is_not_there_is_named_without_password(run: Run, command: str) -> None:
    code, out, err = run(command, "--url", "postgresql://app:secret@127.0.0.1:1/app")
    assert (code, out) == (1, "")
    assert "app:***@127.0.0.1" in err
    assert "secret" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["upgrade", "current", "check"])
@pytest.mark.parametrize("url", ["nosuch://host/app", "sqlite+pysqlite:///x.db", "no url"])
def test_a_url_that_cannot_work_is_refused(run: Run, command: str, url: str) -> None:
    code, out, err = run(command, "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith("checkpointer: ")
    assert "expected" in err or "use sqlite+aiosqlite://" in err


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["check", "--nosuch"], ["upgrade", "0001"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: checkpointer" in capsys.readouterr().err


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("upgrade Bring the schema", "current Print the revision", "check Fail unless"):
        assert part in shown


def test_the_package_runs_as_a_module(database_url: str) -> None:
    def run_module(command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "checkpointer", command, "--url", database_url],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert run_module("check")[0] == 1
    assert run_module("upgrade") == (0, "the schema is at revision 0001\n")
    assert run_module("check")[0] == 0


async def test_setup_of_a_saver_does_what_the_commands_do(run: Run, database_url: str) -> None:
    async with create_saver(database_url) as saver:
        await saver.setup()
        await saver.setup()
    checked = await asyncio.to_thread(run, "check", "--url", database_url)
    assert checked == (0, "found revision 0001, expected revision 0001\n", "")


def test_alembic_upgrades_checks_and_downgrades(database_url: str) -> None:
    """All its commands, the URL from the environment."""

    def succeeds(*arguments: str) -> str:
        done = alembic(*arguments, environment_url=database_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    empty = catalog(database_url)
    assert empty == []
    succeeds("upgrade", "head")
    migrated = catalog(database_url)
    assert set(metadata.tables) <= {str(row[1]) for row in migrated}
    assert "No new upgrade operations" in succeeds("check")
    assert "0001 (head)" in succeeds("current")
    succeeds("downgrade", "base")
    left = {str(row[1]) for row in catalog(database_url)}
    assert left.isdisjoint(metadata.tables)
    assert query(database_url, VERSION_ROWS) == []
    succeeds("upgrade", "head")
    assert catalog(database_url) == migrated


def test_alembic_takes_the_url_from_its_option_before_the_environment(
    new_database_url: Callable[[], str],
) -> None:
    named, other = empty_databases(new_database_url, 2)
    done = alembic("-x", f"url={named}", "upgrade", "head", environment_url=other)
    assert done.returncode == 0, done.stderr
    assert query(named, VERSION_ROWS) == [("0001",)]
    assert catalog(other) == []


def test_alembic_check_sees_a_difference(run: Run, database_url: str) -> None:
    run("upgrade", "--url", database_url)
    execute(database_url, "ALTER TABLE checkpointer_writes ADD COLUMN more INTEGER")
    done = alembic("check", environment_url=database_url)
    assert done.returncode != 0
    assert "remove_column" in done.stderr + done.stdout


def test_the_sql_that_alembic_prints_makes_the_same_schema(
    run: Run, new_database_url: Callable[[], str]
) -> None:
    by_hand, migrated = empty_databases(new_database_url, 2)
    printed = alembic("upgrade", "head", "--sql", environment_url=by_hand)
    assert printed.returncode == 0, printed.stderr
    assert catalog(by_hand) == []
    execute(by_hand, printed.stdout)
    assert run("check", "--url", by_hand)[0] == 0
    assert "No new upgrade operations" in alembic("check", environment_url=by_hand).stdout
    run("upgrade", "--url", migrated)
    assert catalog(by_hand) == catalog(migrated)
    undo = alembic("downgrade", "head:base", "--sql", environment_url=by_hand)
    execute(by_hand, undo.stdout)
    assert run("current", "--url", by_hand) == (0, "none\n", "")


def test_alembic_says_what_is_wrong_with_a_url() -> None:
    done = alembic("-x", "url=nosuch://host/app", "upgrade", "head")
    assert done.returncode != 0
    assert "FAILED: found a database of the kind 'nosuch'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
