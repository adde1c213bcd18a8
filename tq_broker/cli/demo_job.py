"""The job of ``tq-broker demo``, and the program to read first: `FileJob` is all of it.

Each file is downloaded by whichever worker is free. What follows must run where the file is then,
so the other two activities are routed to that host. When the host is gone, its files are gone,
too, and the job begins anew with the download.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tq_broker.cli.demo_activities import (
    Downloaded,
    Processed,
    Uploaded,
    Work,
    download,
    is_url,
    process,
    sha256_of,
    upload,
)
from tq_broker.client import Client
from tq_broker.clock import SystemClock
from tq_broker.common import Route
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    TargetGone,
    TqBrokerError,
    WorkflowFailureError,
)

FILES_AT_ONCE = 8
ROUNDS_MAX = 5
"""Hosts that may be lost under one file before it is given up."""

Progress = Callable[[str, str, str], None]
"""Told a file's name, what was done with it, and the host where that was."""


@dataclass(frozen=True)
class Row:
    """What became of one file.

    Attributes:
        attempts: Rounds from the download on, and activity attempts that were lost or failed.
        error: Why there is no verified upload; empty if there is one.
    """

    file: str
    host: str
    attempts: int
    seconds: float
    words: int
    sha256: str
    error: str = ""


class FileJob:
    """The way of one file: download anywhere, process and upload on the same host."""

    def __init__(self, client: Client, task_queue: str, work: Work, progress: Progress) -> None:
        self._client = client
        self._task_queue = task_queue
        self._work = work
        self._progress = progress
        self._attempts = 0
        self._host = "-"

    async def run(self) -> Row:
        """Do all of it, on another host when one is lost; never raises an activity's failure."""
        clock = SystemClock()
        began = clock.monotonic()
        words, sha256, error = 0, "", ""
        try:
            words, sha256 = await self._round_after_round()
            self._say("done")
        except TqBrokerError as failure:
            error = reason(failure)
            self._say(f"failed: {error}")
        seconds = clock.monotonic() - began
        return Row(self._work.name, self._host, self._attempts, seconds, words, sha256, error)

    async def _round_after_round(self) -> tuple[int, str]:
        for _ in range(ROUNDS_MAX):
            try:
                return await self._round()
            except TqBrokerError as error:
                if not is_target_gone(error):
                    raise
            self._say("lost, starting over")
        raise ApplicationError(f"{ROUNDS_MAX} hosts were lost one after the other")

    async def _round(self) -> tuple[int, str]:
        self._attempts += 1
        downloaded: Downloaded = await self._execute(download)
        self._host = downloaded.host
        self._say("downloaded")

        same_host = Route.host(downloaded.host)
        processed: Processed = await self._execute(process, route=same_host)
        self._say("processed")
        uploaded: Uploaded = await self._execute(upload, route=same_host)
        self._say("uploaded")

        sha256 = await asyncio.to_thread(
            verified, self._work, downloaded.sha256, Path(uploaded.path)
        )
        return processed.words, sha256

    async def _execute(self, activity: Callable[..., Any], **options: Any) -> Any:
        result = await self._client.execute_activity(
            activity, self._work, task_queue=self._task_queue, **options
        )
        self._attempts += result.attempt - 1
        return result

    def _say(self, what: str) -> None:
        self._progress(self._work.name, what, self._host)


class Job(Protocol):
    """What brings one file through, or says why not."""

    async def run(self) -> Row:
        """Do all of it; never raises an activity's failure."""


async def run_jobs(jobs: Sequence[Job]) -> list[Row]:
    """Run ``jobs``, some at once; one row each, in their order."""
    places = asyncio.Semaphore(FILES_AT_ONCE)

    async def one(job: Job) -> Row:
        async with places:
            return await job.run()

    return await asyncio.gather(*map(one, jobs))


def is_target_gone(error: BaseException) -> bool:
    """Whether the host of a route was gone: when the activity was started, or later on."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return isinstance(error, TargetGone) or (
        isinstance(cause, ApplicationError) and cause.type == "TargetGone"
    )


def verified(work: Work, sha256: str, uploaded: Path) -> str:
    """The checksum of what was uploaded, if it is that of the source.

    Args:
        sha256: Of what was downloaded; of what a URL gave only its worker knows.

    Raises:
        ApplicationError: it is not.
    """
    try:
        wanted = sha256 if is_url(work.source) else sha256_of(Path(work.source).read_bytes())
        found = sha256_of(gzip.decompress(uploaded.read_bytes()))
    except (OSError, EOFError, zlib.error) as error:
        raise ApplicationError(f"the upload cannot be verified: {error}") from error
    if found != wanted:
        raise ApplicationError(f"the upload differs: sha256 {found[:12]}, not {wanted[:12]}")
    return found


def reason(error: TqBrokerError) -> str:
    """Why a file failed, on one line."""
    told: BaseException = error
    while isinstance(told, ActivityError | WorkflowFailureError) and told.cause is not None:
        told = told.cause
    return " ".join(str(told).split()) or type(told).__name__
