"""Fixtures: a broker in this process, the command line on it, and an application."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tq_broker.cli import garbage
from tq_broker.cli.main import cli
from tq_broker.client import BlockingClient
from tq_broker.queues import memory
from tq_broker.worker import Worker

Invoke = Callable[..., Result]

SOURCE = """
from datetime import timedelta

from tq_broker import activity

SECONDS = timedelta(seconds=30)


@activity.defn(task_queue="math", start_to_close_timeout=SECONDS)
def add(a: int, b: int) -> int:
    return a + b


@activity.defn(task_queue="math", start_to_close_timeout=SECONDS)
async def fail(text: str) -> None:
    raise ValueError(text)


some = [add]
options = {"activities": [add], "task_queues": ["own"], "max_concurrent_activities": 7}
"""


class FullDisk:
    """A stream on which nothing can be written."""

    def __init__(self, number: int = errno.ENOSPC, fileno: int = -1) -> None:
        self._number, self._fileno = number, fileno

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise OSError(self._number, os.strerror(self._number))

    def fileno(self) -> int:
        return self._fileno


class NoThread(threading.Thread):
    """One that the system does not have."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine that the tests run on."""
    for name in ("URL", "NAMESPACE", "PROFILE", "APP", "LOGLEVEL", "CONFIG_FILE", "TIMEOUT"):
        monkeypatch.delenv(f"TQ_BROKER_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """The process of the tests is not the commands': here is what would have been done to it."""
    calls: list[None] = []
    monkeypatch.setattr(garbage, "settle", lambda: calls.append(None))
    return calls


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """The command line sets logging up as a program may; other tests do not want it."""
    loggers = [logging.getLogger(name) for name in (None, "amqp", "kombu", "pika")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def url() -> Iterator[str]:
    name = f"memory://cli-{secrets.token_hex(4)}"
    yield name
    memory.forget(name)


@pytest.fixture
def invoke(url: str) -> Invoke:
    """Run the command line against the broker."""

    def run(*arguments: str, broker: str | None = url, **keywords: Any) -> Result:
        where = ["-b", broker] if broker else []
        return CliRunner().invoke(cli, [*where, *arguments], **keywords)

    return run


@pytest.fixture
def client(url: str) -> Iterator[BlockingClient]:
    with BlockingClient.connect(url) as connected:
        yield connected


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with activities, in the current directory."""
    name = f"app_{secrets.token_hex(4)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def worker(client: BlockingClient, app: str) -> Iterator[Worker]:
    """A running worker of the application."""
    from tq_broker.cli.application import load_application

    loaded = load_application(app)
    made = Worker(
        client,
        task_queues=["math"],
        activities=loaded.activities,
        identity="w1@here",
        worker_id="one",
        host="here",
    )
    with made:
        yield made


@pytest.fixture
def signals_kept() -> Iterator[None]:
    """Signal handlers are what they were, after the test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    assert {number: signal.getsignal(number) for number in numbers} == before
