"""Answers to history and to those who query, on the broker in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import place
from tests.worker.test_workflow_handler import Delivery
from tests.worker.worlds import NAMES, World
from tq_broker.converter import DataConverter
from tq_broker.model import payload
from tq_broker.model.commands import (
    Command,
    CompleteWorkflow,
    FailWorkflow,
    ModifyProperties,
    StartTimer,
)
from tq_broker.model.failure import application
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.requests import read_reply, read_request
from tq_broker.model.workflow_tasks import (
    QueryAnswer,
    QueryRequest,
    RunKey,
    StickyGone,
    TaskFailedCause,
    WorkflowTaskCompleted,
    WorkflowTaskFailed,
)
from tq_broker.queues import topology
from tq_broker.worker.workflow_reporter import WorkflowReporter

REPLY = NAMES.queue(Kind.REPLY, "c")
COMPLETED = WorkflowTaskCompleted(
    run=RunKey("w", "r"), scheduled_event_id=7, commands=[CompleteWorkflow()]
)


class Bench:
    def __init__(self, bytes_max: int = 1_000_000) -> None:
        self.world = World()
        self.client = self.world.make_client("worker")
        at = place(converter=DataConverter(bytes_max=bytes_max))
        self.reporter = WorkflowReporter(self.client.connection.sender, at)
        self.done = threading.Semaphore(0)

    def told(self, queue: QueueName) -> Message:
        found: list[Any] = []

        def take() -> bool:
            delivery = self.world.broker.get(str(queue), self.world.soon())
            if delivery is not None:
                delivery.ack()
                found.append(delivery.message)
            return bool(found)

        self.world.eventually(take)
        message: Message = found[0]
        return message

    def is_done(self) -> bool:
        return self.done.acquire(timeout=5)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.world.close()


def test_an_answer_is_told_to_its_shard_and_then_it_is_done(bench: Bench) -> None:
    bench.reporter.answer(3, COMPLETED, bench.done.release)
    assert bench.is_done()
    assert read_request(bench.told(NAMES.history(3))) == COMPLETED


def test_commands_that_are_too_large_fail_the_task() -> None:
    bench = Bench(bytes_max=500)
    large = msgspec.structs.replace(COMPLETED, commands=[CompleteWorkflow(result=b"x" * 1000)])
    bench.reporter.answer(3, large, bench.done.release)
    assert bench.is_done()
    told = read_request(bench.told(NAMES.history(3)))
    assert isinstance(told, WorkflowTaskFailed)
    assert (told.cause, told.scheduled_event_id) == (TaskFailedCause.PAYLOAD.value, 7)
    assert told.failure is not None
    assert "the bound is 500" in told.failure.message
    bench.world.close()


def test_a_payload_that_is_too_large_fails_the_task_loudly(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    result = b"1" * (payload.BYTES_MAX + 1)
    large = msgspec.structs.replace(COMPLETED, commands=[CompleteWorkflow(result=result)])
    bench.reporter.answer(3, large, bench.done.release)
    assert bench.is_done()
    told = read_request(bench.told(NAMES.history(3)))
    assert isinstance(told, WorkflowTaskFailed)
    assert told.failure is not None
    assert told.failure.type == "PayloadTooLarge"
    assert "result of CompleteWorkflow of workflow 'w' is 2097153 bytes long" in caplog.text


def test_texts_that_are_not_unicode_fail_the_task(bench: Bench) -> None:
    """Memos, details and names come from workflow code."""
    wrong = msgspec.structs.replace(COMPLETED, current_details="\ud800")
    bench.reporter.answer(3, wrong, bench.done.release)
    assert bench.is_done()
    told = read_request(bench.told(NAMES.history(3)))
    assert isinstance(told, WorkflowTaskFailed)
    assert told.failure is not None
    assert (told.failure.type, told.failure.message) == (
        "InvalidArgument",
        r"'\ud800' is not Unicode",
    )


@pytest.mark.parametrize(
    "commands",
    [
        [ModifyProperties(upserted_memo={1: b"x"})],  # type: ignore[dict-item]
        [StartTimer(timer_id="1", start_to_fire_ms=2**64)],
        [StartTimer(timer_id="1", start_to_fire_ms=1, summary=5)],  # type: ignore[arg-type]
        [StartTimer(timer_id="1", start_to_fire_ms=1, summary=object())],  # type: ignore[arg-type]
        [FailWorkflow(failure=application("x", "T", non_retryable=None))],  # type: ignore[arg-type]
    ],
    ids=["key", "number", "type", "object", "failure"],
)
def test_what_history_could_not_read_fails_the_task(bench: Bench, commands: list[Command]) -> None:
    """Types of what workflow code gives are hopes."""
    wrong = msgspec.structs.replace(COMPLETED, commands=commands)
    bench.reporter.answer(3, wrong, bench.done.release)
    assert bench.is_done()
    told = read_request(bench.told(NAMES.history(3)))
    assert isinstance(told, WorkflowTaskFailed)
    assert told.cause == TaskFailedCause.PAYLOAD.value


def test_a_failure_that_cannot_be_told_does_not_hold_up_the_worker() -> None:
    bench = Bench(bytes_max=10)
    failed = WorkflowTaskFailed(run=RunKey("w", "r"), scheduled_event_id=7, cause="deadlock")
    bench.reporter.answer(3, failed, bench.done.release)
    assert bench.is_done()
    bench.world.close()


def test_notices_are_told(bench: Bench) -> None:
    bench.reporter.tell(5, StickyGone(worker_id="w"))
    assert read_request(bench.told(NAMES.history(5))) == StickyGone(worker_id="w")


def query(reply_to: str = str(REPLY)) -> QueryRequest:
    return QueryRequest(query_type="q", reply_to=reply_to, correlation_id="77")


def test_who_asks_is_answered(bench: Bench) -> None:
    plan = topology.namespace(NAMES) + topology.reply_queue(NAMES, REPLY)
    bench.world.broker.apply(plan, bench.world.soon())
    bench.reporter.answer_query(query(), QueryAnswer(result=b"1"), bench.done.release)
    message = bench.told(REPLY)
    assert (read_reply(message), message.correlation_id) == (QueryAnswer(result=b"1"), "77")
    assert bench.is_done()


def test_an_answer_that_cannot_be_sent_is_a_failed_query(bench: Bench) -> None:
    plan = topology.namespace(NAMES) + topology.reply_queue(NAMES, REPLY)
    bench.world.broker.apply(plan, bench.world.soon())
    why = msgspec.structs.replace(application("x", "T"), details=[2**64])
    bench.reporter.answer_query(
        query(), QueryAnswer(error="failed", failure=why), bench.done.release
    )
    told = read_reply(bench.told(REPLY))
    assert isinstance(told, QueryAnswer)
    assert told.failure is not None
    assert (told.error, told.failure.type) == ("failed", "InvalidArgument")
    assert bench.is_done()


@pytest.mark.parametrize(
    "reply_to", [str(REPLY), "tq.other.reply.c", str(NAMES.history(1)), "nonsense"]
)
def test_who_has_left_or_may_not_ask_holds_nobody_up(bench: Bench, reply_to: str) -> None:
    bench.reporter.answer_query(query(reply_to), QueryAnswer(), bench.done.release)
    assert bench.is_done()
    assert bench.world.count(NAMES.history(1)) == 0


def test_a_sticky_task_goes_back_to_its_shard(bench: Bench) -> None:
    bench.client.connection.sender.ensure((NAMES.history(4),), bench.world.soon())
    message = Message(body=b"task", message_id="m", headers={"x-death": []})
    delivery = Delivery(message, routing_key="sticky.w.4")
    bench.reporter.abandon(delivery, bench.done.release)
    assert bench.is_done()
    back = bench.told(NAMES.history(4))
    assert (back.body, dict(back.headers)) == (b"task", {})
