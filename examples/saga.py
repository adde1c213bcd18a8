"""A saga: what was done is undone, last first, when a later step fails.

    python examples/saga.py [--broker URL] [--store URL]

The list of what to undo is a variable of the workflow. It needs no table of its own: should every
worker crash in the middle, the history brings it back.
"""

import argparse
import asyncio
from collections.abc import Callable
from datetime import timedelta

from tq_broker import (
    ActivityError,
    ApplicationError,
    Client,
    RetryPolicy,
    Worker,
    activity,
    workflow,
)
from tq_broker.client import WorkflowFailureError
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "travel"
SOON = timedelta(seconds=10)


@activity.defn(start_to_close_timeout=SOON)
async def book_hotel(trip: str) -> str:
    return f"hotel for {trip}"


@activity.defn(start_to_close_timeout=SOON)
async def book_flight(trip: str) -> str:
    return f"flight for {trip}"


@activity.defn(start_to_close_timeout=SOON)
async def book_excursion(trip: str) -> str:
    raise ApplicationError("the volcano is closed", type="SoldOut", non_retryable=True)


@activity.defn(start_to_close_timeout=SOON, retry_policy=RetryPolicy())
async def cancel_booking(booking: str) -> None:
    # Retried for ever: an undo that gives up leaves somebody paying.
    print(f"cancelled: {booking}", flush=True)


@workflow.defn
class TripWorkflow:
    def __init__(self) -> None:
        self.booked: list[str] = []

    @workflow.run
    async def run(self, trip: str) -> list[str]:
        try:
            for book in (book_hotel, book_flight, book_excursion):
                await self.step(book, trip)
        except ActivityError:
            await self.compensate()
            raise
        return self.booked

    async def step(self, book: Callable[..., object], trip: str) -> None:
        self.booked.append(await workflow.execute_activity(book, trip))

    async def compensate(self) -> None:
        while self.booked:
            await workflow.execute_activity(cancel_booking, self.booked.pop())


def worker(client: Client) -> Worker:
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[TripWorkflow],
        activities=[book_hotel, book_flight, book_excursion, cancel_booking],
    )


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        try:
            await env.client.execute_workflow(
                TripWorkflow.run, "Iceland", id="trip-to-iceland", task_queue=TASK_QUEUE
            )
        except WorkflowFailureError as error:
            # The workflow failed because of an activity, which failed because of this.
            print("no trip:", error.cause.cause)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
