"""What the README tells to run, runs."""

import inspect
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langgraph.graph import START, MessagesState, StateGraph
from sqlalchemy.ext.asyncio import create_async_engine

import checkpointer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(marker: str) -> str:
    [found] = [code for code in blocks("python") if marker in code]
    return found


def builder() -> StateGraph[Any, Any, Any, Any]:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", state["messages"][-1].content)]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("asyncio.run(main())", "You said: hello\n"),
        ("graph.invoke(", "1 loop\n0 loop\n-1 input\n"),
    ],
    ids=["quickstart", "sync"],
)
def test_the_scripts_print_what_they_should(tmp_path: Path, marker: str, expected: str) -> None:
    scripts = [code for code in blocks("python") if marker in code and "add_node" in code]
    script = tmp_path / "script.py"
    script.write_text(scripts[0])

    done = run(sys.executable, "-W", "error", str(script), cwd=tmp_path)

    assert (done.stderr, done.stdout) == ("", expected)
    assert (tmp_path / "checkpoints.db").exists()


async def test_the_postgresql_snippet_stores_a_thread(migrated_url: str) -> None:
    url = "postgresql+asyncpg://app:secret@db.example.com/app"
    code = block(f'async with create_saver("{url}")').replace(url, migrated_url)
    use = "    await graph.ainvoke({'messages': [('human', 'hi')]}, config)"
    names: dict[str, Any] = {
        "builder": builder(),
        "create_saver": checkpointer.create_saver,
        "config": {"configurable": {"thread_id": "1"}},
    }
    exec(f"async def main():\n{indent(code + use, '    ')}", names)  # noqa: S102 - the README's own

    await names["main"]()

    async with checkpointer.create_saver(migrated_url) as saver:
        assert await saver.aget_tuple(names["config"]) is not None


def test_the_deploy_commands_upgrade_a_database(database_url: str) -> None:
    [deploy] = [code for code in blocks("bash") if "export CHECKPOINTER_URL" in code]
    commands = [line.split("#")[0].split() for line in deploy.splitlines()[1:]]
    assert len(commands) == 3

    missing = run(*commands[-1], cwd=ROOT, CHECKPOINTER_URL=database_url)
    done = [run(*command, cwd=ROOT, CHECKPOINTER_URL=database_url) for command in commands]

    assert missing.returncode == 1
    assert [(one.returncode, one.stderr[-300:]) for one in done if one.returncode] == []


def test_the_hosts_filter_leaves_our_tables_alone() -> None:
    configured: dict[str, Any] = {}
    names = {
        "context": SimpleNamespace(configure=configured.update),
        "connection": None,
        "target_metadata": None,
    }

    exec(block("include_name"), names)  # noqa: S102 - the README's own

    include = configured["include_name"]
    assert not include("checkpointer_chunks", "table", {})
    assert include("users", "table", {})
    assert include("checkpointer_chunks", "column", {})


async def test_the_engine_snippet_makes_a_saver(migrated_url: str) -> None:
    engine = create_async_engine(migrated_url)
    names: dict[str, Any] = {"engine": engine, "create_saver": checkpointer.create_saver}

    exec(block("create_saver(engine)"), names)  # noqa: S102 - the README's own

    config = {"configurable": {"thread_id": "1"}}
    assert await names["saver"].aget_tuple(config) is None
    await names["saver"].aclose()
    await engine.dispose()


async def test_the_fastapi_application_answers(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHECKPOINTER_URL", migrated_url)
    names: dict[str, Any] = {"builder": builder()}
    exec(block("FastAPI(lifespan"), names)  # noqa: S102 - the README's own
    app = names["app"]

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test")
        )
        answers = [await client.post("/threads/7", params={"text": t}) for t in ("one", "two")]
        state = await app.state.graph.aget_state({"configurable": {"thread_id": "7"}})

    assert [answer.json() for answer in answers] == ["one", "two"]
    assert len(state.values["messages"]) == 4


def test_the_commands_of_make_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    assert targets == {"demo", "test", "lint", "bench-quick", "soak-quick"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make lint\nmake test\nmake soak-quick\n" in (ROOT / ".ci" / "run").read_text()


def test_the_options_are_those_of_the_function() -> None:
    parameters = inspect.signature(checkpointer.create_saver).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    signature = f"create_saver{inspect.Signature(bare)}"
    assert f"`{signature}`" in README.replace("\n", " ")
    for parameter in bare[1:]:
        assert f"\n- `{parameter.name}`: " in README


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
