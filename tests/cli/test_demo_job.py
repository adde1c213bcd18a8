"""The demo's driver, with a client that answers as told."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tq_broker.cli.demo_activities import Downloaded, Processed, Uploaded, Work, sha256_of
from tq_broker.cli.demo_job import ROUNDS_MAX, FileJob, Row, is_target_gone, run_jobs
from tq_broker.client import Client
from tq_broker.common import Route
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    BrokerUnavailable,
    DeadlineExceeded,
    TargetGone,
)

TEXT = b"one two\n"


class FakeClient:
    """Runs activities at once: each is a step that the test may replace by an error."""

    def __init__(self, errors: dict[str, list[BaseException | None]] | None = None) -> None:
        self.errors = errors or {}
        self.calls: list[tuple[str, Route | None]] = []
        self.downloads = 0
        self.attempt = 1

    async def execute_activity(
        self, activity: Callable[..., Any], work: Work, *, task_queue: str, route: Any = None
    ) -> Any:
        name = activity.__name__
        self.calls.append((name, route))
        errors = self.errors.get(name, [])
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error
        if name == "download":
            self.downloads += 1
            return Downloaded(f"host-{self.downloads}", self.attempt, sha256_of(TEXT))
        if name == "process":
            return Processed(self.attempt, 2)
        work.uploaded.parent.mkdir(exist_ok=True)
        work.uploaded.write_bytes(gzip.compress(TEXT))
        return Uploaded(self.attempt, str(work.uploaded))


def failed(type_name: str) -> ActivityError:
    error = ActivityError("failed", activity_id="1", activity_type="process")
    error.__cause__ = ApplicationError("because", type=type_name)
    return error


@pytest.fixture
def work(tmp_path: Path) -> Work:
    source = tmp_path / "a.txt"
    source.write_bytes(TEXT)
    return Work("a.txt", str(source), str(tmp_path))


def run(client: FakeClient, work: Work, steps: list[str] | None = None) -> Row:
    said = steps if steps is not None else []
    job = FileJob(cast(Client, client), "files", work, lambda name, what, host: said.append(what))
    return asyncio.run(job.run())


def test_what_follows_a_download_is_routed_to_its_host(work: Work) -> None:
    client, steps = FakeClient(), []
    row = run(client, work, steps)
    here = Route.host("host-1")
    assert client.calls == [("download", None), ("process", here), ("upload", here)]
    assert (row.error, row.host, row.attempts, row.words) == ("", "host-1", 1, 2)
    assert row.sha256 == sha256_of(TEXT)
    assert steps == ["downloaded", "processed", "uploaded", "done"]


@pytest.mark.parametrize("gone", [TargetGone("gone"), failed("TargetGone")])
@pytest.mark.parametrize("step", ["process", "upload"])
def test_a_lost_host_begins_the_file_anew(work: Work, step: str, gone: BaseException) -> None:
    row = run(FakeClient({step: [gone]}), work)
    assert (row.error, row.host, row.attempts) == ("", "host-2", 2)


def test_lost_attempts_of_activities_count(work: Work) -> None:
    client = FakeClient()
    client.attempt = 2
    assert run(client, work).attempts == 1 + 3


def test_a_file_that_loses_every_host_is_given_up(work: Work) -> None:
    row = run(FakeClient({"process": [TargetGone("gone")] * ROUNDS_MAX}), work)
    assert row.attempts == ROUNDS_MAX
    assert row.error == "5 hosts were lost one after the other"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (failed("OSError"), "because"),
        (DeadlineExceeded("not confirmed"), "not confirmed"),
        (BrokerUnavailable(""), "BrokerUnavailable"),
    ],
)
def test_another_failure_is_a_row_that_says_why(
    work: Work, error: BaseException, reason: str
) -> None:
    row = run(FakeClient({"upload": [error]}), work)
    assert (row.error, row.sha256) == (reason, "")


def test_an_upload_that_differs_from_its_source_fails(work: Work) -> None:
    Path(work.source).write_bytes(b"something else")
    assert "the upload differs: sha256 " in run(FakeClient(), work).error


def test_rows_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    works = []
    for number in range(20):
        source = tmp_path / f"{number}.txt"
        source.write_bytes(TEXT)
        works.append(Work(source.name, str(source), str(tmp_path)))
    client = cast(Client, FakeClient())
    rows = asyncio.run(run_jobs([FileJob(client, "files", w, lambda *_: None) for w in works]))
    assert [row.file for row in rows] == [work.name for work in works]


def test_is_target_gone() -> None:
    assert is_target_gone(TargetGone("x"))
    assert is_target_gone(failed("TargetGone"))
    assert not is_target_gone(failed("Other"))
    assert not is_target_gone(ValueError())
