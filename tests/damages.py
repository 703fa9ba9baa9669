"""Three checkpoints of a thread, and the ways to damage the rows of the second."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from schemas import execute, query
from storing import config, put

from checkpointer import ProblemKind, create_saver
from checkpointer.manifest import Value, decode_manifest, decode_value, encode_manifest
from checkpointer.slices import Layout, Segment, Slice, segments_of

CHECKPOINTS, SEGMENTS, WRITES = (
    "checkpointer_checkpoints",
    "checkpointer_segments",
    "checkpointer_writes",
)

OF_SECOND = "thread_id = 'a thread' AND checkpoint_id = '2'"
OF_THIRD = "thread_id = 'a thread' AND checkpoint_id = '3'"


def noise(seed: object, size: int = 20_000) -> bytes:
    """Bytes that have nothing in common with those of another seed, and cannot be compressed."""
    return random.Random(str(seed)).randbytes(size)  # noqa: S311 - a test's data, not a secret


SegmentKey = tuple[int, int, int]


def where(key: SegmentKey, thread: str = "a thread") -> str:
    """The condition that finds a segment."""
    return f"thread_id = '{thread}' AND stream_id = {key[0]} AND start = {key[1]}"


def called(key: SegmentKey) -> str:
    """What a problem calls a segment, or other bytes of a stream."""
    return f"stream {key[0]}, bytes {key[1]} to {key[2]}"


class Rows:
    """The stored rows, past all of the package's own code."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = sa.make_url(url).get_backend_name() == "sqlite"

    def execute(self, statement: str) -> None:
        execute(self.url, statement)

    def held(self, thread: str = "a thread") -> set[SegmentKey]:
        """Where the thread's segments stand."""
        rows = query(
            self.url, f"SELECT stream_id, start, stop FROM {SEGMENTS} WHERE thread_id = '{thread}'"
        )
        return {(int(str(a)), int(str(b)), int(str(c))) for a, b, c in rows}

    def segments(self, thread: str = "a thread") -> list[Segment]:
        """The thread's segments, in order."""
        rows = query(
            self.url,
            f"SELECT stream_id, start, stop, data FROM {SEGMENTS} WHERE thread_id = '{thread}' "
            f"ORDER BY stream_id, start",
        )
        return [Segment(*row) for row in rows]  # type: ignore[arg-type]

    def insert(self, *some: Segment, thread: str = "a thread") -> None:
        """Store segments of our own making."""
        for one in some:
            values = f"'{thread}', {one.stream}, {one.start}, {one.stop}, {self.literal(one.data)}"
            self.execute(
                f"INSERT INTO {SEGMENTS} (thread_id, stream_id, start, stop, data) "
                f"VALUES ({values})"
            )

    def lose(self, keys: Iterable[SegmentKey], thread: str = "a thread") -> None:
        """Delete these segments."""
        for key in keys:
            self.execute(f"DELETE FROM {SEGMENTS} WHERE {where(key, thread)}")

    def layout(self, checkpoint_id: str, channel: str, thread: str = "a thread") -> Layout:
        """The layout of a channel's value."""
        found = f"thread_id = '{thread}' AND checkpoint_id = '{checkpoint_id}'"
        manifest = decode_manifest(self.one("manifest", CHECKPOINTS, found))
        layout = manifest.channels[channel].layout()
        assert layout is not None
        return layout

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
        segments: Those of the bytes that only the channel `messages` of the second checkpoint
            names, which are cut into several.
        write_segments: The same of its pending write to `long`.
    """

    rows: Rows
    segments: list[Segment] = field(default_factory=list)
    write_segments: list[Segment] = field(default_factory=list)

    def segment(self) -> str:
        """The condition that finds one of the segments, neither the first nor the last."""
        return self._one_of(self.segments)

    def write_segment(self) -> str:
        """The same for the pending write."""
        return self._one_of(self.write_segments)

    def brief(self) -> str:
        """The condition that finds the second checkpoint's inline write."""
        return f"{OF_SECOND} AND channel = 'brief'"

    def long(self) -> str:
        """The same for its write that names slices."""
        return f"{OF_SECOND} AND channel = 'long'"

    def manifest(self) -> str:
        """The condition that finds the second checkpoint."""
        return OF_SECOND

    @staticmethod
    def _one_of(segments: list[Segment]) -> str:
        one = segments[len(segments) // 2]
        return where((one.stream, one.start, one.stop))


async def store(url: str) -> Stored:
    """Store what is to be damaged, and a thread beside it."""
    stored = Stored(Rows(url))
    async with create_saver(url) as saver:
        await put(saver, config("another"), "2", messages=noise(0), text="short")
        parent = await put(
            saver, config(), "1", {"run_id": "run 1"}, messages=noise(1), text="short"
        )
        values = {"messages": noise(2, 60_000), "text": "short"}
        second = await put(saver, parent, "2", {"run_id": "run 2"}, **values)
        await saver.aput_writes(
            second, [("long", noise("write", 9_000)), ("brief", "x" * 50)], "a task"
        )
        await put(saver, second, "3", {"run_id": "run 3"}, messages=noise(3), text="short")
    value = decode_value(stored.rows.one("data", WRITES, stored.long())).layout()
    assert value is not None
    stored.segments = cut(stored.rows, stored.rows.layout("2", "messages"), 10_000)
    stored.write_segments = cut(stored.rows, value, 3_000)
    return stored


def cut(rows: Rows, layout: Layout, size: int, thread: str = "a thread") -> list[Segment]:
    """Have the one stream of a value stand in segments of that size: in more than two."""
    [stream] = {one.stream for one in layout.slices()}
    [old] = [one for one in rows.segments(thread) if one.stream == stream]
    new = segments_of(stream, old.start, old.unpack(), size)
    rows.lose([(stream, *old.interval)], thread)
    rows.insert(*new, thread=thread)
    assert len(new) > 2
    return new


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
        hides: Whether it leaves unknown which segments are live, among those that are stored.
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
    return lambda stored: stored.rows.execute(f"DELETE FROM {SEGMENTS} WHERE {where(stored)}")


def _altering(table: str, column: str, where: Condition, change: Change) -> Make:
    return lambda stored: stored.rows.alter(table, column, where(stored), change)


def _copying(table: str, column: str, source: Condition, target: Condition) -> Make:
    def make(stored: Stored) -> None:
        copied = stored.rows.one(column, table, source(stored))
        stored.rows.alter(table, column, target(stored), lambda _: copied)

    return make


def _flagging(where: Condition, *, sliced: bool) -> Make:
    return lambda stored: stored.rows.execute(
        f"UPDATE {WRITES} SET sliced = {stored.rows.truth(value=sliced)} WHERE {where(stored)}"
    )


MESSAGES, LONG, BRIEF = "channel 'messages'", "'a task' to 'long'", "'a task' to 'brief'"
MISSING, ALTERED = ProblemKind.MISSING_SEGMENT, ProblemKind.ALTERED_SEGMENT
UNDECODABLE, WRITE = ProblemKind.UNDECODABLE_MANIFEST, ProblemKind.UNDECODABLE_WRITE
MISPLACED = ProblemKind.MISPLACED_MANIFEST
CONTRADICTORY = ProblemKind.CONTRADICTORY_VALUE


def _swapping(stored: Stored) -> None:
    """Let two segments of as many bytes change places: each is whole."""
    one, other = stored.segments[1:3]
    for here, there in ((one, other), (other, one)):
        key = here.stream, here.start, here.stop
        stored.rows.alter(SEGMENTS, "data", where(key), lambda _, data=there.data: data)  # type: ignore[misc]


def _turning(stored: Stored) -> None:
    """Have a layout name the same bytes in another order."""

    def change(data: bytes) -> bytes:
        manifest = decode_manifest(data)
        value = manifest.channels["messages"]
        layout = value.layout()
        assert layout is not None
        head, (stream, start, stop) = layout.parts
        assert isinstance(head, bytes)
        assert isinstance(stream, int)
        parts = head, Slice(stream, start + 100, stop), Slice(stream, start, start + 100)
        channels = {
            **manifest.channels,
            "messages": Value(value.type, replace(layout, parts=parts)),
        }
        return encode_manifest(replace(manifest, channels=channels))

    stored.rows.alter(CHECKPOINTS, "manifest", OF_SECOND, change)


DAMAGES = {
    "a segment is missing": Damage(_deleting(Stored.segment), MESSAGES, MISSING, "messages"),
    "a segment of a write is missing": Damage(
        _deleting(Stored.write_segment), LONG, MISSING, "long"
    ),
    "the manifest is that of another checkpoint": Damage(
        _copying(CHECKPOINTS, "manifest", lambda _: OF_THIRD, Stored.manifest),
        "",
        MISPLACED,
        None,
        hides=True,
    ),
    "a segment is one of another length": Damage(
        _copying(SEGMENTS, "data", Stored.write_segment, Stored.segment),
        MESSAGES,
        ALTERED,
        "messages",
    ),
    "two segments have changed places": Damage(_swapping, MESSAGES, CONTRADICTORY, "messages"),
    "a layout names its bytes in another order": Damage(
        _turning, MESSAGES, CONTRADICTORY, "messages"
    ),
    "a write is said to be inline": Damage(
        _flagging(Stored.long, sliced=False), LONG, WRITE, "long", hides=True
    ),
    "a write is said to name slices": Damage(
        _flagging(Stored.brief, sliced=True), BRIEF, WRITE, "brief"
    ),
}

for name, change in CHANGES.items():
    DAMAGES |= {
        f"a segment is altered, {name}": Damage(
            _altering(SEGMENTS, "data", Stored.segment, change), MESSAGES, ALTERED, "messages"
        ),
        f"a segment of a write is altered, {name}": Damage(
            _altering(SEGMENTS, "data", Stored.write_segment, change), LONG, ALTERED, "long"
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
        f"a write that names slices is altered, {name}": Damage(
            _altering(WRITES, "data", Stored.long, change), LONG, WRITE, "long", hides=True
        ),
    }
