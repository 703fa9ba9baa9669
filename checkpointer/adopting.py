"""LangGraph's checkpoints and writes of one thread, from wherever they come, into rows of ours."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.backend import off_loop
from checkpointer.cache import ChunkCache, LastCheckpoint
from checkpointer.configs import Key
from checkpointer.encoder import Encoder, NewWrite
from checkpointer.errors import InvalidInputError, SerializationError
from checkpointer.intake import Intake, Target
from checkpointer.moving import CheckpointKey, Outline, Row, fingerprint, write_key
from checkpointer.official import Carried
from checkpointer.quoting import quoted

LAST_VALUES: Final = 32 << 20
"""Bytes of values that are kept, so that the next ones are cut only where they differ."""


class Carrying(SerializerProtocol):
    """A serde that lets dumped values pass as they are.

    Args:
        serde: Dumps all others.
    """

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The type tag and the bytes of a value."""
        if isinstance(obj, Carried):
            return obj.type, obj.data
        return self._serde.dumps_typed(obj)

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
        special = [row for row in put.special_rows if self._differs(row)]
        if put.rows or special:
            self.anything = True
            await self._intake.add_chunks(put.chunks)
            self._intake.add_writes([*put.rows, *special])

    def _may_lack(self, namespace: str, checkpoint_id: str, one: NewWrite) -> bool:
        held = self._held.writes.get((namespace, checkpoint_id, one.task_id, one.idx))
        return one.idx < 0 or held is None or held[:2] != (one.task_path, one.channel)

    def _differs(self, row: Row) -> bool:
        return self._held.writes.get(write_key(row)) != fingerprint(row)

    def _encoder(self, namespace: str, checkpoint_id: str | None) -> Encoder:
        key = Key(self._thread_id, namespace, checkpoint_id)
        return Encoder(self._serde, self._target.dialect, key, self._cache)


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
            f"target's serde can load: {type(exc).__name__}: {exc}; use the serde that stored it"
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
