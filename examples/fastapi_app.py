"""A chat service: streamed answers, a list of conversations, deleting one with all that it left.

    uvicorn --app-dir examples fastapi_app:app
    curl localhost:8000/threads --json '{"title": "A trip"}'
    curl --no-buffer localhost:8000/threads/ID/messages --json '{"text": "hello"}'

The application has one table of its own, in the same database as the checkpoints: the file
`chat.db`, or what `CHECKPOINTER_URL` names. One engine serves both, so that one transaction can.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from uuid import uuid4

import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from checkpointer import AsyncSQLAlchemySaver, create_saver

DEFAULT_URL: Final = "sqlite:///chat.db"

metadata = sa.MetaData()
conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # the thread's id as well
    sa.Column("title", sa.String(200), nullable=False),
)

# --- The graph ----------------------------------------------------------------------------------


async def answer(state: MessagesState) -> dict[str, Any]:
    """Plays a chat model: says word by word what it was told."""
    write = get_stream_writer()
    words = f"You said: {state['messages'][-1].content}".split()
    for word in words:
        write(word)
        await asyncio.sleep(0)  # a model would be waited for here
    return {"messages": [("ai", " ".join(words))]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")


# --- The application: what lives as long as it does ---------------------------------------------


class Service:
    """What all requests share."""

    def __init__(self, saver: AsyncSQLAlchemySaver) -> None:
        self.saver = saver
        self.graph = builder.compile(checkpointer=saver)
        self.sessions = async_sessionmaker(saver.engine)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the saver before the first request, and close it after the last one."""
    async with create_saver(os.environ.get("CHECKPOINTER_URL") or DEFAULT_URL) as saver:
        # So that the example starts by itself. A deploy runs `checkpointer upgrade`, and the
        # application's own Alembic, before it starts the servers.
        await saver.setup()
        async with saver.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        app.state.service = Service(saver)
        yield


app = FastAPI(lifespan=lifespan)


def service_of(request: Request) -> Service:
    """The service of the application that a request is for."""
    service: Service = request.app.state.service
    return service


Shared: TypeAlias = Annotated[Service, Depends(service_of)]


# --- What it answers ----------------------------------------------------------------------------


class NewThread(BaseModel):
    """What a conversation is made of."""

    title: str


class NewMessage(BaseModel):
    """What a person says."""

    text: str


class Thread(BaseModel):
    """A conversation in a list."""

    id: str
    title: str | None
    updated_at: datetime
    checkpoints: int
    stored_bytes: int


class Threads(BaseModel):
    """A page of conversations, and where the next one starts."""

    threads: list[Thread]
    after: str | None


def config_of(thread_id: str) -> RunnableConfig:
    """What names a thread to LangGraph."""
    return {"configurable": {"thread_id": thread_id}}


async def title_of(session: AsyncSession, thread_id: str) -> str:
    """The title of a conversation; an error 404 if there is none."""
    title = await session.scalar(
        sa.select(conversations.c.title).where(conversations.c.id == thread_id)
    )
    if title is None:
        raise HTTPException(404, f"found no thread {thread_id}")
    return str(title)


@app.post("/threads", status_code=201)
async def create_thread(new: NewThread, service: Shared) -> dict[str, str]:
    """Begin a conversation."""
    thread_id = str(uuid4())
    async with service.sessions.begin() as session:
        await session.execute(sa.insert(conversations).values(id=thread_id, title=new.title))
    return {"id": thread_id}


@app.post("/threads/{thread_id}/messages")
async def say(thread_id: str, message: NewMessage, service: Shared) -> StreamingResponse:
    """Say something, and get the answer word by word as server-sent events."""
    async with service.sessions() as session:  # given back before the answer begins
        await title_of(session, thread_id)
    events = answer_events(service, thread_id, message.text)
    return StreamingResponse(events, media_type="text/event-stream")


async def answer_events(service: Service, thread_id: str, text: str) -> AsyncGenerator[str, None]:
    """One event a word, and one at the end. A client that leaves ends the run."""
    given: MessagesState = {"messages": [HumanMessage(text)]}
    words = service.graph.astream(given, config_of(thread_id), stream_mode="custom")
    async with aclosing(words) as stream:  # type: ignore[type-var]
        async for word in stream:
            yield f"event: word\ndata: {json.dumps(word)}\n\n"
    yield "event: done\ndata: {}\n\n"


@app.get("/threads/{thread_id}")
async def read_thread(thread_id: str, service: Shared) -> dict[str, Any]:
    """A conversation with its messages."""
    async with service.sessions() as session:
        title = await title_of(session, thread_id)
    state = await service.graph.aget_state(config_of(thread_id))
    messages = [{"type": m.type, "text": m.text} for m in state.values.get("messages", [])]
    return {"title": title, "messages": messages}


@app.get("/threads")
async def list_threads(service: Shared, limit: int = 20, after: str | None = None) -> Threads:
    """Conversations, the one that was used last first."""
    page = await service.saver.alist_threads(limit=limit, after=after)
    wanted = conversations.c.id.in_([thread.thread_id for thread in page.threads])
    async with service.sessions() as session:
        rows = await session.execute(
            sa.select(conversations.c.id, conversations.c.title).where(wanted)
        )
    titles = {row.id: row.title for row in rows}
    threads = [
        Thread(
            id=thread.thread_id,
            title=titles.get(thread.thread_id),
            updated_at=thread.updated_at,
            checkpoints=thread.checkpoints,
            stored_bytes=thread.stored_bytes,
        )
        for thread in page.threads
    ]
    return Threads(threads=threads, after=page.after)


@app.delete("/threads/{thread_id}", status_code=204)
async def delete_thread(thread_id: str, service: Shared) -> Response:
    """Delete a conversation: the application's row and all checkpoints, or neither."""
    async with service.sessions.begin() as session:
        await title_of(session, thread_id)
        await session.execute(sa.delete(conversations).where(conversations.c.id == thread_id))
        await service.saver.using(session).adelete_thread(thread_id)
    return Response(status_code=204)
