"""The job of ``tq-broker demo --workflow``: `tq_broker.cli.demo_job.FileJob`, as a workflow.

The steps are the same. But here the program that takes them is itself on a task queue: any worker
goes on with it when another one dies, and nobody has to stay alive for it. What `WorkflowJob` does
is only to start it and to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tq_broker import workflow
from tq_broker.cli.demo_activities import (
    Downloaded,
    Processed,
    Uploaded,
    Work,
    download,
    process,
    upload,
)
from tq_broker.cli.demo_job import (
    ROUNDS_MAX,
    Progress,
    Row,
    is_target_gone,
    reason,
    verified,
)
from tq_broker.client import Client, WorkflowHandle
from tq_broker.clock import SystemClock
from tq_broker.common import Route
from tq_broker.exceptions import ActivityError, ApplicationError, TqBrokerError

LOOK_S = 0.05
"""How often the progress is asked for. History answers that without asking a worker."""


@dataclass(frozen=True)
class Report:
    """What became of one file. ``sha256`` is that of what was downloaded."""

    host: str
    attempts: int
    words: int
    sha256: str
    path: str


@workflow.defn(name="demo-file")
class FileWorkflow:
    """The way of one file: download anywhere, process and upload on the same host."""

    def __init__(self) -> None:
        self._attempts = 0
        self._host = "-"

    @workflow.run
    async def run(self, work: Work) -> Report:
        for _ in range(ROUNDS_MAX):
            try:
                return await self._round(work)
            except ActivityError as error:
                if not is_target_gone(error):
                    raise
            self._say("lost, starting over")
        raise ApplicationError(f"{ROUNDS_MAX} hosts were lost one after the other")

    @workflow.query
    def attempts(self) -> int:
        """Rounds from the download on, and activity attempts that were lost or failed."""
        return self._attempts

    async def _round(self, work: Work) -> Report:
        self._attempts += 1
        downloaded: Downloaded = await self._execute(download, work)
        self._host = downloaded.host
        self._say("downloaded")

        same_host = Route.host(downloaded.host)
        processed: Processed = await self._execute(process, work, route=same_host)
        self._say("processed")
        uploaded: Uploaded = await self._execute(upload, work, route=same_host)
        self._say("uploaded")
        return Report(
            downloaded.host, self._attempts, processed.words, downloaded.sha256, uploaded.path
        )

    async def _execute(self, activity: Callable[..., Any], work: Work, **options: Any) -> Any:
        result = await workflow.execute_activity(activity, work, **options)
        self._attempts += result.attempt - 1
        return result

    def _say(self, what: str) -> None:
        # Told with each workflow task, for whoever describes this workflow.
        workflow.set_current_details(f"{what} on {self._host}")


class WorkflowJob:
    """Starts the workflow of one file, and passes on what it says of itself."""

    def __init__(self, client: Client, task_queue: str, work: Work, progress: Progress) -> None:
        self._client = client
        self._task_queue = task_queue
        self._work = work
        self._progress = progress
        self._host = "-"
        self._details = ""

    async def run(self) -> Row:
        """Start it, and wait for its end; never raises its failure."""
        clock = SystemClock()
        began = clock.monotonic()
        attempts, words, sha256, error = 0, 0, "", ""
        try:
            handle = await self._client.start_workflow(
                FileWorkflow.run,
                self._work,
                id=f"{self._task_queue}/{self._work.name}",
                task_queue=self._task_queue,
            )
            report = await self._watched(handle)
            attempts, words, self._host = report.attempts, report.words, report.host
            sha256 = await asyncio.to_thread(verified, self._work, report.sha256, Path(report.path))
            self._progress(self._work.name, "done", self._host)
        except TqBrokerError as failure:
            error = reason(failure)
            self._progress(self._work.name, f"failed: {error}", self._host)
            attempts = attempts or await self._attempts()
        seconds = clock.monotonic() - began
        return Row(self._work.name, self._host, attempts, seconds, words, sha256, error)

    async def _watched(self, handle: WorkflowHandle[Report]) -> Report:
        watching = asyncio.create_task(self._watch(handle))
        try:
            return await handle.result()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, TqBrokerError):
                await watching

    async def _watch(self, handle: WorkflowHandle[Report]) -> None:
        while True:
            self.look((await handle.describe()).current_details)
            await asyncio.sleep(LOOK_S)

    def look(self, details: str) -> None:
        """Pass on a step that ``details`` tell, unless it is known."""
        if details and details != self._details:
            self._details = details
            what, _, self._host = details.rpartition(" on ")
            self._progress(self._work.name, what, self._host)

    async def _attempts(self) -> int:
        """A workflow that has ended can still be asked: a worker replays it."""
        handle = self._client.get_workflow_handle(f"{self._task_queue}/{self._work.name}")
        try:
            attempts: int = await handle.query(FileWorkflow.attempts)
        except TqBrokerError:  # nobody is left to answer
            return 1
        return attempts
