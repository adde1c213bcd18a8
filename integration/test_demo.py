"""Journey: ``tq-broker demo`` as a newcomer runs it, with worker processes on a RabbitMQ."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration import rabbitmq_nodes
from tq_broker.client import BlockingClient
from tq_broker.exceptions import BrokerUnavailable
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

ROOT = Path(__file__).parent.parent
WITHIN_S = 120.0
FILES = 12


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TQ_BROKER_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tq_broker", "demo", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr + done.stdout
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_on_a_running_rabbitmq_every_file_is_verified(broker_url: str, namespace: str) -> None:
    found = rows(demo("-b", broker_url, "--namespace", namespace, "--json"))
    assert len(found) == FILES
    assert all(row["verified"] for row in found)
    assert all(row["attempts"] == 1 for row in found)
    assert len({row["host"] for row in found}) > 1


def test_the_password_is_never_shown(broker_url: str, namespace: str) -> None:
    done = demo("-b", broker_url, "--namespace", namespace, "--files", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "amqp://guest@127.0.0.1" in done.stderr
    assert "guest:guest" not in done.stderr + done.stdout


def test_a_worker_that_is_killed_costs_attempts_and_no_files(
    broker_url: str, namespace: str
) -> None:
    found = rows(demo("-b", broker_url, "--namespace", namespace, "--json", "--kill-worker"))
    assert len(found) == FILES
    assert all(row["verified"] for row in found)
    assert max(row["attempts"] for row in found) > 1


def test_a_workflow_sees_to_each_file_also_when_a_worker_is_killed(
    broker: LocalRabbitMQ, namespace: str
) -> None:
    options = ("-b", broker.url, "--namespace", namespace, "--json", "--workflow")
    found = rows(demo(*options, "--kill-worker"))
    assert len(found) == FILES
    assert all(row["verified"] for row in found)
    assert max(row["attempts"] for row in found) > 1
    queues = broker.ctl("list_queues", "--quiet", "name").split()
    kinds = ("activity", "workflow", "history")
    assert [q for q in queues if q.startswith(tuple(f"tq.{namespace}.{k}." for k in kinds))] == []


def test_the_task_queue_of_a_run_is_removed_after_it(broker: LocalRabbitMQ, namespace: str) -> None:
    rows(demo("-b", broker.url, "--namespace", namespace, "--json", "--files", "2"))
    queues = broker.ctl("list_queues", "--quiet", "name").split()
    assert [name for name in queues if name.startswith(f"tq.{namespace}.activity.")] == []


def test_a_private_rabbitmq_is_started_and_removed() -> None:
    if rabbitmq_nodes.MACHINE not in rabbitmq_nodes.chosen_versions() and not any(
        rabbitmq_nodes.is_of_machine(label) for label in rabbitmq_nodes.chosen_versions()
    ):
        pytest.skip("this machine's RabbitMQ is not among the versions to test")
    done = demo("-b", "local", "--kill-worker")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "starting a private RabbitMQ" in done.stderr
    assert f"all {FILES} uploads are verified" in done.stderr
    url = next(word for word in done.stderr.split() if word.startswith("amqp://guest@127.0.0.1:"))
    with pytest.raises(BrokerUnavailable):
        BlockingClient.connect(url.replace("guest@", "guest:guest@"), timeout=2)


def test_on_a_terminal_the_lines_are_drawn_anew(broker_url: str, namespace: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tq_broker", "demo", "-b", broker_url, "--namespace", namespace],
        env={**environment(), "NO_COLOR": "1", "TERM": "xterm", "LINES": "40", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # Linux says so when the other end is closed.
            pass
        finally:
            os.close(ours)
        assert process.wait(WITHIN_S) == 0
    assert b"\x1b[12A" in shown
    assert b"\x1b[3" not in shown
    assert b"SHA256" in shown
