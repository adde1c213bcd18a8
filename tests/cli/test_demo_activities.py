"""The demo's activities, called without a worker."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

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
from tq_broker.exceptions import ApplicationError
from tq_broker.testing.activity_environment import ActivityEnvironment

TEXT = b"to be or not to be\n"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    source = tmp_path / "source.txt"
    source.write_bytes(TEXT)
    run = tmp_path / "run"
    run.mkdir()
    return Work("a.txt", str(source), str(run))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tq_broker.cli.demo_activities.PAUSE_S", 0)


def on(host: str) -> ActivityEnvironment:
    env = ActivityEnvironment()
    env.info = replace(env.info, host=host)
    return env


def test_the_three_steps_on_one_host(work: Work) -> None:
    env = on("host-1")
    assert env.run(download, work) == Downloaded("host-1", 1, sha256_of(TEXT))
    assert env.run(process, work) == Processed(1, 6)
    assert env.run(upload, work) == Uploaded(1, str(work.uploaded))
    assert gzip.decompress(work.uploaded.read_bytes()) == TEXT


def test_a_step_that_runs_twice_leaves_the_same(work: Work) -> None:
    env = on("host-1")
    for step in (download, download, process, process, upload, upload):
        env.run(step, work)
    assert gzip.decompress(work.uploaded.read_bytes()) == TEXT
    assert [path.name for path in work.uploaded.parent.iterdir()] == ["a.txt.gz"]


def test_another_host_does_not_have_the_file(work: Work) -> None:
    on("host-1").run(download, work)
    with pytest.raises(FileNotFoundError):
        on("host-2").run(process, work)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/file", "cannot be read: No such file or directory"),
        ("/", "cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_read_is_not_tried_again(work: Work, source: str, message: str) -> None:
    with pytest.raises(ApplicationError, match=message) as caught:
        on("host-1").run(download, replace(work, source=source))
    assert caught.value.non_retryable


def test_a_run_that_is_over_gets_no_files(work: Work, tmp_path: Path) -> None:
    with pytest.raises(ApplicationError, match="is over"):
        on("host-1").run(download, replace(work, directory=str(tmp_path / "gone")))
    assert not (tmp_path / "gone").exists()


def test_a_server_that_does_not_answer_may_do_so_later(work: Work) -> None:
    with pytest.raises(ApplicationError, match="no download") as caught:
        on("host-1").run(download, replace(work, source="http://127.0.0.1:1/"))
    assert not caught.value.non_retryable


@pytest.mark.parametrize(
    ("source", "expected"), [("http://a", True), ("HTTPS://a", True), ("/http://a", False)]
)
def test_is_url(source: str, expected: bool) -> None:
    assert is_url(source) is expected
