"""What a transfer makes of a task. Whole transfers are in ``test_verbs.py``."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tq_broker.client import BlockingClient
from tq_broker.client import transfer as transfers
from tq_broker.client.transfer import (
    Job,
    Transfer,
    Verb,
    copied,
    is_wanted,
    moved,
    pass_news,
    stayed,
    type_of,
)
from tq_broker.exceptions import InvalidArgument, Rejected
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.passes import News, What
from tq_broker.queues import memory

NAMES = Names("default")
SOURCE = NAMES.activity("source")


@dataclass
class Handed:
    """A delivery."""

    message: Message
    redelivered: bool = False
    queue: str = "q"
    routing_key: str = "k"
    ends: list[str] = field(default_factory=list)

    def ack(self) -> None:
        self.ends.append("ack")

    def reject(self, *, requeue: bool) -> None:
        self.ends.append("requeue" if requeue else "reject")


def task(**headers: Any) -> Message:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message(
        body=b"{}",
        message_id="a1",
        correlation_id="a1",
        reply_to="tq.default.reply.me",
        kind="activity-task",
        headers={"tq-activity-type": "Send", **named},
        priority=6,
    )


def test_what_is_moved_keeps_all_but_the_marks_of_rabbitmq_and_of_transfers() -> None:
    message = task(x_death=[{}], tq_transfer="old", tq_attempt=2)
    fresh = moved(Handed(message), SOURCE)
    assert fresh.headers == {"tq-activity-type": "Send", "tq-attempt": 2}
    assert (fresh.reply_to, fresh.priority, fresh.message_id) == (
        "tq.default.reply.me",
        6,
        "a1",
    )
    assert stayed(Handed(message), SOURCE, "job").headers["tq-transfer"] == "job"


def test_the_mark_of_a_lost_attempt_is_kept_over_any_number_of_moves() -> None:
    once = moved(Handed(task(), redelivered=True), SOURCE)
    twice = moved(Handed(once), SOURCE)
    assert twice.headers["tq-handed-out"] == 1
    # History knows by itself which workflow task is stale.
    workflow_task = Message(body=b"", message_id="w", kind="workflow-task")
    assert not moved(Handed(workflow_task, redelivered=True), SOURCE).headers
    # An usher begins nothing.
    anteroom = NAMES.queue(Kind.ANTEROOM, "q")
    assert "tq-handed-out" not in moved(Handed(task(), redelivered=True), anteroom).headers
    assert moved(Handed(once), anteroom).headers["tq-handed-out"] == 1


def test_a_pass_does_not_go_elsewhere_and_its_usher_is_told() -> None:
    message = task(tq_pass="p1:q:with:colons")
    assert "tq-pass" not in moved(Handed(message), SOURCE).headers
    assert "tq-pass" not in copied(message, "j").headers
    assert "tq-pass" in stayed(Handed(message), SOURCE, "j").headers
    assert pass_news(Handed(message)) == ("q:with:colons", News("p1", What.UNUSED))
    assert pass_news(Handed(message, redelivered=True)) == (
        "q:with:colons",
        News("p1", What.ENDED),
    )
    for mark in (None, 7, "p1", "p1:", "p1:a\0b"):
        assert pass_news(Handed(task(tq_pass=mark))) is None


def test_a_copy_is_the_same_whenever_its_job_makes_it() -> None:
    message = task(tq_workflow="{}", tq_start_token="t", tq_handed_out=1)
    one, again, other = (copied(message, job) for job in ("j", "j", "k"))
    assert one == again
    assert one.message_id != other.message_id
    assert one.correlation_id == one.message_id
    assert one.reply_to is None
    assert one.headers == {"tq-activity-type": "Send", "tq-copy-of": "a1"}


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [((), True), (("Send",), True), (("S*", "x"), True), (("send",), False), (("?",), False)],
)
def test_types_are_chosen_by_pattern(patterns: tuple[str, ...], wanted: bool) -> None:
    assert is_wanted("Send", patterns) is wanted


def test_the_type_of_what_cannot_be_read_is_a_question_mark() -> None:
    assert type_of(task()) == "Send"
    assert type_of(Message(body=b"", message_id="")) == "?"
    assert type_of(Message(body=b"", message_id="", kind="workflow-task")) == "?"


def test_workflow_tasks_are_not_copied() -> None:
    with pytest.raises(InvalidArgument, match="cannot be copied"):
        Job(verb=Verb.COPY, source=NAMES.workflow("a"), target=NAMES.workflow("b"), id="j")


# --- on a broker ----------------------------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    url = f"memory://transfer-{secrets.token_hex(4)}"
    with BlockingClient.connect(url) as connected:
        yield connected
    memory.forget(url)


def start(client: BlockingClient, type_: str, count: int, priority: int | None = None) -> None:
    for number in range(count):
        client.start_activity(
            type_,
            number,
            task_queue="q",
            priority=priority,
            wait_result=False,
            start_to_close_timeout=timedelta(seconds=9),
        )


def count(client: BlockingClient, queue: QueueName) -> int:
    stats = client.core.broker.stats(str(queue), client.core.deadline())
    return 0 if stats is None else stats.ready


def test_what_cannot_be_published_goes_back(
    client: BlockingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "Send", 3)

    def refuse(publications: Any, needs: Any, deadline: float, done: Any) -> None:
        for index in range(len(publications)):
            done(index, Rejected("no") if index else None)

    monkeypatch.setattr(client.core.sender, "send_many", refuse)
    job = Job(verb=Verb.MOVE, source=NAMES.activity("q"), target=NAMES.activity("r"), id="j")
    with pytest.raises(Rejected):
        Transfer(client.core, job, None).run({job.source: 3})
    assert count(client, NAMES.activity("q")) == 2


def test_a_job_gives_up_to_look_behind_what_stays_and_says_so(
    client: BlockingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "BATCH", 2)
    monkeypatch.setattr(transfers, "HELD_MAX", 2)
    start(client, "Stay", 3)
    job = Job(
        verb=Verb.MOVE,
        source=NAMES.activity("q"),
        target=NAMES.activity("r"),
        types=("Go",),
        id="j",
    )
    # As if workers had taken the others, or as if these were before them.
    told = Transfer(client.core, job, None).run({job.source: 100})
    assert (told.seen, told.done, told.complete) == (3, 0, False)
    assert count(client, NAMES.activity("q")) == 3
