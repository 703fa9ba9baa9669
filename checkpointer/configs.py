"""LangGraph's configs and metadata, to what statements take."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata

from checkpointer.dialects import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.projection import project_filter
from checkpointer.records import Namespace


@dataclass(frozen=True, slots=True)
class Key:
    """Which checkpoint a config names.

    Attributes:
        checkpoint_ns: `None` where the config does not say.
        checkpoint_id: `None` where the config does not say: the latest.
    """

    thread_id: str
    checkpoint_ns: str | None
    checkpoint_id: str | None

    @property
    def namespace(self) -> Namespace:
        """The namespace, the root graph's where the config does not say."""
        return Namespace(self.thread_id, self.checkpoint_ns or "")


def key_of(config: RunnableConfig, dialect: Dialect) -> Key:
    """Which checkpoint a config names.

    Raises:
        InvalidInputError: It names no thread, or the database cannot hold an identifier.
    """
    configurable = config.get("configurable") or {}
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidInputError(
            "found a config without a thread_id, expected one; pass "
            '{"configurable": {"thread_id": "..."}}'
        )
    parts: list[str | None] = []
    for kind, value in (
        ("thread_id", thread_id),
        ("checkpoint_ns", configurable.get("checkpoint_ns")),
        ("checkpoint_id", configurable.get("checkpoint_id") or None),
    ):
        parts.append(None if value is None else identifier(kind, value, dialect))
    return Key(cast("str", parts[0]), parts[1], parts[2])


def conditions_of(
    config: RunnableConfig | None,
    filter_: dict[str, Any] | None,
    before: RunnableConfig | None,
    dialect: Dialect,
) -> dict[str, Any]:
    """The parameters of a list; which of them are there says which conditions hold.

    Raises:
        InvalidInputError: The config names no thread, or the database cannot hold an identifier.
        InvalidFilterError: The filter is not a JSON object.
    """
    conditions: dict[str, Any] = {}
    if config is not None:
        named = asdict(key_of(config, dialect))
        conditions = {name: value for name, value in named.items() if value is not None}
    if filter_ is not None and (projected := project_filter(filter_)):
        conditions["filter"] = projected
    before_id = (before or {}).get("configurable", {}).get("checkpoint_id")
    if before_id:
        conditions["before"] = identifier("checkpoint_id", before_id, dialect)
    return conditions


def identifier(kind: str, value: object, dialect: Dialect) -> str:
    """`value` as the text that is stored: the `str` of an int or a UUID, for example.

    Raises:
        InvalidInputError: The database cannot hold it.
    """
    if type(value) is str and value.isascii() and "\0" not in value:
        return value  # as nearly all are, and any database can hold
    # The text of a str enum, not its name.
    text = str.__str__(value) if isinstance(value, str) else str(value)
    dialect.check_identifier(kind, text)
    return text


def config_for(namespace: Namespace, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {"configurable": {**namespace.parameters(), "checkpoint_id": checkpoint_id}}


def full_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """The metadata, with what the config adds to it.

    As langgraph-checkpoint's `get_checkpoint_metadata`, but NUL characters stay in strings.
    """
    merged: dict[str, Any] = dict(metadata)
    for source in (config.get("metadata"), config.get("configurable")):
        for name, value in (source or {}).items():
            if name in merged or name in EXCLUDED_METADATA_KEYS or name.startswith("__"):
                continue
            if isinstance(value, str | int | float):
                merged[name] = value
    return merged
