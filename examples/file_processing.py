"""Download a file on any host, then process and upload it on the host that has it.

    python examples/file_processing.py [--broker URL] [--store URL]

Three workers play three hosts. Each download is taken by whichever of them is free, and says where
it ran; what follows is routed to that host. When the host is gone, its copy of the file is gone,
too, and the workflow begins anew with another download.
"""

import argparse
import asyncio
import gzip
import tempfile
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tq_broker import ActivityError, ApplicationError, Client, Route, Worker, activity, workflow
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "files"
HOSTS = ("host-1", "host-2", "host-3")
ROUNDS_MAX = 5


@dataclass
class Downloaded:
    host: str
    path: str


@dataclass
class Processed:
    path: str
    words: int


@dataclass
class Report:
    host: str
    words: int
    uploaded: str


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def download(url: str) -> Downloaded:
    directory = Path(tempfile.mkdtemp(prefix=f"{activity.info().host}-"))
    target = directory / url.rpartition("/")[2]
    with urllib.request.urlopen(url) as response:
        target.write_bytes(response.read())
    return Downloaded(activity.info().host, str(target))


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def process(path: str) -> Processed:
    data = Path(path).read_bytes()
    compressed = Path(f"{path}.gz")
    compressed.write_bytes(gzip.compress(data))
    return Processed(str(compressed), len(data.split()))


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def upload(path: str, directory: str) -> str:
    # An activity runs at least once; a second time this writes the same file.
    target = Path(directory) / Path(path).name
    target.write_bytes(Path(path).read_bytes())
    return str(target)


@workflow.defn
class FileProcessingWorkflow:
    @workflow.run
    async def run(self, url: str, directory: str) -> Report:
        for _ in range(ROUNDS_MAX):
            try:
                return await self.one_round(url, directory)
            except ActivityError as error:
                if not is_host_gone(error):
                    raise
            workflow.logger.info("the host was lost, downloading again")
        raise ApplicationError(f"{ROUNDS_MAX} hosts were lost one after the other")

    async def one_round(self, url: str, directory: str) -> Report:
        downloaded = await workflow.execute_activity(download, url)
        here = Route.host(downloaded.host)
        processed = await workflow.execute_activity(process, downloaded.path, route=here)
        uploaded = await workflow.execute_activity(
            upload, args=[processed.path, directory], route=here
        )
        return Report(downloaded.host, processed.words, uploaded)


def is_host_gone(error: ActivityError) -> bool:
    return isinstance(error.cause, ApplicationError) and error.cause.type == "TargetGone"


def worker(client: Client, host: str) -> Worker:
    """In real life every machine runs one, and its host is the machine's name."""
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[FileProcessingWorkflow],
        activities=[download, process, upload],
        host=host,
    )


def is_same(path: str, uploaded: str) -> bool:
    return gzip.decompress(Path(uploaded).read_bytes()) == Path(path).read_bytes()


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, AsyncExitStack() as workers:
        for host in HOSTS:
            await workers.enter_async_context(worker(env.client, host))
        with tempfile.TemporaryDirectory(prefix="uploads-") as uploads:
            report = await env.client.execute_workflow(
                FileProcessingWorkflow.run,
                args=[Path(__file__).absolute().as_uri(), uploads],
                id="process-this-file",
                task_queue=TASK_QUEUE,
            )
            print(f"{report.words} words, all on {report.host}")
            print("verified:", is_same(__file__, report.uploaded))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
