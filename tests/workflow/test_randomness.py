"""Randomness of a run: other runs have another."""

from __future__ import annotations

from typing import Any

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.converter import DEFAULT
from tq_broker.model.events import WorkflowTaskScheduled
from tq_broker.model.workflow_tasks import RunKey
from tq_broker.worker.replay import Replay
from tq_broker.workflow.definition import definition_of


@workflow.defn
class Drawing:
    @workflow.run
    async def run(self) -> list[Any]:
        first = workflow.new_random().random()
        second = workflow.new_random().random()
        assert first != second
        assert workflow.uuid4().version == 4
        timed = workflow.uuid7()
        assert (timed.version, timed.int >> 80) == (7, workflow.time_ns() // 1_000_000)
        return [workflow.random().random(), first, second, workflow.random_seed()]


def test_two_runs_draw_differently() -> None:
    run = Run(Drawing)
    run.add(WorkflowTaskScheduled, task_queue="tq")
    drawn = []
    for run_id in ("a", "b"):
        replay = Replay(
            definition_of(Drawing), RunKey("w", run_id), namespace="n", converter=DEFAULT
        )
        drawn.append(replay.activate(run.events, now_ms=1).commands)
        replay.close()
    assert drawn[0] != drawn[1]
