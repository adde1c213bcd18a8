"""What history knows of the caches of workers, from the runs that come and go in them."""

from __future__ import annotations

import asyncio

from tests.histories.features import ACTIVITIES, WORKFLOWS, Inbox
from tq_broker.client import Client, WorkflowHandle
from tq_broker.model.events import WorkflowTaskScheduled, WorkflowTaskTimedOut
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Worker

PATIENCE_S = 30.0


async def start(client: Client, name: str) -> WorkflowHandle[list[str]]:
    return await client.start_workflow(Inbox.run, name, id=name, task_queue="t")


async def wait_sticky(handle: WorkflowHandle[list[str]], worker_id: str | None) -> None:
    """Until history says that this worker has the run in its cache."""

    async def wait() -> None:
        while (await handle.describe()).sticky_worker != worker_id:
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), PATIENCE_S)


def test_history_is_told_what_leaves_a_cache() -> None:
    async def journey() -> None:
        env = await WorkflowEnvironment.start_local()
        worker = Worker(
            env.client,
            task_queue="t",
            workflows=WORKFLOWS,
            activities=ACTIVITIES,
            max_cached_workflows=1,
            worker_id="small",
        )
        async with env, worker:
            first = await start(env.client, "first")
            await wait_sticky(first, "small")
            second = await start(env.client, "second")
            await wait_sticky(second, "small")
            await wait_sticky(first, None)
            # Its next task goes where every worker can take it, and not into a queue to wait.
            await first.signal(Inbox.tell, "open")
            await wait_sticky(first, "small")
            await wait_sticky(second, None)
            events = (await first.fetch_history()).events
            tasks = [event for event in events if isinstance(event, WorkflowTaskScheduled)]
            assert [task.sticky for task in tasks] == [None, None]
            assert not any(isinstance(event, WorkflowTaskTimedOut) for event in events)
            for handle in (first, second):
                await handle.terminate()

    asyncio.run(journey())


def test_history_is_told_that_a_worker_stops() -> None:
    async def journey() -> None:
        async with await WorkflowEnvironment.start_local() as env:
            worker = Worker(env.client, task_queue="t", workflows=WORKFLOWS, worker_id="leaving")
            async with worker:
                handles = [await start(env.client, f"inbox-{n}") for n in range(20)]
                for handle in handles:
                    await wait_sticky(handle, "leaving")
            for handle in handles:
                await wait_sticky(handle, None)
                await handle.terminate()

    asyncio.run(journey())
