"""Manifests and their parts, to stored bytes and back (docs/format.md). Pure functions.

A manifest is what one checkpoint consists of: the checkpoint without its channel values, its
metadata, and every channel's value; each either inline or as a layout.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import ormsgpack

from checkpointer.quoting import quoted
from checkpointer.sealing import FormatError, pack, unpack
from checkpointer.slices import MAX_SIZE, Layout, pack_layout, unpack_layout

MAX_BODY: Final = MAX_SIZE
"""Bytes of a manifest or a write at most, once unpacked."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value as the serde dumped it: its type tag, and its bytes or the layout that names them."""

    type: str
    content: bytes | Layout

    def layout(self) -> Layout | None:
        """The layout, unless the value is inline."""
        return self.content if isinstance(self.content, Layout) else None


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

    def layouts(self) -> list[Layout]:
        """The layouts of all values that are not inline."""
        return [value.content for value in self.values() if isinstance(value.content, Layout)]


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as it is stored."""
    body = [
        manifest.version,
        _pack_value(manifest.checkpoint),
        _pack_value(manifest.metadata),
        {name: _pack_value(value) for name, value in manifest.channels.items()},
    ]
    return pack(ormsgpack.packb(body))


def decode_manifest(data: object) -> Manifest:
    """A stored manifest.

    Raises:
        FormatError: The bytes are altered.
        TooNewError: Only a newer version of this package can read them.
    """
    body = unpack(data, MAX_BODY)
    try:
        version, checkpoint, metadata, channels = ormsgpack.unpackb(body)
        return Manifest(
            _natural(version),
            _unpack_value(checkpoint),
            _unpack_value(metadata),
            {name: _unpack_value(value) for name, value in channels.items()},
        )
    except (ValueError, TypeError, AttributeError) as exc:
        raise FormatError(f"a manifest cannot be decoded: {exc}") from exc


def encode_value(value: Value) -> bytes:
    """One value that is stored by itself, as a pending write is."""
    return pack(ormsgpack.packb(_pack_value(value)))


def decode_value(data: object) -> Value:
    """A value that was stored by itself.

    Raises:
        FormatError: The bytes are altered.
        TooNewError: Only a newer version of this package can read them.
    """
    body = unpack(data, MAX_BODY)
    try:
        return _unpack_value(ormsgpack.unpackb(body))
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


def _pack_value(value: Value) -> list[Any]:
    content = value.content
    return [value.type, pack_layout(content) if isinstance(content, Layout) else content]


def _unpack_value(packed: Any) -> Value:
    type_, content = packed
    if not isinstance(type_, str):
        raise TypeError(f"found {quoted(type_)} as a type tag, expected a string")
    return Value(type_, content if isinstance(content, bytes) else unpack_layout(content))


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"found {quoted(value)}, expected a natural number")
    return value
