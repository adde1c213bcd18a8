"""Workflows to be served while their services are killed: each uses most of what there is.

What their activities do stands in the ledger that the environment names; `keys` tells which keys
an order has there.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from integration.journey import is_lost
from integration.journey_activities import note
from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, ApplicationError

SECOND = timedelta(seconds=1)
BOUND: dict[str, Any] = {"start_to_close_timeout": 120 * SECOND}
SOON = RetryPolicy(initial_interval=SECOND / 10, backoff_coefficient=1)
ONCE = RetryPolicy(maximum_attempts=1)

TOLD = [1, 2, 3]
"""What the client tells an order, one after the other."""
STAMP = 100
"""What its child tells it."""


def keys(order: str) -> list[str]:
    """The keys of an order's activities, but for the one that must not run twice."""
    return [f"{order}/{part}" for part in ("first", "thread", "flaky", "put", "local", "child")]


def once_key(order: str) -> str:
    """The key of its activity that must not run twice."""
    return f"{order}/once"


# --- activities -----------------------------------------------------------------------------------


@activity.defn
async def on_loop(key: str) -> str:
    note("start", key)
    await asyncio.sleep(0.05)
    note("effect", key)
    return key


@activity.defn
def in_thread(key: str) -> str:
    note("start", key)
    time.sleep(0.1)
    note("effect", key)
    return key


@activity.defn
async def flaky(key: str) -> int:
    """Fails at its first attempt."""
    note("start", key)
    attempt = activity.info().attempt
    if attempt == 1:
        raise ApplicationError("too early")
    note("effect", key)
    return attempt


@activity.defn
async def long(seconds: float) -> int:
    """Its first attempt takes ``seconds``."""
    attempt = activity.info().attempt
    if attempt == 1:
        await asyncio.sleep(seconds)
    return attempt


# --- workflows ------------------------------------------------------------------------------------


@workflow.defn
class Order:
    """Ends when it was told everything, stamped by its child, and put to once."""

    @workflow.init
    def __init__(self, key: str, told: list[int] | None = None, total: int = 0) -> None:
        self.key = key
        self.told = list(told or ())
        self.total = total

    @workflow.run
    async def run(self, key: str, told: list[int] | None = None, total: int = 0) -> dict[str, Any]:
        if told is None:
            await workflow.execute_activity(on_loop, f"{key}/first", retry_policy=SOON, **BOUND)
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(args=[key, self.told, self.total])
        child = await workflow.start_child_workflow(
            Part.run, args=[key], id=f"{key}-part", retry_policy=SOON
        )
        once = asyncio.create_task(self._once())
        thread, attempt, part = await asyncio.gather(
            workflow.execute_activity(in_thread, f"{key}/thread", retry_policy=SOON, **BOUND),
            workflow.execute_activity(flaky, f"{key}/flaky", retry_policy=SOON, **BOUND),
            child,
        )
        # A replay that draws another number sleeps another time, which is found.
        await workflow.sleep(workflow.random().uniform(0.05, 0.5))
        local = await workflow.execute_local_activity(on_loop, f"{key}/local", **BOUND)
        await workflow.wait_condition(lambda: self.total > 0 and len(self.told) > len(TOLD))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return {
            "told": [one for one in self.told if one != STAMP],
            "stamps": self.told.count(STAMP),
            "total": self.total,
            "parts": [thread, local, part],
            "is_retried": attempt > 1,
            "once": await once,
        }

    async def _once(self) -> str:
        key = once_key(self.key)
        try:
            await workflow.execute_activity(in_thread, key, retry_policy=ONCE, **BOUND)
        except ActivityError as error:
            if not is_lost(error):
                raise
            return "lost"
        return "ok"

    @workflow.signal
    def tell(self, number: int) -> None:
        self.told.append(number)

    @workflow.update
    async def put(self, number: int) -> int:
        await workflow.execute_activity(on_loop, f"{self.key}/put", retry_policy=SOON, **BOUND)
        self.total += number
        return self.total

    @workflow.query
    def count(self) -> int:
        return len(self.told)


@workflow.defn
class Part:
    """Fails at first; then it stamps its parent."""

    @workflow.run
    async def run(self, key: str) -> str:
        if workflow.info().attempt == 1:
            raise ApplicationError("not at once")
        done = await workflow.execute_activity(on_loop, f"{key}/child", retry_policy=SOON, **BOUND)
        parent = workflow.info().parent
        assert parent is not None, "an order has started it"
        await workflow.get_external_workflow_handle(parent.workflow_id).signal("tell", STAMP)
        return done


@workflow.defn
class Wait:
    """Waits for one word, and returns it."""

    def __init__(self) -> None:
        self.word = ""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: bool(self.word))
        return self.word

    @workflow.signal
    def tell(self, word: str) -> None:
        self.word = word

    @workflow.query
    def said(self) -> str:
        return self.word


@workflow.defn
class Long:
    """One long activity; returns which attempt has ended it, or -1 if it is lost."""

    @workflow.run
    async def run(self, seconds: float, once: bool = False) -> int:
        try:
            return await workflow.execute_activity(
                long, seconds, retry_policy=ONCE if once else SOON, **BOUND
            )
        except ActivityError as error:
            if not is_lost(error):
                raise
            return -1
