"""A timer that can be set anew while it runs: a reminder that is put off.

    python examples/updatable_timer.py [--broker URL] [--store URL]

The timer is in the history, not in a process: it costs nothing while it runs, and fires also when
every program was restarted meanwhile.
"""

import argparse
import asyncio
import contextlib
from datetime import datetime, timedelta

from tq_broker import Client, Worker, workflow
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "reminders"


@workflow.defn
class ReminderWorkflow:
    def __init__(self) -> None:
        self.wake_at: datetime | None = None
        self.is_changed = False

    @workflow.run
    async def run(self, wake_at: datetime) -> datetime:
        self.wake_at = wake_at
        while (left := self.wake_at - workflow.now()) > timedelta(0):
            self.is_changed = False
            with contextlib.suppress(asyncio.TimeoutError):
                await workflow.wait_condition(lambda: self.is_changed, timeout=left)
        return self.wake_at

    @workflow.signal
    def put_off(self, wake_at: datetime) -> None:
        self.wake_at = wake_at
        self.is_changed = True

    @workflow.query
    def due(self) -> datetime | None:
        return self.wake_at


def worker(client: Client) -> Worker:
    return Worker(client, task_queue=TASK_QUEUE, workflows=[ReminderWorkflow])


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        began = await env.get_current_time()
        reminder = await env.client.start_workflow(
            ReminderWorkflow.run,
            began + timedelta(days=1),
            id="call-grandmother",
            task_queue=TASK_QUEUE,
        )
        await reminder.signal(ReminderWorkflow.put_off, began + timedelta(milliseconds=200))
        due = await reminder.result()
        print("reminded after", due - began)  # and not after a day


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
