"""A workflow of one activity.

    python examples/hello_workflow.py [--broker URL] [--store URL]

Without options, broker and history live in this process and end with it.
"""

import argparse
import asyncio
from datetime import timedelta

from tq_broker import Client, Worker, activity, workflow
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "hello"


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
async def compose_greeting(greeting: str, name: str) -> str:
    # An activity may do whatever it likes: call a service, write to a database, take an hour.
    return f"{greeting}, {name}!"


@workflow.defn
class GreetingWorkflow:
    # A workflow decides what happens next. Its code runs again from the beginning when a worker
    # has to learn where it stood, so all that touches the world is left to activities.
    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(compose_greeting, args=["Hello", name])


def worker(client: Client) -> Worker:
    """Serves the workflow and its activity; in real life a process of its own, or many."""
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[GreetingWorkflow],
        activities=[compose_greeting],
    )


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        # The id names the workflow: at most one with it is open at a time.
        result = await env.client.execute_workflow(
            GreetingWorkflow.run, "Ada", id="greet-ada", task_queue=TASK_QUEUE
        )
        print(result)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
