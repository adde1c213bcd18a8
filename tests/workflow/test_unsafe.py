"""Ways around the restrictions: see also `tests/worker/test_guard.py`."""

from __future__ import annotations

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.workflow.unsafe import unrestricted


def test_a_block_is_unrestricted_until_its_end() -> None:
    with workflow.unsafe.sandbox_unrestricted():
        assert unrestricted.get()
    assert not unrestricted.get()


def test_outside_a_workflow_nothing_is_replayed() -> None:
    assert not workflow.unsafe.is_replaying()
    assert not workflow.unsafe.is_read_only()


@workflow.defn
class Asking:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(workflow.unsafe.is_read_only)


def test_a_condition_is_read_only() -> None:
    assert Run(Asking).task().closed
