"""docs/cli.md and its pictures tell what the commands do and print today."""

import asyncio
import html
import importlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from commanding import CHECKOUT, Run
from storing import config, put

from checkpointer import AsyncSQLAlchemySaver

MEND = "run `make cli-reference` or `make screenshots`"

ARGUMENTS = {
    "show": ["1"],
    "history": ["1"],
    "diff": ["1", "1"],
    "export": ["1"],
    "prune": ["1", "--dry-run"],
    "delete": ["1", "--yes"],
}


@pytest.fixture
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of the programs in tools/."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    return importlib.import_module(request.param)


def words(picture: str) -> list[str]:
    """What a picture says, whatever it looks like."""
    texts = re.findall(r"<text [^>]*>(.*?)</text>", picture)
    return html.unescape(" ".join(texts)).split()


@pytest.mark.parametrize("tool", ["cli_reference"], indirect=True)
def test_the_page_is_what_the_commands_say(tool: ModuleType) -> None:
    assert (CHECKOUT / "docs" / "cli.md").read_text("utf-8") == tool.page(), MEND


@pytest.mark.parametrize("tool", ["screenshots"], indirect=True)
def test_the_pictures_are_what_the_commands_print(tool: ModuleType) -> None:
    with ThreadPoolExecutor(1) as thread:  # with an event loop of its own
        drawn = dict(thread.submit(lambda: list(tool.drawings())).result())
    stored = {path.stem: path.read_text("utf-8") for path in tool.DIRECTORY.glob("*.svg")}
    assert {name: words(one) for name, one in stored.items()} == {
        name: words(one) for name, one in drawn.items()
    }, MEND
    assert all("://" not in one.replace("http://www.w3.org/", "") for one in stored.values())


@pytest.mark.parametrize("tool", ["cli_reference"], indirect=True)
@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_the_page_tells_the_keys_of_each_document(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, tool: ModuleType, tmp_path: Path
) -> None:
    first = await put(saver, config("1"), "1", {"step": 0}, text="x")
    await saver.aput_writes(first, [("text", "y")], "task")
    await put(saver, first, "2", {"step": 1}, text="z")
    for name in tool.ORDER:
        if name == "import":
            continue  # what `copy` prints
        as_json = [] if name == "export" else ["--json"]
        moved = [migrated_url, f"sqlite:///{tmp_path}/other.db"]
        where = moved if name == "copy" else ["--url", migrated_url]
        arguments = (name, *ARGUMENTS.get(name, []), *as_json, *where)
        code, out, err = await asyncio.to_thread(run, *arguments)
        assert (code, err) == (0, "")
        found = json.loads(out.splitlines()[0] if name == "export" else out)
        assert set(found) <= set(tool.known_keys(name)), name
        listed = [one for one in found.values() if isinstance(one, list) and one]
        inner = {key for some in listed for one in some if isinstance(one, dict) for key in one}
        assert inner <= set(tool.known_keys(name)), name
