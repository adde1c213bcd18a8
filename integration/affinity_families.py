"""Workflows whose affinity is that of their activities, children and next runs."""

from __future__ import annotations

import asyncio

from integration.affinity_workflows import Place, where
from tq_broker import workflow
from tq_broker.exceptions import ActivityError, AffinityLostError, ChildWorkflowError


@workflow.defn
class Kid:
    """Says nothing about where it runs; has as many generations below it as it is told to."""

    @workflow.run
    async def run(self, below: int, overcomes: bool = False) -> list[Place]:
        try:
            places = [await workflow.execute_activity(where)]
        except ActivityError as error:
            if not (overcomes and isinstance(error.cause, AffinityLostError)):
                raise
            places = [await workflow.execute_activity(where, on_lost="restart_affinity")]
        if below:
            places += await workflow.execute_child_workflow(Kid.run, below - 1)
        return places


@workflow.defn(affinity="host")
class Family:
    """An activity, children side by side, and a next run with one more activity."""

    @workflow.run
    async def run(self, earlier: list[Place]) -> list[Place]:
        places = [*earlier, await workflow.execute_activity(where)]
        if not earlier:
            kids = [workflow.execute_child_workflow(Kid.run, 1) for _ in range(3)]
            for found in await asyncio.gather(*kids):
                places += found
            workflow.continue_as_new(args=[places])
        return places


@workflow.defn
class Guarded:
    """Has a child when it is told to, after the host of its activity may have gone."""

    def __init__(self) -> None:
        self.goes_on = False
        self.places: list[Place] = []

    @workflow.run
    async def run(self, overcomes: bool) -> str:
        self.places.append(await workflow.execute_activity(where))
        await workflow.wait_condition(lambda: self.goes_on)
        try:
            self.places += await workflow.execute_child_workflow(Kid.run, args=[1, overcomes])
        except ChildWorkflowError as error:
            cause = getattr(error.cause, "cause", None)
            return f"{type(error.cause).__name__}: {type(cause).__name__}"
        return " ".join(host for host, _ in self.places)

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True

    @workflow.query
    def so_far(self) -> list[Place]:
        return self.places


FAMILIES = [Kid, Family, Guarded]
