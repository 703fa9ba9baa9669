"""Reads at READ COMMITTED, run again where what they found was changed between their statements."""

from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.sql.base import Executable

from checkpointer.dialect import Dialect, Work
from checkpointer.errors import DamagedDataError
from checkpointer.execution import NOTHING, Connection, Parameters
from checkpointer.predicates import KEY, any_key, keys
from checkpointer.tables import checkpoints

T = TypeVar("T")

_NAMES: Final = (*KEY, "parent_checkpoint_id", "manifest")


def read_steadily(connection: Connection, dialect: Dialect, work: Work[T]) -> T:
    """Run work that reads checkpoints and what belongs to them, until none was changed meanwhile.

    Each statement may see what others have committed since the one before: a checkpoint, but not
    the writes that went with it. It runs again only where others have deleted, pruned or replaced a
    checkpoint that it has found. What is new since is no matter.

    Raises:
        DamagedDataError: The work raises it, and nothing was changed.
    """
    while True:
        noting = _Noting(connection)
        try:
            done = work(noting)
        except DamagedDataError:
            if noting.stands(dialect):
                raise
        else:
            if noting.stands(dialect):
                return done


class _Noting(Connection):
    """Runs statements on a connection, and notes the checkpoints that they find."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._statements = 0
        self._noted: dict[tuple[str, str, str], tuple[str | None, int]] = {}

    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Any:
        """All rows of a statement."""
        rows = self._connection.fetch(statement, parameters)
        self._statements += 1
        if rows and set(_NAMES).issubset(rows[0]._fields):
            for row in rows:
                if row.manifest is not None:  # a write beside its checkpoint has none
                    self._noted.setdefault(_key(row), _state(row))
        return rows

    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement that returns nothing."""
        self._connection.execute(statement, *rows)

    def stands(self, dialect: Dialect) -> bool:
        """Whether each checkpoint is as it was; a single statement sees one moment anyway."""
        if self._statements < 2 or not self._noted:  # noqa: PLR2004
            return True
        columns = (checkpoints.c[name] for name in _NAMES)
        named = sa.select(*columns).where(*any_key(dialect, checkpoints))
        found = self._connection.fetch(named, keys(self._noted))
        now = {_key(row): _state(row) for row in found}
        return all(now.get(key) == state for key, state in self._noted.items())


def _key(row: Any) -> tuple[str, str, str]:
    return row.thread_id, row.checkpoint_ns, row.checkpoint_id


def _state(row: Any) -> tuple[str | None, int]:
    return row.parent_checkpoint_id, hash(row.manifest)
