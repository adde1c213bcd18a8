from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tq_broker.client import BlockingClient, transfer
from tq_broker.client.transfer import Transfer

QUICK = ("--wait", "50ms")


@pytest.fixture
def waiting(client: BlockingClient, app: str) -> str:
    """A task queue with two tasks and no worker."""
    from tq_broker.cli.application import load_application

    loaded = load_application(app)
    for name, arguments in (("add", (1, 2)), ("fail", ("x",))):
        client.start_activity(
            loaded.find(name), args=arguments, wait_result=False, task_queue="idle"
        )
    return "idle"


def test_a_pause_is_told_until_it_is_over(invoke: Invoke, waiting: str) -> None:
    answer = invoke("task-queue", "pause", waiting, "--reason", "the server is down")
    assert answer.stdout.startswith("idle paused by ")
    assert answer.stdout.endswith(": the server is down\n")
    line = invoke("task-queue", "list", *QUICK).stdout
    assert line.startswith("idle\tactivity\t2\t0\t0\t\tby ")
    assert ": the server is down" in line
    assert "PAUSED\tby " in invoke("task-queue", "describe", waiting, *QUICK).stdout
    (told,) = json.loads(invoke("task-queue", "list", "--json", *QUICK).stdout)
    assert told["pause"]["reason"] == "the server is down"
    answer = invoke("task-queue", "resume", waiting, "--json")
    assert json.loads(answer.stdout)["side"] == "both"
    (told,) = json.loads(invoke("task-queue", "list", "--json", *QUICK).stdout)
    assert told["pause"] is None
    answer = invoke("task-queue", "resume", waiting)
    assert (answer.exit_code, answer.stderr) == (5, "tq-broker: task queue 'idle' is not paused\n")
    assert invoke("task-queue", "pause", "typo").exit_code == 5
    assert invoke("task-queue", "pause", waiting, "--side", "x").exit_code == 2


def test_a_move_asks_counts_and_tells(invoke: Invoke, waiting: str) -> None:
    answer = invoke("task-queue", "move", waiting, "other", "--dry-run", "--create")
    assert answer.stdout == "2 tasks would be moved from idle to other\n"
    answer = invoke("task-queue", "move", waiting, "other", "--create")
    assert answer.exit_code == 2
    assert "Move tasks from task queue 'idle' to 'other'? Say --yes" in answer.stderr
    assert invoke("task-queue", "move", waiting, "other", "-y").exit_code == 5
    answer = invoke("task-queue", "move", waiting, "other", "--create", "-y", "--type", "a*")
    assert answer.stdout == "1 tasks moved from idle to other (1 add)\n"
    answer = invoke("task-queue", "move", waiting, "other", "-y", "--limit", "5", "--json")
    told = json.loads(answer.stdout)
    assert (told["done"], told["types"], told["complete"]) == (1, {"fail": 1}, True)


def test_a_copy_can_be_continued(invoke: Invoke, waiting: str) -> None:
    arguments = ("task-queue", "copy", waiting, "other", "--create", "-y")
    answer = invoke(*arguments, "--limit", "1", "--json")
    job = json.loads(answer.stdout)["job"]
    assert f"continue with --job {job}" in answer.stderr
    answer = invoke(*arguments, "--job", job, "--json")
    assert json.loads(answer.stdout)["done"] == 1
    lines = invoke("task-queue", "list", *QUICK).stdout.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["idle", "activity", "2"],
        ["other", "activity", "2"],
    ]


@pytest.mark.usefixtures("signals_kept")
def test_an_interruption_ends_it_where_nothing_is_in_hand(
    invoke: Invoke, client: BlockingClient, waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BATCH", 1)
    publish = Transfer._publish

    def interrupted(self: Transfer, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        publish(self, *arguments)

    monkeypatch.setattr(Transfer, "_publish", interrupted)
    answer = invoke("task-queue", "move", waiting, "other", "--create", "-y")
    assert (answer.exit_code, answer.stderr) == (130, "tq-broker: interrupted\n")
    for task_queue in (waiting, "other"):
        (left,) = client.peek_tasks(task_queue)
        assert not left.redelivered
