"""Continuing as new."""

from __future__ import annotations

from datetime import timedelta

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.common import RetryPolicy
from tq_broker.model.commands import ContinueAsNew
from tq_broker.model.tasks import WireRetryPolicy


@workflow.defn(name="next one")
class Next:
    @workflow.run
    async def run(self, a: int, b: int) -> None: ...


@workflow.defn
class First:
    @workflow.run
    async def run(self) -> None:
        workflow.continue_as_new(
            args=[1, 2],
            workflow=Next.run,
            backoff_start_interval=timedelta(seconds=1),
            run_timeout=timedelta(seconds=2),
            task_timeout=timedelta(seconds=3),
            retry_policy=RetryPolicy(maximum_attempts=4),
        )


def test_all_options_arrive() -> None:
    assert Run(First).task().commands == [
        ContinueAsNew(
            workflow_type="next one",
            input=b"[1,2]",
            backoff_ms=1000,
            run_timeout_ms=2000,
            task_timeout_ms=3000,
            retry_policy=WireRetryPolicy(attempts=4),
        )
    ]
