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
from checkpointer.basis import Basis
from checkpointer.configs import Key
from checkpointer.encoder import Encoder, NewWrite
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.execution import Connection
from checkpointer.intake import Intake, Target
from checkpointer.memory import Contents, KnownCheckpoint
from checkpointer.moving import CheckpointKey, Outline, WriteKey, fingerprint, write_key
from checkpointer.official import Carried
from checkpointer.predicates import keys
from checkpointer.quoting import quoted
from checkpointer.records import PutCheckpoint, StoredWrite
from checkpointer.sealing import FormatError
from checkpointer.serde import LosslessSerializer, StrictSerializer
from checkpointer.store import Store

LAST_VALUES: Final = 32 << 20
"""Bytes of values that are kept, so that of the next ones only what is new is stored."""


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
        self._contents = Contents(LAST_VALUES)
        self._first: dict[str, KnownCheckpoint] = {}
        self._last: dict[str, KnownCheckpoint] = {}
        self._written = KnownCheckpoint("", {}, {})
        self._taken: set[CheckpointKey] = set()
        self.anything = False
        """Whether there was anything that the store lacks."""

    def lacks(self, namespace: str, checkpoint_id: str) -> bool:
        """Whether a checkpoint is to be taken: what stands under an id stays what it is.

        One that was taken before is not: its bytes would be stored twice.
        """
        where = namespace, checkpoint_id
        return where not in self._held.checkpoints and where not in self._taken

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
        values = checkpoint.get("channel_values", {})
        new = self._encoder(namespace, parent).checkpoint(checkpoint, metadata, values)
        last = self._last.get(namespace)
        put = await off_loop(partial(new.encode, self._basis(last)), new.size)
        self._learn(namespace, put)
        self._taken.add(where)
        self.anything = True
        with suppress(KeyError, TypeError, ValueError):  # what says no time, says none
            at = datetime.fromisoformat(checkpoint["ts"])
            self._intake.note_date(at if at.tzinfo else at.replace(tzinfo=UTC))
        await self._intake.add_segments(put.segments)
        self._intake.add_checkpoints([put.row | {"metadata": json.dumps(put.row["metadata"])}])

    async def take_writes(
        self, namespace: str, checkpoint_id: str, writes: Iterable[NewWrite]
    ) -> None:
        """Take writes of one checkpoint that the store lacks, or has otherwise where it may.

        Raises:
            InvalidInputError: An identifier or a value cannot be stored.
            SerializationError: The serde refused a value.
        """
        where = namespace, checkpoint_id
        # Before they are encoded: of those that are there already, nothing is to be stored.
        lacking = [one for one in writes if await self._lacks_write(where, one)]
        if not lacking:
            return
        new = self._encoder(*where).numbered_writes(lacking)
        # What tasks write is a part of the values that follow: the newest holds most of them.
        known = self._last.get(namespace), self._first.get(namespace), self._written
        put = await off_loop(partial(new.encode, self._basis(*known)), new.size)
        self._written.writes = [layout for _, layout in put.values]
        self._contents.put(self._thread_id, put.values)
        self.anything = True
        await self._intake.add_segments(put.segments)
        self._intake.add_writes([*put.rows, *put.special_rows])

    def _basis(self, *known: KnownCheckpoint | None) -> Basis:
        """What was taken before, and goes into the store with what builds on it."""
        basis = Basis(others=list(filter(None, known)))
        basis.wholes = self._contents.get(self._thread_id, basis.layouts())
        return basis

    def _learn(self, namespace: str, put: PutCheckpoint) -> None:
        first = self._first.setdefault(namespace, put.checkpoint)
        last = self._last.get(namespace)
        self._last[namespace] = put.checkpoint
        kept = {one.checksum for known in (first, put.checkpoint) for one in known.layouts()}
        gone = [one for one in last.layouts() if one.checksum not in kept] if last else []
        self._contents.put(self._thread_id, put.values, gone)

    async def _lacks_write(self, where: CheckpointKey, one: NewWrite) -> bool:
        """Whether the store has no such write, or another one that may be replaced."""
        key = *where, one.task_id, one.idx
        held = self._held.writes.get(key)
        if held is None or held[:2] != (one.task_path, one.channel):
            return True
        return one.idx < 0 and await self._differs(key, one, held)

    async def _differs(self, key: WriteKey, one: NewWrite, held: tuple[Any, ...]) -> bool:
        put = self._encoder(*key[:2]).numbered_writes([one]).encode(Basis())
        if fingerprint(put.special_rows[0]) == held:
            return False
        # Equal values may be stored otherwise: encrypted twice, compressed by another version, or
        # in another stream.
        store = self._target.backend.store
        read = partial(_dumped, store=store, thread_id=self._thread_id, key=key)
        dumped = await self._target.backend.read_snapshot(read)
        if isinstance(one.value, Carried):
            return dumped != (one.value.type, one.value.data)
        try:
            return dumped is None or not bool(self._serde.loads_typed(dumped) == one.value)
        except Exception:  # noqa: BLE001 - of whatever is stored and compared
            return True

    def _encoder(self, namespace: str, checkpoint_id: str | None) -> Encoder:
        return Encoder(
            self._serde, self._target.dialect, Key(self._thread_id, namespace, checkpoint_id)
        )


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
        if isinstance(layout := value.content, bytes):
            return value.type, layout
        segments = store.segments(connection, {thread_id: layout.slices()})[thread_id]
        with suppress(FormatError):
            return value.type, segments.join(layout)[0]
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
