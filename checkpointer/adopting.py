"""LangGraph's checkpoints and writes of one thread, from wherever they come, into rows of ours."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checkpointer.backend import off_loop
from checkpointer.cache import ChunkCache, LastCheckpoint
from checkpointer.chunking import ChunkError, join
from checkpointer.configs import Key
from checkpointer.encoder import Encoder, NewWrite
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.execution import Connection
from checkpointer.intake import Intake, Target
from checkpointer.manifest import FormatError
from checkpointer.moving import CheckpointKey, Outline, Row, WriteKey, fingerprint, write_key
from checkpointer.official import Carried
from checkpointer.predicates import keys
from checkpointer.quoting import quoted
from checkpointer.records import StoredWrite
from checkpointer.serde import LosslessSerializer, StrictSerializer
from checkpointer.store import Store

LAST_VALUES: Final = 32 << 20
"""Bytes of values that are kept, so that the next ones are cut only where they differ."""


class Carrying(SerializerProtocol):
    """A serde that lets dumped values pass as they are, and refuses no plain JSON.

    Official tables hold JSON with whole numbers of any length: 1e22 comes back from JSONB as one.
    MessagePack holds 64 bits. Where LangGraph's serdes refuse such a value, it is dumped as JSON,
    which they load.

    Args:
        serde: Dumps all others.
    """

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The type tag and the bytes of a value."""
        if isinstance(obj, Carried):
            return obj.type, obj.data
        try:
            return self._serde.dumps_typed(obj)
        except Exception:
            dumped = _as_json(self._serde, obj)
            if dumped is None:
                raise
            return dumped

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """A value."""
        return self._serde.loads_typed(data)


class Adoption:
    """Takes the checkpoints and writes of one thread, in any order.

    Args:
        target: The store.
        serde: Dumps what is not carried.
        thread_id: The thread.
        intake: Where the rows go.
        held: What the store holds of the thread.
    """

    def __init__(
        self,
        target: Target,
        serde: SerializerProtocol,
        thread_id: str,
        intake: Intake,
        held: Outline,
    ) -> None:
        self._target, self._serde = target, Carrying(serde)
        self._thread_id, self._intake, self._held = thread_id, intake, held
        self._cache = ChunkCache(LAST_VALUES)
        self._last: dict[str, LastCheckpoint] = {}
        self.anything = False
        """Whether there was anything that the store lacks."""

    def lacks(self, namespace: str, checkpoint_id: str) -> bool:
        """Whether the store has no such checkpoint: what stands under an id stays what it is."""
        return (namespace, checkpoint_id) not in self._held.checkpoints

    async def take_checkpoint(
        self,
        where: CheckpointKey,
        parent: str | None,
        checkpoint: Any,
        metadata: Mapping[str, Any],
    ) -> None:
        """Take a checkpoint; values of it may be `Carried`.

        Raises:
            InvalidInputError: It is no checkpoint, or an identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        namespace, checkpoint_id = where
        if checkpoint.get("id") != checkpoint_id:
            raise InvalidInputError(
                f"checkpoint {quoted(checkpoint_id)} of the source: found the id "
                f"{quoted(checkpoint.get('id'))} in it, expected its own"
            )
        last = self._last.get(namespace)
        encoder = self._encoder(namespace, parent)
        values = checkpoint.get("channel_values", {})
        encode = encoder.checkpoint(checkpoint, metadata, values, (0, last) if last else None)
        put = await off_loop(encode, encoder.size)
        self._cache.put_cuts(put.cuts, last.trees() - put.last.trees() if last else ())
        self._last[namespace] = put.last
        self.anything = True
        with suppress(KeyError, TypeError, ValueError):  # what says no time, says none
            at = datetime.fromisoformat(checkpoint["ts"])
            self._intake.note_date(at if at.tzinfo else at.replace(tzinfo=UTC))
        await self._intake.add_chunks(put.chunks)
        self._intake.add_checkpoints([put.row | {"metadata": json.dumps(put.row["metadata"])}])

    async def take_writes(
        self, namespace: str, checkpoint_id: str, writes: Iterable[NewWrite]
    ) -> None:
        """Take writes of one checkpoint that the store lacks, or has otherwise where it may.

        Raises:
            InvalidInputError: An identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        wanted = [one for one in writes if self._may_lack(namespace, checkpoint_id, one)]
        put = self._encoder(namespace, checkpoint_id).numbered_writes(wanted)
        values = {(one.task_id, one.idx): one.value for one in wanted}
        special = [
            row
            for row in put.special_rows
            if await self._differs(row, values[row["task_id"], row["idx"]])
        ]
        if put.rows or special:
            self.anything = True
            await self._intake.add_chunks(put.chunks)
            self._intake.add_writes([*put.rows, *special])

    def _may_lack(self, namespace: str, checkpoint_id: str, one: NewWrite) -> bool:
        held = self._held.writes.get((namespace, checkpoint_id, one.task_id, one.idx))
        return one.idx < 0 or held is None or held[:2] != (one.task_path, one.channel)

    async def _differs(self, row: Row, value: object) -> bool:
        held, new = self._held.writes.get(write_key(row)), fingerprint(row)
        if held is None or held == new or held[:2] != new[:2] or isinstance(value, Carried):
            return held != new
        # Encrypted twice, equal values are of different bytes.
        store = self._target.backend.store
        read = partial(_dumped, store=store, thread_id=self._thread_id, key=write_key(row))
        dumped = await self._target.backend.read_snapshot(read)
        try:
            return dumped is None or not bool(self._serde.loads_typed(dumped) == value)
        except Exception:  # noqa: BLE001 - of whatever is stored and compared
            return True

    def _encoder(self, namespace: str, checkpoint_id: str | None) -> Encoder:
        key = Key(self._thread_id, namespace, checkpoint_id)
        return Encoder(self._serde, self._target.dialect, key, self._cache)


def _dumped(
    connection: Connection, store: Store, thread_id: str, key: WriteKey
) -> tuple[str, bytes] | None:
    """A write's value as the serde made it; `None` where it is gone or cannot be read."""
    for row in connection.fetch(store.queries.writes_of_many, keys([(thread_id, *key[:2])])):
        if write_key(row._asdict()) != key:
            continue
        value = StoredWrite.from_row(row).value
        if isinstance(value, FormatError):
            return None
        if isinstance(tree := value.content, bytes):
            return value.type, tree
        chunks, _ = store.chunks_of(connection, [thread_id], [tree])
        with suppress(ChunkError):
            return value.type, join(tree, chunks)
    return None


def _as_json(serde: SerializerProtocol, value: object) -> tuple[str, bytes] | None:
    """A value as JSON, encrypted where the serde encrypts; `None` where that may not be.

    Of another make of serde, nothing says that it loads JSON, nor whether it keeps secrets.
    """
    if type(serde) is EncryptedSerializer:
        dumped = _as_json(serde.serde, value)
        encrypting = EncryptedSerializer(serde.cipher, Carrying(serde.serde))
        return dumped and encrypting.dumps_typed(Carried(*dumped))
    try:
        if type(serde) in _LOAD_JSON and _is_plain(value):
            return "json", json.dumps(value).encode()
    except RecursionError:
        return None
    return None


_LOAD_JSON: Final = {JsonPlusSerializer, LosslessSerializer, StrictSerializer}


def _is_plain(value: object) -> bool:
    """Whether JSON gives a value back as it was. An object with the key `lc` may be a call."""
    if type(value) is dict:
        keys = all(type(key) is str and key != "lc" for key in value)
        return keys and all(map(_is_plain, value.values()))
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in {str, int, float, bool}


def opened(document: Carried, serde: SerializerProtocol) -> dict[str, Any]:
    """A whole dumped checkpoint, its channels' values dumped one by one.

    MessagePack and JSON are only taken apart: no object in them is made. All else, as what was
    encrypted, is loaded and dumped by the serde.

    Raises:
        SerializationError: It cannot be taken apart, or is no checkpoint.
    """
    try:
        checkpoint, again = _opened(document, serde)
        values = checkpoint.get("channel_values") or {}
        carried = {name: Carried(*again(value)) for name, value in values.items()}
    except Exception as exc:
        raise SerializationError(
            f"found a checkpoint with the type tag {quoted(document.type)}, expected one that the "
            f"target's serde can load: {type(exc).__name__}; use the serde that stored it"
        ) from exc
    return checkpoint | {"channel_values": carried}


def _opened(document: Carried, serde: SerializerProtocol) -> tuple[dict[str, Any], Any]:
    """A checkpoint, and what dumps a part of it again."""
    if document.type == "msgpack":
        found = ormsgpack.unpackb(document.data, ext_hook=ormsgpack.Ext, option=_KEYS)
        return found, lambda value: ("msgpack", ormsgpack.packb(value, option=_KEYS))
    if document.type == "json":
        found = json.loads(document.data)
        values = found.pop("channel_values", None)
        # All else is loaded: what was sent stands there as an object.
        found = serde.loads_typed(("json", json.dumps(found).encode()))
        return found | {"channel_values": values}, lambda one: ("json", json.dumps(one).encode())
    return serde.loads_typed((document.type, document.data)), serde.dumps_typed


_KEYS: Final = ormsgpack.OPT_NON_STR_KEYS
