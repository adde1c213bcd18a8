"""Environments for tests of workflows. More of workflows that run in one: ``tests/examples``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import ApplicationError, RetryPolicy, Worker, activity, workflow
from tq_broker.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from tq_broker.exceptions import TimeoutError
from tq_broker.testing import WorkflowEnvironment

MONTH = timedelta(days=30)
HOUR = timedelta(hours=1)


@activity.defn(
    start_to_close_timeout=HOUR,
    retry_policy=RetryPolicy(initial_interval=HOUR, backoff_coefficient=1.0),
)
async def fails_five_times() -> int:
    if activity.info().attempt <= 5:
        raise ValueError("not yet")
    return activity.info().attempt


@workflow.defn
class Patient:
    @workflow.run
    async def run(self) -> int:
        return int(await workflow.execute_activity(fails_five_times))


@workflow.defn
class Daily:
    @workflow.run
    async def run(self) -> int:
        done = workflow.get_last_completion_result(int) or 0
        if done == 9:
            raise ApplicationError("enough")
        return int(done + 1)


def worker(env: WorkflowEnvironment) -> Worker:
    return Worker(
        env.client, task_queue="t", workflows=[Patient, Daily], activities=[fails_five_times]
    )


def run(journey: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(journey, 60))


def test_a_local_environment_serves_on_the_machines_clock() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_local() as env:
            assert not env.supports_time_skipping
            handle = await env.client.start_workflow("Any", id="w", task_queue="t")
            assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
            with env.auto_time_skipping_disabled():
                await env.sleep(0.001)

    run(journey())


class Counting(OutboundInterceptor):
    started = 0

    async def start_workflow(self, input: StartWorkflowInput) -> Any:
        Counting.started += 1
        return await super().start_workflow(input)


class Counts(Interceptor):
    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return Counting(next)


def test_time_is_skipped_within_interceptors_too() -> None:
    async def journey() -> None:
        start = WorkflowEnvironment.start_time_skipping(interceptors=[Counts()])
        async with await start as env, worker(env):
            began = await env.get_current_time()
            assert await env.client.execute_workflow(Patient.run, id="w", task_queue="t") == 6
            assert await env.get_current_time() - began >= 5 * HOUR
            assert Counting.started == 1

    run(journey())


def test_waiting_for_a_result_skips_time() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env:
            assert env.supports_time_skipping
            began = await env.get_current_time()
            handle = await env.client.start_workflow(
                "Any", id="w", task_queue="t", execution_timeout=MONTH
            )
            with pytest.raises(WorkflowFailureError) as failed:
                await handle.result()
            assert isinstance(failed.value.cause, TimeoutError)
            passed = await env.get_current_time() - began
            assert MONTH <= passed < MONTH + timedelta(minutes=1)
            # Also of what has ended long before.
            assert (await handle.describe()).status is WorkflowExecutionStatus.TIMED_OUT

    run(journey())


def test_executing_skips_time() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env:
            with pytest.raises(WorkflowFailureError):
                await env.client.execute_workflow("Any", id="w", task_queue="t", run_timeout=MONTH)

    run(journey())


def test_sleeping_skips_time_but_not_what_comes_before() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env:
            began = await env.get_current_time()
            handle = await env.client.start_workflow(
                "Any", id="w", task_queue="t", run_timeout=MONTH
            )
            await env.sleep(MONTH - timedelta(days=1))
            assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
            await env.sleep(timedelta(days=2).total_seconds())
            description = await handle.describe()
            assert description.status is WorkflowExecutionStatus.TIMED_OUT
            assert description.close_time is not None
            assert description.close_time - began < MONTH + timedelta(minutes=1)

    run(journey())


def test_the_pauses_between_attempts_are_skipped() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env, worker(env):
            began = await env.get_current_time()
            assert await env.client.execute_workflow(Patient.run, id="w", task_queue="t") == 6
            passed = await env.get_current_time() - began
            assert 5 * HOUR <= passed < 5 * HOUR + timedelta(minutes=1)

    run(journey())


def test_so_are_the_pauses_of_a_standalone_activity() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env, worker(env):
            handle = await env.client.start_activity(fails_five_times, task_queue="t")
            await env.sleep(6 * HOUR)
            assert await handle.result(timeout=10) == 6

    run(journey())


def test_days_of_a_cron_schedule_pass_one_by_one() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env, worker(env):
            handle = await env.client.start_workflow(
                Daily.run, id="w", task_queue="t", cron_schedule="0 6 * * *"
            )
            await env.sleep(timedelta(days=9))
            count = await env.client.count_workflows("status = 'completed'")
            assert count.count == 9
            await handle.terminate()

    run(journey())


def test_where_skipping_is_disabled_waiting_takes_its_time() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_time_skipping() as env:
            handle = await env.client.start_workflow(
                "Any", id="w", task_queue="t", run_timeout=MONTH
            )
            began = await env.get_current_time()
            with env.auto_time_skipping_disabled():
                waiting = asyncio.ensure_future(handle.result())
                for _ in range(20):
                    await handle.describe()
                assert await env.get_current_time() - began < timedelta(minutes=1)
            with pytest.raises(WorkflowFailureError):
                await waiting

    run(journey())


def test_an_environment_around_a_client_leaves_it_open() -> None:
    async def journey() -> None:
        client = await Client.connect("memory://around-a-client")
        async with WorkflowEnvironment.from_client(client) as env:
            assert env.client is client
            assert not env.supports_time_skipping
        await client.start_activity(
            "any", task_queue="t", start_to_close_timeout=MONTH, wait_result=False
        )
        await client.close()

    run(journey())
