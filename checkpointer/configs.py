"""LangGraph's configs and metadata, to what statements take."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata

from checkpointer.dialect import Dialect
from checkpointer.errors import InvalidInputError
from checkpointer.identifiers import check_key, identifier
from checkpointer.projection import project_filter
from checkpointer.quoting import quoted
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
        InvalidInputError: It names no thread, or an identifier cannot be stored.
    """
    configurable = _part_of(config, "configurable")
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidInputError(
            "found a config without a thread_id, expected one; pass "
            '{"configurable": {"thread_id": "..."}}'
        )
    namespace, checkpoint_id = configurable.get("checkpoint_ns"), configurable.get("checkpoint_id")
    if namespace is not None:
        namespace = identifier("checkpoint_ns", namespace, dialect)
    if checkpoint_id is not None:
        checkpoint_id = identifier("checkpoint_id", checkpoint_id, dialect) or None
    check_key(namespace or "", checkpoint_id or "")
    return Key(identifier("thread_id", thread_id, dialect), namespace, checkpoint_id)


def conditions_of(
    config: RunnableConfig | None,
    filter_: dict[str, Any] | None,
    before: RunnableConfig | None,
    dialect: Dialect,
) -> dict[str, Any]:
    """The parameters of a list; which of them are there says which conditions hold.

    Raises:
        InvalidInputError: The config names no thread, or an identifier cannot be stored.
        InvalidFilterError: The filter is not a JSON object.
    """
    conditions: dict[str, Any] = {}
    if config is not None:
        named = asdict(key_of(config, dialect))
        conditions = {name: value for name, value in named.items() if value is not None}
    if filter_ is not None and (projected := project_filter(filter_)):
        conditions["filter"] = projected
    before_id = None if before is None else _part_of(before, "configurable").get("checkpoint_id")
    if before_id is not None and (text := identifier("checkpoint_id", before_id, dialect)):
        conditions["before"] = text
    return conditions


def check_limit(limit: object) -> None:
    """Refuse what is no number of checkpoints.

    Raises:
        InvalidInputError: It is neither `None` nor an integer of 0 or more.
    """
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise InvalidInputError(
            f"found the limit {quoted(limit)}, expected 0 or more, or None for all"
        )


def mapping(what: str, value: object) -> Mapping[Any, Any]:
    """`value`, if it is a mapping.

    Raises:
        InvalidInputError: It is none.
    """
    # A dict first: asking whether something is a Mapping takes five times as long.
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101
        return value
    raise InvalidInputError(f"found {quoted(value)} as {what}, expected a mapping")


def _part_of(config: RunnableConfig, part: str) -> Mapping[Any, Any]:
    found = mapping("the config", config).get(part)
    return {} if found is None else mapping(part, found)


def config_for(namespace: Namespace, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {"configurable": {**namespace.parameters(), "checkpoint_id": checkpoint_id}}


def full_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """The metadata, with what the config adds to it.

    As langgraph-checkpoint's `get_checkpoint_metadata`, but NUL characters stay in strings.

    Raises:
        InvalidInputError: The metadata, or the config's own, is no mapping.
    """
    merged: dict[str, Any] = dict(mapping("the metadata", metadata))
    for part in ("metadata", "configurable"):
        for key, value in _part_of(config, part).items():
            if key in EXCLUDED_METADATA_KEYS or key in merged or not isinstance(key, str):
                continue
            if isinstance(value, str | int | float) and not key.startswith("__"):
                merged[key] = value
    return merged
