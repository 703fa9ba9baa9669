"""LangGraph's own conformance suite passes in full, on a fresh database for each capability."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.conformance.report import ProgressCallbacks

from checkpointer import create_saver

CAPABILITIES = {capability.value for capability in Capability}


async def test_every_capability_conforms(
    new_migrated_url: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    @checkpointer_test(name="checkpointer")
    async def factory() -> AsyncGenerator[BaseCheckpointSaver[Any], None]:
        async with create_saver(new_migrated_url()) as saver:
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
