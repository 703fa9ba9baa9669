"""The examples that are services run: FastAPI under uvicorn, Celery with forked workers."""

import asyncio
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from schemas import query
from storing import NOTHING, row_counts

from checkpointer import create_saver

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def fastapi_app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, on the test's database."""
    monkeypatch.setenv("CHECKPOINTER_URL", database_url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("fastapi_app")


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which a real server runs with its lifespan."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the application did not start"
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def said(client: httpx.AsyncClient, thread_id: str, text: str) -> list[tuple[str, Any]]:
    """What a person says; the events of the answer."""
    where = f"/threads/{thread_id}/messages"
    async with client.stream("POST", where, json={"text": text}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        body = "".join([part async for part in response.aiter_text()])
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", body)
    return [(event, json.loads(data)) for event, data in found]


async def begun(client: httpx.AsyncClient, title: str) -> str:
    """A new conversation's id."""
    response = await client.post("/threads", json={"title": title})
    assert response.status_code == 201
    return str(response.json()["id"])


async def test_the_chat_service_streams_answers_and_remembers_them(fastapi_app: Any) -> None:
    async with served(fastapi_app.app) as client:
        trip = await begun(client, "A trip")
        events = await said(client, trip, "hello there")
        assert events == [("word", w) for w in ("You", "said:", "hello", "there")] + [("done", {})]

    async with served(fastapi_app.app) as client:  # the server was started again
        await said(client, trip, "again")
        found = (await client.get(f"/threads/{trip}")).json()
        assert [m["text"] for m in found["messages"]] == [
            "hello there",
            "You said: hello there",
            "again",
            "You said: again",
        ]
        assert (await client.get("/threads/nosuch")).status_code == 404
        assert (
            await client.post("/threads/nosuch/messages", json={"text": "x"})
        ).status_code == 404


async def test_the_chat_service_lists_conversations_by_pages(
    fastapi_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On SQLite, a thread's last activity is exact to a second.
    monkeypatch.setattr("checkpointer.puts.TOUCH_INTERVAL", timedelta(0))
    async with served(fastapi_app.app) as client:
        titles = ["one", "two", "three"]
        for title in titles:
            await said(client, await begun(client, title), f"in {title}")
        first = (await client.get("/threads", params={"limit": 2})).json()
        second = (await client.get("/threads", params={"limit": 2, "after": first["after"]})).json()

    assert [one["title"] for one in first["threads"] + second["threads"]] == titles[::-1]
    assert second["after"] is None
    assert all(one["checkpoints"] == 3 and one["stored_bytes"] for one in first["threads"])


async def test_the_chat_service_deletes_row_and_thread_together_or_not_at_all(
    fastapi_app: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(fastapi_app.app) as client:
        thread_id = await begun(client, "A trip")
        await said(client, thread_id, "hello")
        before = row_counts(database_url)

        saver = type(fastapi_app.app.state.service.saver)
        delete = saver.adelete_thread

        async def fails(self: Any, thread_id: str) -> None:
            await delete(self, thread_id)
            raise RuntimeError("after the thread was deleted")

        with monkeypatch.context() as patch:
            patch.setattr(saver, "adelete_thread", fails)
            patch.setattr("logging.root.disabled", True, raising=False)
            assert (await client.delete(f"/threads/{thread_id}")).status_code == 500
        assert row_counts(database_url) == before
        assert query(database_url, "SELECT title FROM conversations") == [("A trip",)]

        assert (await client.delete(f"/threads/{thread_id}")).status_code == 204
        assert row_counts(database_url) == NOTHING
        assert query(database_url, "SELECT title FROM conversations") == []
        assert (await client.delete(f"/threads/{thread_id}")).status_code == 404


@contextmanager
def worker(directory: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A Celery worker of two forked processes; its log."""
    log = directory / "worker.log"
    options = ("--concurrency=2", "--loglevel=INFO", "--without-mingle", "--without-gossip")
    command = (sys.executable, "-m", "celery", "--app=celery_over_files", "worker", *options)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output
        )
        try:
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


SEND = """
import celery_over_files
from celery_tasks import answer

for number in range(12):
    answer.apply_async((f"thread {number % 3}", "hi"), ignore_result=True)
"""


async def test_celery_workers_keep_a_saver_each(migrated_url: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "CHECKPOINTER_URL": migrated_url,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", EXAMPLES))),
        "PYTHONUNBUFFERED": "1",
    }
    # Sent before the worker starts: its broker reads files that are still being written.
    send = (sys.executable, "-W", "error", "-c", SEND)
    await asyncio.to_thread(subprocess.run, send, cwd=tmp_path, env=environment, check=True)
    with worker(tmp_path, environment) as log:
        async with asyncio.timeout(120):
            while len(re.findall(r" succeeded in ", text := log.read_text())) < 12:
                assert "Traceback" not in text, text
                await asyncio.sleep(0.1)

    assert len(set(re.findall(r"ForkPoolWorker-(\d+)\] Task .* succeeded", text))) == 2
    async with create_saver(migrated_url) as saver:
        for number in range(3):
            found = [
                one
                async for one in saver.alist({"configurable": {"thread_id": f"thread {number}"}})
            ]
            assert len(found) == 12, "four runs of three checkpoints each"
        assert (await saver.averify()).whole
