"""What reads stored bytes, fed with any: a target for atheris, and checks for the tests.

    python tests/fuzz_manifest.py -runs=100000 -artifact_prefix=/tmp/ /tmp/corpus

Checksums and digests are made here, so that what is fuzzed is what they let pass. Whatever the
bytes are, they are refused with `FormatError` or `ChunkError`, or are what they say.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from checkpointer import chunking, manifest
from checkpointer.chunking import (
    DIGEST_SIZE,
    HEAD_SIZE,
    MAX_DEPTH,
    MAX_SIZE,
    ChunkError,
    Tree,
    assemble,
    cut,
    digest_of,
    join,
)
from checkpointer.manifest import (
    FORMAT,
    FormatError,
    Manifest,
    Value,
    decode_manifest,
    decode_projection,
    decode_value,
    encode_manifest,
    encode_value,
    seal,
)

LARGEST = 1 << 20
"""Bytes of a value that is put together here: a tree may be true and name far more."""


def check_manifest(body: bytes) -> None:
    """Decode what stands under a manifest's seal."""
    with contextlib.suppress(FormatError):
        decoded = decode_manifest(seal(body))
        assert type(decoded.version) is int
        assert all(type(name) is str for name in decoded.channels)
        for value in decoded.values():
            _check(value)
        assert decode_manifest(encode_manifest(decoded)) == decoded


def check_packed_manifest(body: bytes) -> None:
    """The same for what stands behind the format's version."""
    check_manifest(bytes([FORMAT]) + body)


def check_value(body: bytes) -> None:
    """Decode what stands under a pending write's seal."""
    with contextlib.suppress(FormatError):
        value = decode_value(seal(body))
        _check(value)
        assert decode_value(encode_value(value)) == value


def check_bytes(data: bytes) -> None:
    """Decode bytes that have no seal of ours."""
    for decode in (decode_manifest, decode_value):
        with contextlib.suppress(FormatError):
            decoded: Manifest | Value = decode(data)
            assert decode(data) == decoded


def check_projection(data: bytes) -> None:
    """Decode the metadata's projection."""
    with contextlib.suppress(FormatError):
        assert isinstance(decode_projection(data.decode("utf-8", "replace")), dict)


def _check(value: Value) -> None:
    assert type(value.type) is str
    tree = value.tree()
    if tree is None:
        assert type(value.content) is bytes
        return
    assert len(tree.head) == HEAD_SIZE
    assert len(tree.digests) % DIGEST_SIZE == 0
    assert HEAD_SIZE <= tree.size <= MAX_SIZE
    assert 0 <= tree.depth <= MAX_DEPTH


def check_tree(program: bytes) -> None:
    """Put a tree together, and cut another value where it tells; see `tree_of`."""
    tree, chunks = tree_of(program)
    try:
        whole = assemble(tree, chunks)
    except ChunkError:
        return
    assert len(whole.data) == tree.size
    assert whole.data.startswith(tree.head)
    assert whole.levels[0].ends[-1:] in ([], [tree.size])
    assert join(tree, chunks) == whole.data
    for data in (whole.data + program, whole.data[: tree.size // 2] + program, whole.data + b"."):
        if len(data) > HEAD_SIZE:
            edited, new = cut(data, whole)
            assert join(edited.tree, chunks | new) == data
            assert edited.tree.depth <= MAX_DEPTH


def tree_of(program: bytes) -> tuple[Tree, dict[bytes, bytes]]:
    """A tree and its chunks, whose digests are right, as some bytes tell.

    Each step makes a chunk: of so many bytes, or of the digests of chunks before it, each so many
    times, and perhaps with a byte too many. The last is the root.
    """
    head, *steps = [program[i : i + 4] for i in range(0, len(program), 4)] or [b""]
    depth, claimed, *_ = (*head, 0, 0)
    chunks: dict[bytes, bytes] = {}
    digests: list[bytes] = []
    root = b""
    for kind, first, count, times in (step for step in steps if len(step) == 4):
        if kind & 1 and digests:
            named = [digests[(first + i) % len(digests)] for i in range(count % 8 + 1)]
            root = b"".join(named) * (times % 80 + 1)
            chunk = root + b"." * (kind & 2)
        else:
            chunk = bytes([first]) * (count * 32 + times)
        digests.append(digest_of(chunk))
        chunks[digests[-1]] = chunk
    tree = Tree(bytes(HEAD_SIZE), HEAD_SIZE, depth % (MAX_DEPTH + 1), root)
    true = _size_of(tree, chunks)
    if claimed % 4 and true is not None and true <= LARGEST:
        return replace(tree, size=true), chunks
    return replace(tree, size=min(HEAD_SIZE + (claimed << 21), MAX_SIZE)), chunks


def _size_of(tree: Tree, chunks: dict[bytes, bytes]) -> int | None:
    """The bytes that a tree names, counted without putting it together; `None` if it is none."""
    counts = {tree.digests: 1}
    for _ in range(tree.depth + 1):
        below: dict[bytes, int] = {}
        for node, times in counts.items():
            if len(node) % DIGEST_SIZE:
                return None
            for i in range(0, len(node), DIGEST_SIZE):
                chunk = chunks.get(node[i : i + DIGEST_SIZE])
                if chunk is None:
                    return None
                below[chunk] = below.get(chunk, 0) + times
        counts = below
    return HEAD_SIZE + sum(len(chunk) * times for chunk, times in counts.items())


CHECKS: list[Callable[[bytes], None]] = [
    check_packed_manifest,
    check_manifest,
    check_value,
    check_bytes,
    check_projection,
    check_tree,
]


def check(data: bytes) -> None:
    """Feed one of the checks, which the first byte chooses."""
    if data:
        CHECKS[data[0] % len(CHECKS)](data[1:])


def seeds() -> list[bytes]:
    """Inputs from which a fuzzer gets further than from nothing."""
    tree = Tree(bytes(HEAD_SIZE), 1000, 1, bytes(DIGEST_SIZE))
    values = [Value("msgpack", b"\x80"), Value("msgpack", tree)]
    whole = encode_manifest(Manifest(4, values[0], values[1], {"a": values[1], "b": values[0]}))
    packed = [whole[9:], whole[8:], encode_value(values[1])[8:], whole, b'{"a": [1]}']
    packed.append(bytes([2, 1, 0, 0, 0, 1, 9, 0, 1, 0, 1, 3, 1, 1, 1, 3]))
    return [bytes([i]) + data for i, data in enumerate(packed)]


def main() -> None:
    """Run the fuzzer with the options of the command line."""
    atheris: Any = import_module("atheris")  # the checks do without
    for i, seed in enumerate(seeds()):
        (Path(sys.argv[-1]) / f"seed-{i}").write_bytes(seed)
    for module in (chunking, manifest):
        for function in vars(module).values():
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
