"""Three checkpoints of a thread, and the ways to damage the rows of the second."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import sqlalchemy as sa
from schemas import execute, query
from storing import config, put

from checkpointer import ProblemKind, create_saver
from checkpointer.chunking import split_digests
from checkpointer.manifest import decode_manifest

CHECKPOINTS, CHUNKS, WRITES = (
    "checkpointer_checkpoints",
    "checkpointer_chunks",
    "checkpointer_writes",
)

OF_SECOND = "thread_id = 'a thread' AND checkpoint_id = '2'"
OF_THIRD = "thread_id = 'a thread' AND checkpoint_id = '3'"


def noise(seed: object, size: int = 20_000) -> bytes:
    """Bytes that share no chunk with those of another seed."""
    return random.Random(str(seed)).randbytes(size)  # noqa: S311 - a test's data, not a secret


class Rows:
    """The stored rows, past all of the package's own code."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = sa.make_url(url).get_backend_name() == "sqlite"

    def execute(self, statement: str) -> None:
        execute(self.url, statement)

    def digests(self) -> set[bytes]:
        rows = query(self.url, f"SELECT digest FROM {CHUNKS}")
        return {row[0] for row in rows if isinstance(row[0], bytes)}

    def lose(self, digests: Iterable[bytes]) -> None:
        """Delete the chunks with these digests."""
        lost = ", ".join(map(self.literal, digests))
        self.execute(f"DELETE FROM {CHUNKS} WHERE digest IN ({lost})")

    def one(self, column: str, table: str, where: str) -> bytes:
        ((value,),) = query(self.url, f"SELECT {column} FROM {table} WHERE {where}")
        assert isinstance(value, bytes)
        return value

    def alter(self, table: str, column: str, where: str, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of one row."""
        changed = self.literal(change(self.one(column, table, where)))
        self.execute(f"UPDATE {table} SET {column} = {changed} WHERE {where}")

    def literal(self, data: bytes) -> str:
        return f"X'{data.hex()}'" if self.sqlite else f"'\\x{data.hex()}'::bytea"

    def truth(self, *, value: bool) -> str:
        return str(int(value)) if self.sqlite else str(value)


@dataclass
class Stored:
    """Checkpoints 1 to 3 of a thread, of which the second is to be damaged.

    Attributes:
        rows: All rows.
        chunks: The digests of the bytes that only the channel `messages` of the second checkpoint
            names.
        nodes: Those of the nodes above them.
        write_chunks: The same of its pending write to `long`, which has no nodes.
    """

    rows: Rows
    chunks: set[bytes] = field(default_factory=set)
    nodes: set[bytes] = field(default_factory=set)
    write_chunks: set[bytes] = field(default_factory=set)

    def chunk(self) -> str:
        """The condition that finds one of the chunks, neither the first nor the last."""
        return self._one_of(self.chunks)

    def node(self) -> str:
        """The same for a node."""
        return self._one_of(self.nodes)

    def write_chunk(self) -> str:
        """The same for a chunk of the pending write."""
        return self._one_of(self.write_chunks)

    def brief(self) -> str:
        """The condition that finds the second checkpoint's inline write."""
        return f"{OF_SECOND} AND channel = 'brief'"

    def long(self) -> str:
        """The same for its chunked write."""
        return f"{OF_SECOND} AND channel = 'long'"

    def manifest(self) -> str:
        """The condition that finds the second checkpoint."""
        return OF_SECOND

    def _one_of(self, digests: set[bytes]) -> str:
        found = self.rows.literal(sorted(digests)[len(digests) // 2])
        return f"thread_id = 'a thread' AND digest = {found}"


async def store(url: str) -> Stored:
    """Store what is to be damaged, and a thread beside it."""
    stored = Stored(Rows(url))
    async with create_saver(url) as saver:
        await put(saver, config("another"), "2", messages=noise(0), text="short")
        parent = await put(
            saver, config(), "1", {"run_id": "run 1"}, messages=noise(1), text="short"
        )
        before = stored.rows.digests()
        values = {"messages": noise(2, 60_000), "text": "short"}
        second = await put(saver, parent, "2", {"run_id": "run 2"}, **values)
        stored.chunks = stored.rows.digests() - before
        before |= stored.chunks
        await saver.aput_writes(
            second, [("long", noise("write", 9_000)), ("brief", "x" * 50)], "a task"
        )
        stored.write_chunks = stored.rows.digests() - before
        await put(saver, second, "3", {"run_id": "run 3"}, messages=noise(3), text="short")
    [tree] = decode_manifest(stored.rows.one("manifest", CHECKPOINTS, OF_SECOND)).trees()
    assert tree.depth == 1
    stored.nodes = set(split_digests(tree.digests))
    stored.chunks -= stored.nodes
    assert min(map(len, (stored.chunks, stored.nodes, stored.write_chunks))) > 1
    return stored


def flip(position: int) -> Callable[[bytes], bytes]:
    """Flip one bit of the byte there."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 0x10
        return bytes(changed)

    return change


def halve(data: bytes) -> bytes:
    """Cut the second half off."""
    return data[: len(data) // 2]


def _empty(data: bytes) -> bytes:
    return data[:0]


def _lengthen(data: bytes) -> bytes:
    return data + b"\0"


CHANGES = {
    "first byte": flip(0),
    "byte in the middle": flip(50),
    "last byte": flip(-1),
    "half of it": halve,
    "all of it": _empty,
    "one byte more": _lengthen,
}


@dataclass(frozen=True)
class Damage:
    """What is done to the second checkpoint, and how it is told.

    Attributes:
        make: Does it.
        place: Stands in the error on reading.
        kind: What verifying calls it.
        channel: Where it finds it.
        hides: Whether it leaves unknown which chunks are live, among those that are stored.
    """

    make: Callable[[Stored], None]
    place: str
    kind: ProblemKind
    channel: str | None
    hides: bool = False


Make = Callable[[Stored], None]
Condition = Callable[[Stored], str]
Change = Callable[[bytes], bytes]


def _deleting(where: Condition) -> Make:
    return lambda stored: stored.rows.execute(f"DELETE FROM {CHUNKS} WHERE {where(stored)}")


def _altering(table: str, column: str, where: Condition, change: Change) -> Make:
    return lambda stored: stored.rows.alter(table, column, where(stored), change)


def _copying(table: str, column: str, source: Condition, target: Condition) -> Make:
    def make(stored: Stored) -> None:
        copied = stored.rows.one(column, table, source(stored))
        stored.rows.alter(table, column, target(stored), lambda _: copied)

    return make


def _flagging(where: Condition, *, chunked: bool) -> Make:
    return lambda stored: stored.rows.execute(
        f"UPDATE {WRITES} SET chunked = {stored.rows.truth(value=chunked)} WHERE {where(stored)}"
    )


MESSAGES, LONG, BRIEF = "channel 'messages'", "'a task' to 'long'", "'a task' to 'brief'"
MISSING, ALTERED = ProblemKind.MISSING_CHUNK, ProblemKind.ALTERED_CHUNK
UNDECODABLE, WRITE = ProblemKind.UNDECODABLE_MANIFEST, ProblemKind.UNDECODABLE_WRITE
MISPLACED = ProblemKind.MISPLACED_MANIFEST

DAMAGES = {
    "a chunk is missing": Damage(_deleting(Stored.chunk), MESSAGES, MISSING, "messages"),
    "a node is missing": Damage(_deleting(Stored.node), MESSAGES, MISSING, "messages", hides=True),
    "a chunk of a write is missing": Damage(_deleting(Stored.write_chunk), LONG, MISSING, "long"),
    "the manifest is that of another checkpoint": Damage(
        _copying(CHECKPOINTS, "manifest", lambda _: OF_THIRD, Stored.manifest),
        "",
        MISPLACED,
        None,
        hides=True,
    ),
    "a chunk is that of another digest": Damage(
        _copying(CHUNKS, "data", Stored.write_chunk, Stored.chunk), MESSAGES, ALTERED, "messages"
    ),
    "a write is said to be inline": Damage(
        _flagging(Stored.long, chunked=False), LONG, WRITE, "long", hides=True
    ),
    "a write is said to be chunked": Damage(
        _flagging(Stored.brief, chunked=True), BRIEF, WRITE, "brief"
    ),
}

for name, change in CHANGES.items():
    DAMAGES |= {
        f"a chunk is altered, {name}": Damage(
            _altering(CHUNKS, "data", Stored.chunk, change), MESSAGES, ALTERED, "messages"
        ),
        f"a node is altered, {name}": Damage(
            _altering(CHUNKS, "data", Stored.node, change),
            MESSAGES,
            ALTERED,
            "messages",
            hides=True,
        ),
        f"a chunk of a write is altered, {name}": Damage(
            _altering(CHUNKS, "data", Stored.write_chunk, change), LONG, ALTERED, "long"
        ),
        f"a manifest is altered, {name}": Damage(
            _altering(CHECKPOINTS, "manifest", Stored.manifest, change),
            "",
            UNDECODABLE,
            None,
            hides=True,
        ),
        f"an inline write is altered, {name}": Damage(
            _altering(WRITES, "data", Stored.brief, change), BRIEF, WRITE, "brief"
        ),
        f"a chunked write is altered, {name}": Damage(
            _altering(WRITES, "data", Stored.long, change), LONG, WRITE, "long", hides=True
        ),
    }
