"""The wheel, in an empty environment away from the checkout."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from schemas import catalog

from checkpointer.tables import metadata

CHECKOUT = Path(__file__).parent.parent

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]

Run = Callable[..., tuple[int, str, str]]


def succeed(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output)
    succeed(*build, cwd=CHECKOUT)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, with what it depends on, and no more."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    succeed(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=environment)
    return programs


@pytest.fixture
def run(programs: Path, tmp_path: Path, database_url: str) -> Run:
    """Runs a program of that environment in a directory of its own, on the test's database."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["CHECKPOINTER_URL"] = database_url
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(program: str, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_wheel_carries_the_migrations_and_the_type_marker(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    migrations = CHECKOUT / "migrations"
    shipped = {
        f"checkpointer/migrations/{path.relative_to(migrations).as_posix()}"
        for pattern in ("env.py", "script.py.mako", "README", "versions/*.py")
        for path in migrations.glob(pattern)
    }
    assert len(shipped) >= 4
    assert {"checkpointer/py.typed", "checkpointer/cli.py", *shipped} <= names
    assert not {name for name in names if "__pycache__" in name or name.startswith("tests")}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"checkpointer"}


@pytest.mark.parametrize("program", [("checkpointer",), ("python", "-m", "checkpointer")])
def test_its_command_upgrades_a_database(
    run: Run, database_url: str, program: tuple[str, ...]
) -> None:
    code, out, err = run(*program, "check")
    assert (code, out) == (1, "")
    assert "found no " in err
    assert run(*program, "current")[0] == 0
    code, out, err = run(*program, "upgrade", "--sql")
    assert (code, "CREATE TABLE checkpointer_threads" in out, err) == (0, True, "")
    code, out, err = run(*program, "upgrade")
    assert (code, out.endswith(": the schema is at revision 0001\n"), err) == (0, True, "")
    assert run(*program, "current")[1].endswith(": revision 0001\n")
    code, out, err = run(*program, "check")
    assert (code, out.endswith("expected revision 0001\n"), err) == (0, True, "")
    code, out, err = run(*program, "threads")
    assert (code, out) == (2, "")
    assert err.endswith("pip install 'langgraph-checkpoint-sqlalchemy[cli]'\n")
    assert set(metadata.tables) <= {str(row[1]) for row in catalog(database_url)}


USE = """
import asyncio
from pathlib import Path
from langgraph.checkpoint.base import empty_checkpoint
import checkpointer

async def use():
    async with checkpointer.create_saver() as saver:
        await saver.setup()
        config = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
        config = await saver.aput(config, empty_checkpoint(), {"step": 1}, {})
        print((await saver.aget_tuple(config)).metadata)

asyncio.run(use())
assert "site-packages" in Path(checkpointer.__file__).parts, checkpointer.__file__
"""


def test_its_saver_sets_a_database_up_and_uses_it(run: Run) -> None:
    assert run("python", "-c", USE) == (0, "{'step': 1}\n", "")
