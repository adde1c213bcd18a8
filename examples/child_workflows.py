"""A workflow that starts others and waits for them: orders with a parcel for each article.

    python examples/child_workflows.py [--broker URL] [--store URL]

A child has an id and a history of its own, can be asked and told things like any workflow, and may
run on another task queue. A child that fails fails only itself; its parent decides what that means.
"""

import argparse
import asyncio
from datetime import timedelta

from tq_broker import ApplicationError, Client, Worker, activity, workflow
from tq_broker.exceptions import ChildWorkflowError
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "orders"


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
async def send_parcel(article: str) -> str:
    if article == "unicorn":
        raise ApplicationError("there are no unicorns", non_retryable=True)
    return f"parcel with a {article}"


@workflow.defn
class ParcelWorkflow:
    @workflow.run
    async def run(self, article: str) -> str:
        return await workflow.execute_activity(send_parcel, article)


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, articles: list[str]) -> list[str]:
        # All at the same time, as with any other coroutines.
        return await asyncio.gather(*map(self.parcel, articles))

    async def parcel(self, article: str) -> str:
        try:
            return await workflow.execute_child_workflow(
                ParcelWorkflow.run,
                article,
                id=f"{workflow.info().workflow_id}/{article}",
                # Were the order terminated, a parcel that is under way would still arrive.
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
        except ChildWorkflowError:
            return f"voucher instead of a {article}"


def worker(client: Client) -> Worker:
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[OrderWorkflow, ParcelWorkflow],
        activities=[send_parcel],
    )


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        for line in await env.client.execute_workflow(
            OrderWorkflow.run, ["lamp", "unicorn", "chair"], id="order-17", task_queue=TASK_QUEUE
        ):
            print(line)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
