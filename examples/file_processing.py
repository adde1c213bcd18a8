"""Download a file on any host, then process and upload it on the host that has it: in four forms.

    python examples/file_processing.py [--broker URL] [--store URL]

Three workers play three hosts, each with a disk of its own. Side by side:

* ``Affinity``: activities follow each other to a host, and begin anew when it is lost;
* ``Session``: one worker process, which never has more files at a time than it has room for;
* ``HostRoute``: the workflow hands the host's name on by itself;
* ``Plain``: no routing; each step runs anywhere, and the file lies where all hosts see it.
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
from tq_broker.exceptions import AffinityLostError, SessionFailedError
from tq_broker.testing import WorkflowEnvironment

TASK_QUEUE = "files"
HOSTS = ("host-1", "host-2", "host-3")
ROUNDS_MAX = 5
SESSION_BOUND = timedelta(minutes=30)


@dataclass
class File:
    host: str
    path: str


@dataclass
class Report:
    hosts: list[str]
    uploaded: str


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def download(url: str, directory: str | None = None) -> File:
    """To the disk of this host, or to a directory that all hosts see."""
    here = activity.info().host
    target = Path(directory or tempfile.mkdtemp(prefix=f"{here}-")) / url.rpartition("/")[2]
    with urllib.request.urlopen(url) as response:
        target.write_bytes(response.read())
    return File(here, str(target))


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def process(path: str) -> File:
    compressed = Path(f"{path}.gz")
    compressed.write_bytes(gzip.compress(Path(path).read_bytes()))
    return File(activity.info().host, str(compressed))


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def upload(path: str, directory: str) -> File:
    # An activity runs at least once; a second time this writes the same file.
    target = Path(directory) / Path(path).name
    target.write_bytes(Path(path).read_bytes())
    return File(activity.info().host, str(target))


def report(*files: File) -> Report:
    return Report(sorted({file.host for file in files}), files[-1].path)


@workflow.defn
class Affinity:
    """The first activity finds a host, also when the one before is lost; the others follow it."""

    @workflow.run
    async def run(self, url: str, directory: str) -> Report:
        for _ in range(ROUNDS_MAX):
            try:
                return await self.one_round(url, directory)
            except ActivityError as error:
                if not isinstance(error.cause, AffinityLostError):
                    raise
        raise ApplicationError(f"{ROUNDS_MAX} hosts were lost one after the other")

    async def one_round(self, url: str, directory: str) -> Report:
        downloaded = await workflow.execute_activity(
            download, url, affinity="host", on_lost="restart_affinity"
        )
        processed = await workflow.execute_activity(process, downloaded.path, affinity="host")
        uploaded = await workflow.execute_activity(
            upload, args=[processed.path, directory], affinity="host"
        )
        return report(downloaded, processed, uploaded)


@workflow.defn
class Session:
    """One worker process has the whole file; when it is lost, another one has."""

    @workflow.run
    async def run(self, url: str, directory: str) -> Report:
        for _ in range(ROUNDS_MAX):
            try:
                async with workflow.session(execution_timeout=SESSION_BOUND) as session:
                    downloaded = await session.execute_activity(download, url)
                    processed = await session.execute_activity(process, downloaded.path)
                    uploaded = await session.execute_activity(
                        upload, args=[processed.path, directory]
                    )
                    return report(downloaded, processed, uploaded)
            except SessionFailedError as error:
                workflow.logger.info("downloading again: %s", error)
        raise ApplicationError(f"{ROUNDS_MAX} sessions failed one after the other")


@workflow.defn
class HostRoute:
    """The download says where it ran, and what follows is routed there."""

    @workflow.run
    async def run(self, url: str, directory: str) -> Report:
        for _ in range(ROUNDS_MAX):
            try:
                return await self.one_round(url, directory)
            except ActivityError as error:
                cause = error.cause
                if not (isinstance(cause, ApplicationError) and cause.type == "TargetGone"):
                    raise
        raise ApplicationError(f"{ROUNDS_MAX} hosts were lost one after the other")

    async def one_round(self, url: str, directory: str) -> Report:
        downloaded = await workflow.execute_activity(download, url)
        here = Route.host(downloaded.host)
        processed = await workflow.execute_activity(process, downloaded.path, route=here)
        uploaded = await workflow.execute_activity(
            upload, args=[processed.path, directory], route=here
        )
        return report(downloaded, processed, uploaded)


@workflow.defn
class Plain:
    """Every step leaves its file where any host finds it: no host can be lost."""

    @workflow.run
    async def run(self, url: str, directory: str) -> Report:
        downloaded = await workflow.execute_activity(download, args=[url, directory])
        processed = await workflow.execute_activity(process, downloaded.path)
        uploaded = await workflow.execute_activity(upload, args=[processed.path, directory])
        return report(downloaded, processed, uploaded)


FORMS = (Affinity, Session, HostRoute, Plain)


def worker(client: Client, host: str) -> Worker:
    """In real life every machine runs one, and its host is the machine's name."""
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=FORMS,
        activities=[download, process, upload],
        max_concurrent_sessions=2,
        host=host,
    )


def is_same(path: str, uploaded: str) -> bool:
    return gzip.decompress(Path(uploaded).read_bytes()) == Path(path).read_bytes()


async def main(**where: str | None) -> None:
    async with await WorkflowEnvironment.start_local(**where) as env, AsyncExitStack() as workers:
        for host in HOSTS:
            await workers.enter_async_context(worker(env.client, host))
        for form in FORMS:
            with tempfile.TemporaryDirectory(prefix="uploads-") as uploads:
                done = await env.client.execute_workflow(
                    form.run,
                    args=[Path(__file__).absolute().as_uri(), uploads],
                    id=f"process-this-file-{form.__name__}",
                    task_queue=TASK_QUEUE,
                )
                same = is_same(__file__, done.uploaded)
            where_it_ran = "one host" if len(done.hosts) == 1 else "several hosts"
            print(f"{form.__name__}: {where_it_ran}, verified: {same}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", metavar="URL")
    options.add_argument("--store", metavar="URL")
    asyncio.run(main(**vars(options.parse_args())))
