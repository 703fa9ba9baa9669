"""LangGraph's own conformance suite passes in full, on a fresh database for each capability.

On every kind of database, with every driver, and through a pooler.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.conformance.report import ProgressCallbacks
from pgbouncer import through

from checkpointer import create_saver

pytestmark = pytest.mark.everywhere

CAPABILITIES = {capability.value for capability in Capability}

WAYS = {
    "sqlite": ("sqlite", "sqlite+aiosqlite", False, None),
    "stepwise": ("stepwise", "sqlite+aiosqlite", False, None),
    "postgresql": ("postgresql", "postgresql+asyncpg", False, None),
    "psycopg": ("postgresql", "postgresql+psycopg", False, None),
    "pgbouncer": ("postgresql", "postgresql+asyncpg", True, None),
    "pgbouncer-psycopg": ("postgresql", "postgresql+psycopg", True, None),
    "schema": ("postgresql", "postgresql+asyncpg", False, "agents"),
    "schema-psycopg": ("postgresql", "postgresql+psycopg", False, "agents"),
}
"""The kind of database, the driver, whether a pooler stands between, and the tables' schema."""


@pytest.mark.parametrize(
    ("database_kind", "way"),
    [(way[0], way) for way in WAYS.values()],
    ids=WAYS,
    indirect=["database_kind"],
)
async def test_every_capability_conforms(
    new_migrated_url: Callable[[], str],
    way: tuple[str, str, bool, str | None],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, driver, pooled, schema = way
    pooler: sa.URL | None = request.getfixturevalue("pgbouncer_url") if pooled else None

    @checkpointer_test(name="checkpointer")
    async def factory() -> AsyncGenerator[BaseCheckpointSaver[Any], None]:
        url = sa.make_url(new_migrated_url()).set(drivername=driver)
        if pooler is not None:
            url = through(pooler, url)
        async with create_saver(url, schema=schema) as saver:
            if schema is not None:
                await saver.setup()
            yield saver

    report = await validate(factory, progress=ProgressCallbacks.verbose())

    report.print_report()
    failures = [f"{name}: {f}" for name, result in report.results.items() for f in result.failures]
    printed = "\n".join([capsys.readouterr().out, *failures])
    passed = {
        name for name, result in report.results.items() if result.passed and result.tests_passed
    }
    assert passed == CAPABILITIES, printed
    assert report.conformance_level() == "FULL", printed
    assert not failures, printed
