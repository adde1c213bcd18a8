"""Signals, queries and updates: a shopping basket that lives for as long as its customer shops.

    python examples/messages.py [--broker URL] [--store URL]

========= =============================== ============================ =========================
message   may change the workflow         waits for                    can be refused
========= =============================== ============================ =========================
signal    yes                             history has it               no
query     no                              the answer                   no
update    yes                             the validator, or the result yes, by its validator
========= =============================== ============================ =========================
"""

import argparse
import asyncio
from datetime import timedelta

from tq_broker import ApplicationError, Client, Worker, activity, workflow
from tq_broker.client import WorkflowUpdateFailedError
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "baskets"
PRICES = {"tea": 4, "honey": 7}


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
async def price_of(article: str) -> int:
    return PRICES[article]


@workflow.defn
class BasketWorkflow:
    def __init__(self) -> None:
        self.articles: list[str] = []
        self.total = 0
        self.is_checked_out = False
        self.lock = asyncio.Lock()

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.is_checked_out)
        # Handlers are coroutines of their own; do not leave while one of them is at work.
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.total

    @workflow.signal
    def check_out(self) -> None:
        self.is_checked_out = True

    @workflow.query
    def contents(self) -> list[str]:
        return self.articles

    @workflow.update
    async def add(self, article: str) -> int:
        """Returns the new total."""
        # Two updates may be here at once: between them only one at a time.
        async with self.lock:
            self.total += await workflow.execute_activity(price_of, article)
            self.articles.append(article)
        return self.total

    @add.validator
    def check_article(self, article: str) -> None:
        # What is refused here leaves no trace in the history.
        if article not in PRICES:
            raise ApplicationError(f"we do not sell {article}")


def worker(client: Client) -> Worker:
    return Worker(client, task_queue=TASK_QUEUE, workflows=[BasketWorkflow], activities=[price_of])


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        basket = await env.client.start_workflow(
            BasketWorkflow.run, id="basket-of-ada", task_queue=TASK_QUEUE
        )
        print("total:", await basket.execute_update(BasketWorkflow.add, "tea"))
        print("total:", await basket.execute_update(BasketWorkflow.add, "honey"))
        try:
            await basket.execute_update(BasketWorkflow.add, "gunpowder")
        except WorkflowUpdateFailedError as error:
            print("refused:", error.cause)
        print("contents:", await basket.query(BasketWorkflow.contents))
        await basket.signal(BasketWorkflow.check_out)
        print("to pay:", await basket.result())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
