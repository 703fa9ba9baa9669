"""The commands: `checkpointer` of the package, and `alembic` in a checkout."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from commanding import CHECKOUT, Run, hidden, process
from schemas import catalog, empty_databases, execute, query, stamp

from checkpointer import create_saver
from checkpointer.tables import VERSION_TABLE, metadata

VERSION_ROWS = f"SELECT version_num FROM {VERSION_TABLE}"


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


def test_upgrade_then_current_and_check_name_the_revision(run: Run, database_url: str) -> None:
    where = hidden(database_url)
    at_head = (0, f"{where}: the schema is at revision 0001\n", "")
    assert run("upgrade", "--url", database_url) == at_head
    assert run("current", "--url", database_url) == (0, f"{where}: revision 0001\n", "")
    checked = (0, f"{where}: found revision 0001, expected revision 0001\n", "")
    assert run("check", "--url", database_url) == checked
    assert run("upgrade", "--url", database_url) == at_head
    assert set(metadata.tables) <= {str(row[1]) for row in catalog(database_url)}


def test_the_revision_as_json(run: Run, database_url: str) -> None:
    def answer(command: str) -> tuple[int, object]:
        code, out, _ = run(command, "--url", database_url, "--json")
        return code, json.loads(out)

    where = {"database": hidden(database_url), "schema": None}
    assert answer("current") == (0, {**where, "revision": None})
    code, checked = answer("check")
    assert isinstance(checked, dict)
    assert "expected" in checked.pop("message")
    assert (code, checked) == (1, {**where, "ok": False, "found": None, "expected": "0001"})
    assert answer("upgrade") == (0, {**where, "before": None, "revision": "0001"})
    assert answer("upgrade") == (0, {**where, "before": "0001", "revision": "0001"})
    good = {"ok": True, "found": "0001", "expected": "0001", "message": None}
    assert answer("check") == (0, {**where, **good})


def test_looking_at_a_database_without_schema_changes_nothing(run: Run, database_url: str) -> None:
    is_file = database_url.startswith("sqlite")
    code, out, err = run("check", "--url", database_url)
    assert (code, out) == (1, "")
    found = "found no such file as" if is_file else "found no schema in"
    for part in (found, hidden(database_url), "checkpointer upgrade"):
        assert part in err
    missing = "no such file" if is_file else "no schema"
    current = (0, f"{hidden(database_url)}: {missing}\n", "")
    assert run("current", "--url", database_url) == current
    if is_file:
        assert not Path(sa.make_url(database_url).database or "").exists()
    assert catalog(database_url) == []


@pytest.mark.parametrize("form", ["file:{}?uri=true", "file:{}?mode=rwc&uri=true"])
def test_a_uri_of_a_file_that_is_not_there_makes_none(run: Run, tmp_path: Path, form: str) -> None:
    path = tmp_path / "with space.db"
    url = f"sqlite:///{form.format(str(path).replace(' ', '%20'))}"
    assert run("current", "--url", url)[1].endswith(": no such file\n")
    code, _, err = run("check", "--url", url)
    assert (code, "found no such file" in err) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert run("upgrade", "--url", url)[0] == 0
    assert run("check", "--url", url)[0] == 0
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_database_in_memory_is_always_there(run: Run) -> None:
    assert run("current", "--url", "sqlite://")[1].endswith(": no schema\n")


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
    assert run("current", "--url", database_url)[1].endswith(": revision 9999\n")
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
    assert run("current")[1] == f"{hidden(named)}: revision 0001\n"
    assert run("current", "--url", other)[1].startswith(f"{hidden(other)}: no ")


def test_without_a_url_the_file_checkpoints_db_is_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("upgrade")[0] == 0
    assert query(f"sqlite:///{tmp_path}/checkpoints.db", VERSION_ROWS) == [("0001",)]


def test_the_package_runs_as_a_module() -> None:
    done = process("current", "--url", "sqlite://")
    assert (done.returncode, done.stdout, done.stderr) == (
        *(0, "sqlite+aiosqlite://: no schema\n", ""),
    )


async def test_setup_of_a_saver_does_what_the_commands_do(run: Run, database_url: str) -> None:
    async with create_saver(database_url) as saver:
        await saver.setup()
        await saver.setup()
    checked = await asyncio.to_thread(run, "check", "--url", database_url)
    assert checked[0] == 0


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
    assert run("current", "--url", by_hand)[1].endswith(": no schema\n")


def test_the_sql_that_upgrade_prints_makes_the_schema(run: Run, database_url: str) -> None:
    code, out, err = run("upgrade", "--sql", "--url", database_url)
    assert (code, err) == (0, "")
    assert catalog(database_url) == []
    execute(database_url, out)
    assert run("check", "--url", database_url)[0] == 0


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_the_commands_take_a_schema(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("upgrade", "--sql", "--schema", "agents", "--url", database_url)
    assert (code, "CREATE SCHEMA IF NOT EXISTS agents" in out) == (0, True)
    assert run("upgrade", "--schema", "agents", "--url", database_url)[0] == 0
    code, out, _ = run("check", "--schema", "agents", "--url", database_url)
    assert (code, "schema 'agents': found revision 0001" in out) == (0, True)
    assert run("check", "--url", database_url)[0] == 1
    monkeypatch.setenv("CHECKPOINTER_SCHEMA", "agents")
    assert run("check", "--url", database_url)[0] == 0
    assert run("verify", "--url", database_url)[0] == 0


def test_alembic_says_what_is_wrong_with_a_url() -> None:
    done = alembic("-x", "url=nosuch://host/app", "upgrade", "head")
    assert done.returncode != 0
    assert "FAILED: found a database of the kind 'nosuch'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
