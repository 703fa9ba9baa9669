"""Manifests and their parts, to stored bytes and back (docs/format.md). Pure functions.

A manifest is what one checkpoint consists of: the checkpoint without its channel values, its
metadata, and every channel's value; each either inline or as a tree of chunks. Stored bytes are
sealed with a checksum, so that damage is found on reading.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import ormsgpack

from checkpointer.chunking import DIGEST_SIZE, HEAD_SIZE, MAX_DEPTH, MAX_SIZE, Tree
from checkpointer.quoting import quoted

FORMAT: Final = 1
"""The version of the format that is written. Older ones stay readable."""

SEAL_SIZE: Final = 8
"""Bytes of the checksum before sealed bytes: BLAKE2b-64."""


class FormatError(Exception):
    """Stored bytes are altered, or of a format that this version does not know."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value as the serde dumped it: its type tag, and its bytes or the tree that names them."""

    type: str
    content: bytes | Tree

    def tree(self) -> Tree | None:
        """The tree, unless the value is inline."""
        return self.content if isinstance(self.content, Tree) else None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one checkpoint consists of.

    Attributes:
        version: LangGraph's own version of the checkpoint's format, the `v` in the checkpoint.
        checkpoint: The checkpoint without its channel values.
        metadata: The whole metadata.
        channels: The value of every channel, by name.
    """

    version: int
    checkpoint: Value
    metadata: Value
    channels: dict[str, Value]

    def values(self) -> Iterator[Value]:
        """All values of the manifest."""
        yield self.checkpoint
        yield self.metadata
        yield from self.channels.values()

    def trees(self) -> list[Tree]:
        """The trees of all values that are not inline."""
        return [value.content for value in self.values() if isinstance(value.content, Tree)]


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as it is stored: sealed, format byte first."""
    body = [
        manifest.version,
        _pack_value(manifest.checkpoint),
        _pack_value(manifest.metadata),
        {name: _pack_value(value) for name, value in manifest.channels.items()},
    ]
    return seal(bytes([FORMAT]) + ormsgpack.packb(body))


def decode_manifest(data: bytes) -> Manifest:
    """A stored manifest.

    Raises:
        FormatError: The bytes are altered, or of an unknown format.
    """
    body = unseal(data)
    if body[:1] != bytes([FORMAT]):
        raise FormatError(f"found manifest format {body[:1].hex()}, expected {FORMAT:02x}")
    try:
        version, checkpoint, metadata, channels = ormsgpack.unpackb(body[1:])
        return Manifest(
            _natural(version),
            _unpack_value(checkpoint),
            _unpack_value(metadata),
            {name: _unpack_value(value) for name, value in channels.items()},
        )
    except (ValueError, TypeError, AttributeError) as exc:
        raise FormatError(f"a manifest cannot be decoded: {exc}") from exc


def encode_value(value: Value) -> bytes:
    """One value that is stored by itself, as a pending write is: sealed."""
    return seal(ormsgpack.packb(_pack_value(value)))


def decode_value(data: bytes) -> Value:
    """A value that was stored by itself.

    Raises:
        FormatError: The bytes are altered.
    """
    try:
        return _unpack_value(ormsgpack.unpackb(unseal(data)))
    except (ValueError, TypeError) as exc:
        raise FormatError(f"a value cannot be decoded: {exc}") from exc


def decode_projection(text: str) -> dict[str, Any]:
    """The metadata's projection, which stands beside a manifest as JSON.

    Raises:
        FormatError: It is no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise FormatError(f"the metadata's projection cannot be decoded: {exc}") from exc
    if not isinstance(found, dict):
        raise FormatError(f"found {quoted(found)} as the metadata's projection, expected an object")
    return found


def seal(body: bytes) -> bytes:
    """`body` with its checksum before it."""
    return blake2b(body, digest_size=SEAL_SIZE).digest() + body


def unseal(data: bytes) -> bytes:
    """The body of sealed bytes.

    Raises:
        FormatError: The checksum is not that of the body.
    """
    if not isinstance(data, bytes):  # SQLite stores anything in any column
        raise FormatError(f"found {quoted(data)}, expected bytes")
    body = data[SEAL_SIZE:]
    if blake2b(body, digest_size=SEAL_SIZE).digest() != data[:SEAL_SIZE]:
        raise FormatError(f"found {len(data)} bytes that do not match their checksum")
    return body


def _pack_value(value: Value) -> list[Any]:
    content = value.content
    return [value.type, _pack_tree(content) if isinstance(content, Tree) else content]


def _unpack_value(packed: Any) -> Value:
    type_, content = packed
    if not isinstance(type_, str):
        raise TypeError(f"found {quoted(type_)} as a type tag, expected a string")
    return Value(type_, content if isinstance(content, bytes) else _unpack_tree(content))


def _pack_tree(tree: Tree) -> list[Any]:
    return [tree.size, tree.depth, tree.head, tree.digests]


def _unpack_tree(packed: Any) -> Tree:
    size, depth, head, digests = packed
    if (
        not isinstance(head, bytes)
        or not isinstance(digests, bytes)
        or len(head) != HEAD_SIZE
        or len(digests) % DIGEST_SIZE
        or _natural(depth) > MAX_DEPTH
        or not HEAD_SIZE <= _natural(size) <= MAX_SIZE
    ):
        raise ValueError(
            f"found an impossible tree of {quoted(size)} bytes and {quoted(depth)} levels of nodes"
        )
    return Tree(head, size, depth, digests)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"found {quoted(value)}, expected a natural number")
    return value
