"""The demo's job as a workflow: in time that is skipped, and watched."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

from tq_broker import activity
from tq_broker.cli.demo_activities import Downloaded, Processed, Uploaded, Work, sha256_of
from tq_broker.cli.demo_workflow import FileWorkflow, WorkflowJob
from tq_broker.exceptions import ApplicationError
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Worker

TEXT = b"one two\n"
HOST = "host-1"


class Hands:
    """The demo's activities, quick, and failing as they are told to."""

    def __init__(self, **errors: list[ApplicationError]) -> None:
        self.errors = errors
        self.downloads = 0

    def _heed(self, name: str) -> None:
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    @activity.defn
    async def download(self, work: Work) -> Downloaded:
        self._heed("download")
        self.downloads += 1
        return Downloaded(activity.info().host, activity.info().attempt, sha256_of(TEXT))

    @activity.defn
    async def process(self, work: Work) -> Processed:
        self._heed("process")
        return Processed(activity.info().attempt, 2)

    @activity.defn
    async def upload(self, work: Work) -> Uploaded:
        self._heed("upload")
        work.uploaded.parent.mkdir(exist_ok=True)
        work.uploaded.write_bytes(gzip.compress(TEXT))
        return Uploaded(activity.info().attempt, str(work.uploaded))


def run(hands: Hands, tmp_path: Path) -> tuple[Any, list[tuple[str, str, str]]]:
    source = tmp_path / "a.txt"
    source.write_bytes(TEXT)
    work = Work("a.txt", str(source), str(tmp_path))
    steps: list[tuple[str, str, str]] = []

    async def journey() -> Any:
        async with (
            await WorkflowEnvironment.start_time_skipping() as env,
            Worker(
                env.client,
                task_queue="files",
                workflows=[FileWorkflow],
                activities=[hands.download, hands.process, hands.upload],
                host=HOST,
            ),
        ):
            job = WorkflowJob(env.client, "files", work, lambda *step: steps.append(step))
            return await job.run()

    return asyncio.run(asyncio.wait_for(journey(), 60)), steps


def gone() -> ApplicationError:
    return ApplicationError("gone", type="TargetGone", non_retryable=True)


def test_a_file_is_brought_through(tmp_path: Path) -> None:
    row, steps = run(Hands(), tmp_path)
    assert (row.file, row.host, row.attempts, row.words) == ("a.txt", HOST, 1, 2)
    assert (row.sha256, row.error) == (sha256_of(TEXT), "")
    assert steps[-1] == ("a.txt", "done", HOST)


def test_when_the_host_is_lost_it_begins_anew(tmp_path: Path) -> None:
    hands = Hands(process=[gone()], upload=[gone()])
    row, _ = run(hands, tmp_path)
    assert (row.attempts, hands.downloads, row.error) == (3, 3, "")


def test_attempts_that_failed_are_counted(tmp_path: Path) -> None:
    row, _ = run(Hands(process=[ApplicationError("once more")]), tmp_path)
    assert (row.attempts, row.error) == (2, "")


def test_hosts_that_are_lost_again_and_again_are_an_error(tmp_path: Path) -> None:
    row, _ = run(Hands(process=[gone() for _ in range(9)]), tmp_path)
    assert (row.attempts, row.error) == (5, "5 hosts were lost one after the other")


def test_what_cannot_be_is_an_error(tmp_path: Path) -> None:
    row, steps = run(Hands(download=[ApplicationError("no", non_retryable=True)]), tmp_path)
    assert (row.attempts, row.error) == (1, "no")
    assert steps[-1] == ("a.txt", "failed: no", "-")


def test_a_step_is_passed_on_once() -> None:
    steps: list[tuple[str, str, str]] = []
    work = Work("a.txt", "/a.txt", "/tmp")
    job = WorkflowJob(None, "files", work, lambda *step: steps.append(step))  # type: ignore[arg-type]
    for details in ("", "downloaded on host-2", "downloaded on host-2", "processed on host-2"):
        job.look(details)
    assert steps == [("a.txt", "downloaded", "host-2"), ("a.txt", "processed", "host-2")]
