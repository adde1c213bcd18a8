"""Workflows whose activities depend on where others ran, and tell where they did themselves."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy, Route
from tq_broker.exceptions import (
    ActivityError,
    AffinityLostError,
    InvalidArgument,
    SessionFailedError,
)

SECOND = timedelta(seconds=1)
SLOW_RETRY = RetryPolicy(initial_interval=30 * SECOND)
"""Whoever waits for its first interval has not seen a loss in time."""
ROUNDS_MAX = 20

Place = tuple[str, str]


@activity.defn(start_to_close_timeout=60 * SECOND, retry_policy=SLOW_RETRY)
async def where(seconds: float = 0.0) -> Place:
    """Host and worker, after a while."""
    await asyncio.sleep(seconds)
    return activity.info().host, activity.info().worker_id


@workflow.defn
class Follow:
    """A chain of activities of one affinity; begun anew when the target is lost."""

    def __init__(self) -> None:
        self.goes_on = False
        self.lost_ms: list[int] = []
        self.places: list[Place] = []

    @workflow.run
    async def run(self, affinity: str, links: int, seconds: float, on_lost: str) -> list[Place]:
        for _ in range(ROUNDS_MAX):
            try:
                return await self.chain(affinity, links, seconds, on_lost)
            except ActivityError as error:
                if not isinstance(error.cause, AffinityLostError):
                    raise
            self.lost_ms.append(int(workflow.time() * 1000))
        raise AssertionError("lost again and again")

    async def chain(self, affinity: str, links: int, seconds: float, on_lost: str) -> list[Place]:
        self.places = []
        for link in range(links):
            place = await workflow.execute_activity(
                where,
                seconds,
                affinity=affinity,
                on_lost="restart_affinity" if not link else on_lost,
            )
            self.places.append(place)
        return self.places

    @workflow.query
    def so_far(self) -> list[Place]:
        return self.places

    @workflow.query
    def losses(self) -> list[int]:
        return self.lost_ms


@workflow.defn
class Stay:
    """One activity, and when it is told so another one, of the same affinity."""

    def __init__(self) -> None:
        self.goes_on = False
        self.first: list[Place] = []

    @workflow.run
    async def run(self, on_lost: str) -> list[Place]:
        self.first.append(await workflow.execute_activity(where, affinity="host"))
        await workflow.wait_condition(lambda: self.goes_on)
        second = await workflow.execute_activity(where, affinity="host", on_lost=on_lost)
        return [*self.first, second]

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True

    @workflow.query
    def so_far(self) -> list[Place]:
        return self.first


@workflow.defn
class Together:
    """Several at a time, in two groups."""

    @workflow.run
    async def run(self, affinity: str, count: int, seconds: float) -> list[list[Place]]:
        groups = [
            [
                workflow.start_activity(where, seconds, affinity=affinity, affinity_group=group)
                for _ in range(count)
            ]
            for group in ("a", "b")
        ]
        return [[await handle for handle in handles] for handles in groups]


@workflow.defn
class InSession:
    """The same in a session; in another one when it has failed."""

    def __init__(self) -> None:
        self.goes_on = False
        self.failed_ms: list[int] = []
        self.infos: list[workflow.SessionInfo] = []
        self.places: list[Place] = []

    @workflow.run
    async def run(self, links: int, seconds: float, rounds: int, waits: bool) -> list[Place]:
        for _ in range(rounds):
            try:
                async with workflow.session(
                    execution_timeout=120 * SECOND, creation_timeout=60 * SECOND
                ) as session:
                    self.infos.append(session.info)
                    return await self.chain(session, links, seconds, waits)
            except SessionFailedError:
                self.failed_ms.append(int(workflow.time() * 1000))
                self.infos.append(session.info)
        raise AssertionError("failed again and again")

    async def chain(
        self, session: workflow.Session, links: int, seconds: float, waits: bool
    ) -> list[Place]:
        self.places = []
        for _ in range(links):
            self.places.append(await session.execute_activity(where, seconds))
        if waits:
            await workflow.wait_condition(lambda: self.goes_on)
            self.places.append(await session.execute_activity(where, seconds))
        return self.places

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True

    @workflow.query
    def so_far(self) -> list[Place]:
        return self.places

    @workflow.query
    def states(self) -> list[str]:
        return [info.state.value for info in self.infos]

    @workflow.query
    def failures(self) -> list[int]:
        return self.failed_ms


@workflow.defn
class Misuse:
    """What a session refuses, and what comes after it; the reasons."""

    @workflow.run
    async def run(self) -> list[str]:
        said = []
        async with workflow.session(execution_timeout=60 * SECOND) as first:
            try:
                await first.execute_activity(where, route=Route.host("elsewhere"))
            except InvalidArgument as error:
                said.append(str(error))
        try:
            await first.execute_activity(where)
        except InvalidArgument as error:
            said.append(str(error))
        async with first.recreate(execution_timeout=60 * SECOND) as second:
            place = await second.execute_activity(where)
            said.append(str(tuple(place) == (first.info.host, first.info.worker_id)))
        try:
            async with second.recreate(execution_timeout=SECOND) as third:
                await third.execute_activity(where, 30.0)
        except SessionFailedError as error:
            said.append(error.message)
            try:
                third.start_activity(where)
            except SessionFailedError:
                said.append(third.info.state.value)
        try:
            async with workflow.session(
                execution_timeout=SECOND, creation_timeout=SECOND / 2, task_queue="nobody"
            ):
                said.append("it was created")
        except SessionFailedError as error:
            said.append(error.message)
        return said


WORKFLOWS = [Follow, Stay, Together, InSession, Misuse]
ACTIVITIES = [where]
