"""Workflows and activities of the workflow journey."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, ApplicationError

SECOND = timedelta(seconds=1)
BOUND: dict[str, Any] = {"start_to_close_timeout": 30 * SECOND}
ONCE = RetryPolicy(maximum_attempts=1)
SOON = RetryPolicy(initial_interval=SECOND / 20, backoff_coefficient=1)


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@activity.defn
def refuse(text: str) -> None:
    raise ApplicationError(text, 1, type="Refused", non_retryable=True)


@activity.defn
async def struggle() -> int:
    """Fails once, then tells how far it is and waits until it is cancelled."""
    info = activity.info()
    if info.attempt == 1:
        raise ApplicationError("too early")
    while True:
        activity.heartbeat("half", info.attempt)
        await asyncio.sleep(0.05)


@activity.defn
async def beat(seconds: float) -> int:
    """Works for so long, and says so; returns which attempt has done it."""
    for _ in range(round(seconds * 10)):
        activity.heartbeat()
        await asyncio.sleep(0.1)
    return activity.info().attempt


@workflow.defn
class Beat:
    @workflow.run
    async def run(self, seconds: float) -> int:
        return await workflow.execute_activity(beat, seconds, heartbeat_timeout=2 * SECOND, **BOUND)


@workflow.defn
class Double:
    @workflow.run
    async def run(self, number: int) -> int:
        return await workflow.execute_activity(double, number, **BOUND)


@workflow.defn
class Fail:
    """Fails by itself, or with an activity's failure."""

    @workflow.run
    async def run(self, where: str) -> None:
        if where == "activity":
            await workflow.execute_activity(refuse, "not so", **BOUND)
        raise ApplicationError("no good", {"a": 1}, type="Trouble")


@workflow.defn
class Cart:
    """A workflow that is talked to: it ends when it is told to."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.over = False

    @workflow.run
    async def run(self, first: str = "") -> list[str]:
        if first:
            self.items.insert(0, first)
        await workflow.wait_condition(lambda: self.over)
        return self.items

    @workflow.signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @workflow.signal
    def close(self) -> None:
        self.over = True

    @workflow.query
    def count(self) -> int:
        return len(self.items)

    @workflow.query
    def broken(self) -> int:
        raise ApplicationError("cannot count")

    @workflow.update
    async def put(self, item: str) -> int:
        await workflow.sleep(SECOND / 100)
        self.items.append(item)
        return len(self.items)

    @put.validator
    def check(self, item: str) -> None:
        if not item:
            raise ApplicationError("nothing to put", type="Empty")

    @workflow.update
    async def burn(self) -> None:
        raise ApplicationError("burnt", type="Fire")

    @workflow.update
    async def when_closed(self) -> str:
        await workflow.wait_condition(lambda: self.over)
        return "closed"


@workflow.defn
class Count:
    """Continues as new until it has counted down."""

    @workflow.run
    async def run(self, left: int, runs: int = 1) -> int:
        if left:
            workflow.continue_as_new(args=[left - 1, runs + 1])
        return runs


@workflow.defn
class Again:
    """Fails until its third attempt."""

    @workflow.run
    async def run(self) -> int:
        attempt = workflow.info().attempt
        if attempt < 3:
            raise ApplicationError(f"attempt {attempt}")
        return attempt


@workflow.defn
class Struggle:
    """Cancels its activity when it is cancelled itself, and says so."""

    @workflow.run
    async def run(self) -> str:
        try:
            await workflow.execute_activity(
                struggle, heartbeat_timeout=10 * SECOND, retry_policy=SOON, **BOUND
            )
        except ActivityError as error:
            return f"{type(error.cause).__name__} of {error.activity_type}"
        return "done"


@workflow.defn
class Sleep:
    @workflow.run
    async def run(self, seconds: float) -> None:
        await workflow.sleep(timedelta(seconds=seconds))


@workflow.defn
class Parent:
    """Starts a child, and tells its id and result."""

    @workflow.run
    async def run(self, number: int) -> list[Any]:
        handle = await workflow.start_child_workflow(
            Double.run, number, id=f"{workflow.info().workflow_id}-child"
        )
        return [handle.id, await handle]


@workflow.defn
class Memo:
    @workflow.run
    async def run(self) -> dict[str, Any]:
        return dict(workflow.memo())


WORKFLOWS = [Beat, Double, Fail, Cart, Count, Again, Struggle, Sleep, Parent, Memo]
ACTIVITIES = [beat, double, refuse, struggle]
