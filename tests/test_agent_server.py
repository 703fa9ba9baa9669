"""LangGraph's Agent Server on our saver: real servers, ended in good order and by force."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client

from checkpointer import SchemaMissingError, create_saver, open_saver
from checkpointer.engine import URL_VARIABLE

EXAMPLE = Path(__file__).parent.parent / "examples" / "agent_server"
SECONDS = 60

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("agent server")]


def free_port() -> int:
    """A port of none of those that the system gives to whoever asks for any."""
    for port in range(20_000, 30_000):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("found no free port")


class AgentServer:
    """`langgraph dev` in a directory of its own, on a free port of this machine.

    Args:
        directory: Where the example was copied to; the server keeps its own files there.
        url: The database.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LANG", "OTEL"))}
        quiet = {"LANGSMITH_TRACING": "false", "LANGGRAPH_NO_VERSION_CHECK": "true"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser"),
                    *("--no-reload", "--host", "127.0.0.1", "--port", str(port)),
                ],
                cwd=directory,
                env=inherited | quiet | {"LANGGRAPH_CLI_NO_ANALYTICS": "1", URL_VARIABLE: url},
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/ok").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.said())

    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(SECONDS)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    kept = shutil.ignore_patterns(".*", "*.db*")  # of whoever has tried the example
    return Path(shutil.copytree(EXAMPLE, tmp_path / "server", ignore=kept))


@contextmanager
def serving(directory: Path, url: str, how: signal.Signals = signal.SIGKILL) -> Iterator[Any]:
    """A client of a server that is ended so; by force at once if the test fails."""
    server = AgentServer(directory, url)
    try:
        server.wait_until_ready()
        with get_sync_client(url=server.address, timeout=SECONDS) as client:
            yield client
        server.end(how)
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def say(client: Any, thread_id: str, text: str) -> str:
    """Run the graph; its answer."""
    given = {"messages": [{"role": "human", "content": text}]}
    state = client.runs.wait(thread_id, "agent", input=given)
    return str(state["messages"][-1]["content"])


def texts(state: Any) -> list[str]:
    return [message["content"] for message in state["values"]["messages"]]


FIRST = ["my name is Ada", "You told me 1 things, at first: my name is Ada"]
SECOND = ["good morning", "You told me 2 things, at first: my name is Ada"]


async def stored(url: str, thread_id: str) -> int:
    """How many checkpoints our own database has of a thread."""
    async with create_saver(url) as saver:
        return len([one async for one in saver.alist({"configurable": {"thread_id": thread_id}})])


async def test_a_thread_survives_restarts_of_the_server(directory: Path, migrated_url: str) -> None:
    with serving(directory, migrated_url, signal.SIGTERM) as client:
        thread_id = client.threads.create()["thread_id"]
        assert say(client, thread_id, FIRST[0]) == FIRST[1]

    with serving(directory, migrated_url, signal.SIGKILL) as client:
        assert client.threads.get(thread_id)["status"] == "idle"
        assert texts(client.threads.get_state(thread_id)) == FIRST
        assert say(client, thread_id, SECOND[0]) == SECOND[1]
        history = client.threads.get_history(thread_id)
        copy_id = client.threads.copy(thread_id)["thread_id"]
        assert texts(client.threads.get_state(copy_id)) == FIRST + SECOND
        client.threads.delete(copy_id)
    assert await stored(migrated_url, thread_id) == len(history) == 6
    assert await stored(migrated_url, copy_id) == 0

    # All that the server itself has kept.
    shutil.rmtree(directory / ".langgraph_api")
    with serving(directory, migrated_url) as client:
        assert client.threads.search() == []
        client.threads.create(thread_id=thread_id, graph_id="agent")
        assert texts(client.threads.get_state(thread_id)) == FIRST + SECOND
        assert client.threads.get_history(thread_id) == history
        assert (
            texts(client.threads.get_state(thread_id, checkpoint=history[3]["checkpoint"])) == FIRST
        )


@pytest.mark.parametrize("database_kind", ["postgresql"])
async def test_a_server_does_not_start_without_our_tables(
    directory: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, database_url)
    with pytest.raises(SchemaMissingError, match="run: checkpointer upgrade"):
        async with open_saver():
            pytest.fail("opened without tables")


async def test_a_file_is_made_when_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"sqlite:///{tmp_path / 'new.db'}")
    async with open_saver() as saver:
        assert [one async for one in saver.alist(None)] == []
    assert (tmp_path / "new.db").exists()
