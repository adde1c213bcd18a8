"""What workflow code asks about its run."""

from __future__ import annotations

from typing import Any

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.model.failure import application


@workflow.defn
class Asking:
    @workflow.run
    async def run(self) -> list[Any]:
        failure = workflow.get_last_failure()
        missing = "no"
        try:
            workflow.memo_value("x")
        except KeyError:
            missing = "yes"
        return [
            workflow.payload_converter().encode(1).decode(),
            workflow.cancellation_reason(),
            str(failure),
            missing,
            workflow.get_last_completion_result(int),
        ]


def test_it_is_told() -> None:
    run = Run(Asking, last_failure=application("alas", "Bad"), last_completion_result=b"5")
    run.task()
    assert run.result() == ["1", None, "alas", "yes", 5]
