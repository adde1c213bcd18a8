"""Workflow time, in three units."""

from __future__ import annotations

from typing import Any

from tests.worker.replays import Run
from tq_broker import workflow


@workflow.defn
class Telling:
    @workflow.run
    async def run(self) -> list[Any]:
        return [workflow.now().isoformat(), workflow.time(), workflow.time_ns()]


def test_the_time_of_the_task() -> None:
    run = Run(Telling)
    run.task(now_ms=1_700_000_000_123)
    assert run.result() == [
        "2023-11-14T22:13:20.123000+00:00",
        1_700_000_000.123,
        1_700_000_000_123_000_000,
    ]
