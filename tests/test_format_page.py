"""The worked example of docs/format.md is what the code makes."""

import re
from pathlib import Path

import ormsgpack
import pytest

from checkpointer import sharing
from checkpointer.manifest import Manifest, Value, decode_value, encode_manifest
from checkpointer.sealing import ZSTD
from checkpointer.sharing import Stream, lay_out
from checkpointer.slices import Segments, segments_of

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")
EXAMPLE = PAGE.partition("## Worked example\n")[2].partition("\n## ")[0]


def shown() -> list[bytes]:
    """The bytes of each block; what stands after two spaces tells what they are."""
    blocks = re.findall(r"```text\n(.*?)```", EXAMPLE, re.DOTALL)
    return [
        b"".join(bytes.fromhex(line.split("  ")[0]) for line in block.splitlines())
        for block in blocks
    ]


def test_the_example_is_what_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    value, segment, manifest, later, write = shown()
    notes = ["buy milk and bread", "call the dentist at noon", "water the plants"]
    assert value == ormsgpack.packb(notes)
    numbers = iter((1, 2))
    monkeypatch.setattr(sharing, "randbits", lambda _: next(numbers))
    monkeypatch.setattr(sharing, "LEAST_SHARED", 46)
    first, second = Stream(), Stream()
    stored = lay_out(value, [], first)
    [row] = first.segments()
    assert (row.stream, row.start, row.stop, row.data) == (1, 0, 46, segment)
    assert encode_manifest(manifest_of(stored)) == manifest
    longer = lay_out(ormsgpack.packb([*notes, "sleep"]), [stored], second)
    assert not second.segments()
    assert encode_manifest(manifest_of(longer)) == later
    assert Segments([row]).join(longer[1])[0] == longer[0].data
    # Which frame stands for some bytes is the encoder's affair.
    assert write[9] == ZSTD
    assert decode_value(write) == Value("bytes", b"again " * 40)


def manifest_of(source: sharing.Source) -> Manifest:
    empty = Value("msgpack", ormsgpack.packb({}))
    return Manifest(4, empty, empty, {"notes": Value("msgpack", source[1])})


def test_the_text_tells_the_numbers_of_the_example() -> None:
    value, segment, *_ = shown()
    assert f"makes {len(value)} bytes" in EXAMPLE
    [row] = segments_of(1, 0, value[16:])
    assert row.data == segment
    assert f"`start` 0 and `stop` {row.stop}" in EXAMPLE
