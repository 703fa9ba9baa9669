"""Print a thread as JSON, one line a checkpoint, without the package that stored it.

    python tools/read_thread.py checkpoints.db THREAD_ID
    python tools/read_thread.py postgresql://user@host/database THREAD_ID

It follows docs/format.md. It needs msgpack, backports.zstd before Python 3.14, and psycopg for
PostgreSQL. It checks what it reads, and stops at the first bytes that are damaged. What JSON lacks
is printed as an object: {"bytes": hexadecimal}, {"pairs": [...]} for a mapping whose keys are not
all text, {"ext": code, ...} for an object, {"tag": ..., "bytes": ...} for a value of another serde.
"""

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BYTES, MAX_PARTS, MAX_SEGMENT, MAX_WINDOW_LOG = 1 << 29, 4096, 1 << 20, 23

CHECKPOINTS = """SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, manifest
    FROM checkpointer_checkpoints WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id"""
WRITES = """SELECT task_id, channel, data FROM checkpointer_writes WHERE thread_id = ?
    AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_path, task_id, idx"""
SEGMENTS = """SELECT start, stop, data FROM checkpointer_segments
    WHERE thread_id = ? AND stream_id = ? AND start < ? AND stop > ? ORDER BY start"""

CALL = ("module", "name", "value", "method")
OBJECTS = dict.fromkeys(range(6), CALL) | {6: ("dtype", "shape", "order", "data")}

Query = Callable[..., list[Any]]


def check(holds: object, what: str) -> None:
    """End the program unless something holds that must."""
    if not holds:
        sys.exit(f"damaged, or stored by a newer version: {what}")


def unpack(data: bytes, most: int) -> bytes:
    """The bytes in an envelope; what claims to be more than `most` is not unpacked."""
    check(blake2b(data[8:], digest_size=8).digest() == data[:8], "a checksum does not match")
    check(data[8:10] in {b"\1\0", b"\1\1"}, f"found version and codec {data[8:10].hex()}")
    body, packed = data[10:], data[9]
    size = zstd.get_frame_info(body).decompressed_size if packed else len(body)
    check(size is not None and size <= most, f"found {size} bytes, expected at most {most}")
    if packed:
        limit = {int(zstd.DecompressionParameter.window_log_max): MAX_WINDOW_LOG}
        unpacker = zstd.ZstdDecompressor(options=limit)
        body = unpacker.decompress(body, max_length=size or 0)
        check(unpacker.eof and not unpacker.unused_data and len(body) == size, "a cut frame")
    return body


@lru_cache(maxsize=64)
def read(query: Query, thread_id: str, stream: int, start: int, stop: int) -> bytes:
    """The bytes `start` to `stop` of a stream. Its segments may overlap."""
    found = b""
    for low, high, data in query(SEGMENTS, thread_id, stream, stop, start):
        at = start + len(found)
        if low <= at < high:
            body = unpack(data, MAX_SEGMENT)
            check(len(body) == high - low, f"the segment {low} to {high} of stream {stream}")
            found += body[at - low : stop - low]
    check(len(found) == stop - start, f"bytes {start} to {stop} of stream {stream} are missing")
    return found


def join(query: Query, thread_id: str, checksum: bytes, parts: Sequence[Any]) -> bytes:
    """The bytes that a layout stands for."""
    size = sum(len(one) if isinstance(one, bytes) else one[2] - one[1] for one in parts)
    check(len(parts) <= MAX_PARTS and size <= MAX_BYTES, "an impossible layout")
    data = b"".join(x if isinstance(x, bytes) else read(query, thread_id, *x) for x in parts)
    rest = blake2b(data[16:], digest_size=32).digest()
    found = blake2b(rest + data[:16], digest_size=16).digest()
    check(found == checksum, "a value does not match its checksum")
    return data


def mapping(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """A mapping, as far as JSON has it."""
    return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else {"pairs": pairs}


def extension(code: int, data: bytes) -> dict[str, Any]:
    """An object of LangGraph's encoder, as far as JSON has it."""
    if code in OBJECTS:
        return {"ext": code, **dict(zip(OBJECTS[code], decode(data), strict=False))}
    return {"ext": code, "value": decode(data)}


decode = partial(
    msgpack.unpackb, ext_hook=extension, object_pairs_hook=mapping, strict_map_key=False
)


def load(query: Query, thread_id: str, tag: str, content: Any) -> Any:
    """A value, as far as JSON has it."""
    data = content if isinstance(content, bytes) else join(query, thread_id, *content)
    if tag in {"msgpack", "json"}:
        return decode(data) if tag == "msgpack" else json.loads(data)
    return {"null": None, "bytes": data, "bytearray": data}.get(tag, {"tag": tag, "bytes": data})


def open_database(target: str) -> Query:
    """What runs a statement. All that it runs sees the database at one moment."""
    if not target.startswith(("postgresql://", "postgres://")):
        file = sqlite3.connect(f"{Path(target).resolve().as_uri()}?mode=ro", uri=True)
        file.execute("BEGIN")
        return lambda sql, *values: file.execute(sql, values).fetchall()
    import psycopg  # noqa: PLC0415 - a file needs none

    server = psycopg.connect(target)
    server.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    return lambda sql, *values: server.execute(sql.replace("?", "%s").encode(), values).fetchall()


def main(target: str, thread_id: str) -> None:
    """Print the checkpoints of a thread, with their writes."""
    query = open_database(target)
    value = partial(load, query, thread_id)
    for namespace, checkpoint_id, parent, manifest in query(CHECKPOINTS, thread_id):
        _, checkpoint, metadata, channels = decode(unpack(manifest, MAX_BYTES))
        writes = query(WRITES, thread_id, namespace, checkpoint_id)
        found = {
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
            "parent_checkpoint_id": parent,
            "checkpoint": value(*checkpoint),
            "metadata": value(*metadata),
            "channel_values": {name: value(*packed) for name, packed in channels.items()},
            "pending_writes": [
                [task_id, channel, value(*decode(unpack(data, MAX_BYTES)))]
                for task_id, channel, data in writes
            ],
        }
        sys.stdout.write(f"{json.dumps(found, default=lambda data: {'bytes': data.hex()})}\n")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)  # noqa: PLR2004
