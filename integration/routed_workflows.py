"""Workflows that say themselves whose workers may have their tasks."""

from __future__ import annotations

from tq_broker import workflow
from tq_broker.common import OnGone, Route
from tq_broker.exceptions import ChildWorkflowError


@workflow.defn
class Rounds:
    """Goes on each time that it is told to; asked, it says how often that was."""

    def __init__(self) -> None:
        self.told = 0

    @workflow.signal
    def go_on(self) -> None:
        self.told += 1

    @workflow.query
    def so_far(self) -> int:
        return self.told

    @workflow.run
    async def run(self, rounds: int, continues: bool = False) -> int:
        for number in range(rounds):
            await workflow.wait_condition(lambda least=number: self.told > least)
        if continues:
            workflow.continue_as_new(args=[0])
        return self.told


@workflow.defn(requires={"gpu"})
class Able(Rounds):
    """Needs a capable worker, if nobody says otherwise."""

    @workflow.run
    async def run(self, rounds: int, continues: bool = False) -> int:
        return await super().run(rounds, continues)


@workflow.defn
class Parent:
    """Has children of which it says where they go, or does not."""

    @workflow.run
    async def run(self, host: str, falls_back: bool) -> str:
        on_gone = OnGone.FALL_BACK if falls_back else OnGone.FAIL
        me = workflow.info().workflow_id
        await workflow.execute_child_workflow(Able.run, 0, id=f"{me}-able")
        await workflow.execute_child_workflow(Able.run, 0, id=f"{me}-plain", requires=())
        try:
            await workflow.execute_child_workflow(
                Rounds.run, 0, id=f"{me}-there", route=Route.host(host, on_gone=on_gone)
            )
        except ChildWorkflowError as error:
            return f"{getattr(error.cause, 'type', None)}: {error.cause.message}"
        return "done"


WORKFLOWS = (Rounds, Able, Parent)
