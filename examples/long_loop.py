"""A loop that goes on for years: each run hands its state to the next one.

    python examples/long_loop.py [--broker URL] [--store URL]

Everything that a workflow does is an event of its history, and a history has bounds. So a workflow
without an end *continues as new* now and then: the same workflow id, an empty history, and as much
of the state as the next run needs.
"""

import argparse
import asyncio
from dataclasses import dataclass
from datetime import timedelta

from tq_broker import Client, Worker, activity, workflow
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "meters"
ROUNDS_PER_RUN = 5


@dataclass
class Meter:
    """What travels from run to run."""

    rounds_left: int
    total: int = 0
    runs: int = 1


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
async def read_meter(round_: int) -> int:
    return round_ * 10


@workflow.defn
class MeterWorkflow:
    @workflow.run
    async def run(self, meter: Meter, pause: timedelta) -> Meter:
        for _ in range(min(ROUNDS_PER_RUN, meter.rounds_left)):
            meter.total += await workflow.execute_activity(read_meter, meter.rounds_left)
            meter.rounds_left -= 1
            await workflow.sleep(pause)
            # History says when a run is getting long; this one would not reach that by itself.
            if workflow.info().is_continue_as_new_suggested():
                break
        if meter.rounds_left:
            meter.runs += 1
            workflow.continue_as_new(args=[meter, pause])
        return meter


def worker(client: Client) -> Worker:
    return Worker(client, task_queue=TASK_QUEUE, workflows=[MeterWorkflow], activities=[read_meter])


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, worker(env.client):
        # Who waits for the result waits for the last run of the chain.
        meter = await env.client.execute_workflow(
            MeterWorkflow.run,
            args=[Meter(rounds_left=12), timedelta(milliseconds=10)],
            id="meter-7",
            task_queue=TASK_QUEUE,
        )
        print(f"total {meter.total}, {meter.runs} runs")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
