"""What differs between databases: how work is run on each, and what each spells in its own way.

A unit of work is a plain function of a `Connection`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from checkpointer.errors import InvalidInputError
from checkpointer.execution import Connection
from checkpointer.limits import TIMEOUT
from checkpointer.quoting import quoted

T = TypeVar("T")
Work = Callable[[Connection], T]
CoreWork = Callable[[sa.Connection], T]
Insert = postgresql.Insert | sqlite.Insert


class Dialect(ABC):
    """One kind of database: how it runs work, and the statements it spells in its own way.

    Args:
        timeout: Seconds that a server may take for an answer, or others for their transaction.
    """

    name: ClassVar[str]
    async_driver: ClassVar[str]
    upgrades_on_first_use: ClassVar[bool]
    max_list: ClassVar[int]
    """Items that one statement may take in a list (see `is_any_of`)."""

    locks_rows: ClassVar[bool]
    """Whether a transaction holds single rows, and not the whole database."""

    statements_travel: ClassVar[bool]
    """Whether each statement is a round trip, and not each transaction."""

    has_arrays: ClassVar[bool]
    """Whether rows may be passed as one array a column, and changed in WITH clauses."""

    has_schemas: ClassVar[bool]
    """Whether tables may stand in a schema of their own."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout

    @abstractmethod
    def pool_options(self) -> dict[str, Any]:
        """Options of an engine of our own, unless the caller chooses another pool."""

    @abstractmethod
    def connect_args(self, url: sa.URL) -> dict[str, Any]:
        """What the driver of an engine of our own connects with."""

    def namespace(self, url: sa.URL) -> str:
        """What the database is called, without where it stands."""
        return url.database or ""

    @abstractmethod
    def prepare(self, engine: AsyncEngine) -> None:
        """Install the hooks that an engine of our own needs, before it connects."""

    @abstractmethod
    async def read(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads. Its statements need not see one snapshot."""

    @abstractmethod
    async def read_snapshot(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same."""

    @abstractmethod
    async def write(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work in one transaction, which may write, and commit it."""

    @abstractmethod
    async def put(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Run work that puts a batch, so that all of a thread's puts are stored or none."""

    @abstractmethod
    async def inspect(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work that only looks, on SQLAlchemy's own connection."""

    @abstractmethod
    async def migrate(self, engine: AsyncEngine, work: CoreWork[T]) -> T:
        """Run work in one transaction on SQLAlchemy's own connection, and commit it."""

    @abstractmethod
    async def join(
        self, connection: AsyncConnection, work: Work[T], *, schema: str | None, writes: bool
    ) -> T:
        """Run work inside the transaction that an application has open on its connection.

        What it has written is undone if it raises, and else shares the transaction's fate.

        Args:
            connection: The application's, which nobody else uses meanwhile.
            work: The work.
            schema: Where the tables stand.
            writes: Whether it may write. If not, what it finds of a checkpoint is of one moment.
        """

    @abstractmethod
    async def drain(self) -> None:
        """Wait for what still runs for callers that were cancelled."""

    @abstractmethod
    def insert(self, table: sa.Table) -> Insert:
        """An INSERT that knows ON CONFLICT."""

    @abstractmethod
    def is_any_of(self, column: sa.ColumnElement[T], name: str) -> sa.ColumnElement[bool]:
        """Whether `column` equals an item of the list bound as `name`."""

    @abstractmethod
    def json_contains(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Whether a JSON column contains the object bound as `name`: PostgreSQL's `@>`."""

    @abstractmethod
    def json_size(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """The stored bytes of a JSON column."""

    @abstractmethod
    def lock_schema(self, connection: sa.Connection) -> None:
        """Within a transaction: let only one migration of this database run at a time."""

    def check_identifier(self, kind: str, value: str) -> None:
        """Refuse an identifier that the database's text columns cannot hold.

        Raises:
            InvalidInputError: It holds a lone surrogate.
        """
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInputError(
                f"found the {kind} {quoted(value)} with the lone surrogate {value[exc.start]!r}, "
                f"expected Unicode text; replace that character"
            ) from exc
