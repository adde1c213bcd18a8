"""All that workflows need, in one terminal. As processes: ``integration/test_dev.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tq_broker.cli import dev as dev_module
from tq_broker.cli.session import Session
from tq_broker.client import BlockingClient


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """What was to be supervised, instead of doing so."""
    found: list[Session] = []

    def supervise(session: Session, count: int, *, reload: bool) -> int:
        assert (count, reload) == (1, True)
        if session.arguments[2] == "-b":
            with BlockingClient.connect(session.arguments[3]) as client:
                client.start_workflow("Any", id="w", task_queue="t")
        found.append(session)
        return 0

    monkeypatch.setattr(dev_module, "supervise", supervise)
    return found


def test_history_serves_while_the_worker_is_supervised(
    invoke: Invoke, app: str, url: str, supervised: list[Session]
) -> None:
    result = invoke("-A", app, "-l", "ERROR", "dev", "-Q", "a,b", "-c", "3", "--store", "memory://")
    assert result.exit_code == 0, result.output
    assert "history serves, kept in memory://" in result.stderr
    (session,) = supervised
    assert session.arguments == (
        *("-A", app, "-b", url, "--namespace", "default", "-l", "ERROR"),
        *("worker", "-Q", "a,b", "-c", "3"),
    )


def test_where_histories_are_kept_may_be_said_by_the_environment(
    invoke: Invoke,
    app: str,
    supervised: list[Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TQ_BROKER_STORE", f"sqlite:///{tmp_path}/other.sqlite")
    assert invoke("-A", app, "dev").exit_code == 0
    assert (tmp_path / "other.sqlite").exists()
    monkeypatch.delenv("TQ_BROKER_STORE")
    assert invoke("-A", app, "dev").exit_code == 0
    assert (tmp_path / "tq-broker-dev.sqlite").exists()


def test_with_a_broker_in_memory_everything_is_in_the_workers_process(
    invoke: Invoke, app: str, supervised: list[Session]
) -> None:
    result = invoke("-A", app, "dev", broker="memory")
    assert result.exit_code == 0, result.output
    assert "other terminals cannot reach it" in result.stderr
    (session,) = supervised
    assert session.arguments[-3:] == ("-A", app, "dev")


def test_that_process_runs_history_and_the_worker(
    invoke: Invoke, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run_worker(session: Session, settings: Any) -> int:
        with session.client() as client:
            client.start_workflow("Any", id="w", task_queue="t")
        seen.append((settings.task_queues, settings.process_index))
        return 0

    monkeypatch.setattr(dev_module, "run_worker", run_worker)
    result = invoke("-A", app, "dev", "-Q", "x", "--process-index", "1", broker="memory")
    assert result.exit_code == 0, result.output
    assert seen == [(("x",), 1)]


@pytest.mark.parametrize("broker", ["memory", "local", None])
def test_histories_must_not_outlive_the_broker(
    invoke: Invoke, app: str, broker: str | None
) -> None:
    result = invoke("-A", app, "dev", "--store", "sqlite:///x", broker=broker)
    assert result.exit_code == 2
    assert "histories would outlive the broker" in result.stderr


def test_an_application_that_cannot_be_loaded_is_said_before_anything_starts(
    invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke("-A", "not_there_at_all", "dev", broker="local")
    assert result.exit_code == 2
    assert "RabbitMQ" not in result.stderr
