"""The chain of interceptors around an activity."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from typing import Any

import pytest

from tests.worker.attempts import attempt_of
from tests.worker.worlds import World
from tq_broker import activity
from tq_broker.activity import Info, current
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, InvalidArgument
from tq_broker.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)
from tq_broker.worker.activity_chain import intercepted, of_activities

traced: contextvars.ContextVar[str] = contextvars.ContextVar("traced", default="")


@activity.defn
async def on_the_loop(number: int) -> str:
    activity.heartbeat(number)
    await asyncio.sleep(0)
    return f"{activity.info().activity_type} {number} {traced.get()}"


@activity.defn(name="on_the_loop")
def in_a_thread(number: int) -> str:
    activity.heartbeat(number)
    return f"{activity.info().activity_type} {number} {traced.get()}"


class Outbound(ActivityOutboundInterceptor):
    def info(self) -> Info:
        return dataclasses.replace(self.next.info(), activity_type="seen")

    def heartbeat(self, *details: Any) -> None:
        self.next.heartbeat(*details, "more")


class Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, name: str, log: list[str]) -> None:
        super().__init__(next)
        self.name, self.log = name, log

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(Outbound(outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        self.log.append(f"{self.name} {input.args} {input.headers}")
        traced.set(traced.get() + self.name)
        input.args = [input.args[0] + 1]
        return await super().execute_activity(input) + self.name


class Around(Interceptor):
    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.log: list[str] = []

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return Inbound(next, self.name, self.log)


class Idle(Interceptor):
    """Of no interest to activities."""


def test_who_does_not_intercept_activities_costs_them_nothing() -> None:
    around = Around()
    assert of_activities([Idle(), around]) == (around,)


@pytest.mark.parametrize("fn", [on_the_loop, in_a_thread])
def test_interceptors_see_and_change_what_goes_in_and_out(fn: Any) -> None:
    beats: list[Any] = []
    attempt = attempt_of(fn, headers={"k": "v"}, on_heartbeat=lambda a: beats.append(a.details))
    around = [Around("a"), Around("b")]
    called = intercepted(attempt.registered.definition, around)

    def run() -> Any:
        current.set(attempt)
        result = called(1)
        return asyncio.run(result) if fn is on_the_loop else result

    assert contextvars.copy_context().run(run) == "seen 3 abba"
    assert around[0].log == ["a (1,) {'k': 'v'}"]
    assert around[1].log == ["b [2] {'k': 'v'}"]
    assert [[bytes(d) for d in b] for b in beats] == [[b"3", b'"more"', b'"more"']]


class Slow(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        class Sleeping(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                await asyncio.sleep(0)
                return await super().execute_activity(input)

        return Sleeping(next)


@pytest.mark.parametrize("fn", [on_the_loop, in_a_thread])
def test_a_worker_runs_activities_within_its_interceptors(world: World, fn: Any) -> None:
    around = Around()
    world.worker(fn, interceptors=[Idle(), around])
    assert world.run(fn, 1, headers={"k": "v"}) == "seen 2 aa"
    assert around.log == ["a (1,) {'k': 'v'}"]


def test_an_interceptor_of_a_synchronous_activity_has_no_event_loop(world: World) -> None:
    world.worker(in_a_thread, interceptors=[Slow()])
    with pytest.raises(ActivityError, match="may await nothing but next"):
        world.run(in_a_thread, 1, retry_policy=RetryPolicy(maximum_attempts=1))


@pytest.mark.parametrize("given", [3, [3], [Around]])
def test_a_worker_refuses_what_is_no_interceptor(world: World, given: Any) -> None:
    with pytest.raises(InvalidArgument, match="interceptors"):
        world.worker(in_a_thread, interceptors=given)


class Local(Interceptor):
    """One that no process of its own can be given."""

    def __init__(self) -> None:
        self.unpicklable = lambda: None

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return Inbound(next, "x", [])


@activity.defn(executor="process")
def in_a_process(number: int) -> int:
    return number


def test_what_cannot_go_to_a_process_is_refused_when_the_worker_is_made(world: World) -> None:
    with pytest.raises(InvalidArgument, match="interceptors cannot be pickled"):
        world.worker(in_a_process, interceptors=[Local()])
