from __future__ import annotations

from typing import Any

import pytest

from tq_broker.converter import DEFAULT
from tq_broker.exceptions import Malformed
from tq_broker.history import letters
from tq_broker.history.effects import ReplyTo
from tq_broker.model import envelope, requests, workflow_tasks
from tq_broker.model.events import ParentInfo
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names
from tq_broker.model.requests import shard_of
from tq_broker.model.tasks import ActivityOutcome, Status
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask

NAMES = Names("n")
SHARD = shard_of("w")
RUN = RunKey("w", "r")
PARENT = ParentInfo(workflow_id="w", run_id="r", initiated_event_id=5)
REPLY = str(NAMES.queue(Kind.REPLY, "c"))


def read(content: Any, shard: int = SHARD, **properties: Any) -> letters.Letter:
    return letters.read(requests.request_message(content, "m", **properties), shard, NAMES)


@pytest.mark.parametrize(
    ("content", "workflow_id", "run_id", "once"),
    [
        (
            requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"),
            "w",
            "",
            True,
        ),
        (requests.SignalWorkflow(workflow_id="w", signal_name="s"), "w", "", True),
        (requests.Terminate(workflow_id="w", run_id="r"), "w", "r", True),
        (requests.Describe(workflow_id="w", run_id="r"), "w", "r", False),
        (requests.ListWorkflows(), "", "", False),
        (requests.ExternalDone(origin=PARENT), "w", "r", False),
        (
            requests.ChildStarted(parent=PARENT, workflow_id="c", run_id="x", workflow_type="T"),
            "w",
            "r",
            False,
        ),
        (workflow_tasks.StickyGone(worker_id="1"), "", "", False),
        (workflow_tasks.StickyEvicted(run=RUN, worker_id="1"), "w", "r", False),
        (workflow_tasks.WorkflowTaskCompleted(run=RUN, scheduled_event_id=2), "w", "r", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whom_a_request_is_for(content: Any, workflow_id: str, run_id: str, once: bool) -> None:
    letter = read(content)
    assert (letter.workflow_id, letter.run_id, letter.once) == (workflow_id, run_id, once)
    assert letter.content == content
    assert letter.sender is None


def test_every_request_has_a_target() -> None:
    known = {*letters._TARGETS}
    for kind in requests.Request.__args__:  # type: ignore[attr-defined]
        assert kind in known or "workflow_id" in kind.__struct_fields__


def test_who_asks_is_known() -> None:
    letter = read(requests.Describe(workflow_id="w"), reply_to=REPLY, correlation_id="7")
    assert letter.sender == ReplyTo(REPLY, "7")


@pytest.mark.parametrize(
    "reply_to", ["", "amq.direct", "tq.other.reply.c", str(NAMES.history(1)), REPLY + "\n"]
)
def test_answers_go_to_reply_queues_of_the_namespace_only(reply_to: str) -> None:
    with pytest.raises(Malformed, match="reply_to"):
        read(requests.Describe(workflow_id="w"), reply_to=reply_to)


def test_what_is_for_another_shard_is_refused() -> None:
    with pytest.raises(Malformed, match=f"it is for shard {SHARD}"):
        read(requests.Describe(workflow_id="w"), (SHARD + 1) % requests.SHARDS)


def test_a_task_that_a_sticky_queue_gave_up() -> None:
    task = WorkflowTask(
        run=RUN, workflow_type="T", task_queue="q", shard=SHARD, scheduled_event_id=2
    )
    letter = letters.read(workflow_tasks.task_message(task, "m"), SHARD, NAMES)
    assert (letter.workflow_id, letter.run_id, letter.content) == ("w", "r", task)


def outcome(activity_id: str) -> Message:
    told = ActivityOutcome(
        activity_id=activity_id, activity_type="a", status=Status.COMPLETED, result=b"1"
    )
    return envelope.report_message(told, None, DEFAULT)


def test_an_outcome() -> None:
    letter = letters.read(outcome("r/12"), 3, NAMES)
    assert isinstance(letter.content, requests.Outcome)
    assert (letter.run_id, letter.content.scheduled_event_id) == ("r", 12)
    assert letter.content.body == b'{"result":1}'


@pytest.mark.parametrize("activity_id", ["r", "r/", "/5", "r/x", "r/-1", "r/" + "9" * 99, "r/²"])
def test_an_outcome_of_what_is_no_workflow_s_activity(activity_id: str) -> None:
    with pytest.raises(Malformed, match="activity"):
        letters.read(outcome(activity_id), 3, NAMES)


@pytest.mark.parametrize("kind", ["", "activity-task", "history-reply"])
def test_a_message_of_another_kind(kind: str) -> None:
    with pytest.raises(Malformed, match="is not for a history shard"):
        letters.read(Message(body=b"", message_id="m", kind=kind), 0, NAMES)


@pytest.mark.parametrize(
    ("content", "properties", "named"),
    [
        (requests.Describe(workflow_id="a\0b"), {}, "workflow_id"),
        (requests.Describe(workflow_id="w", run_id="a\0b"), {}, "run_id"),
        (requests.SignalWorkflow(workflow_id="w", signal_name="s"), {"message_id": "\0"}, "mess"),
        (
            requests.SignalWorkflow(workflow_id="w", signal_name="s"),
            {"message_id": "\ud800"},
            "message_id",
        ),
        (
            requests.Describe(workflow_id="w"),
            {"reply_to": REPLY, "correlation_id": "\udfff"},
            "correlation_id",
        ),
    ],
)
def test_what_no_store_can_keep_does_not_come_in(
    content: Any, properties: dict[str, str], named: str
) -> None:
    message_id = properties.pop("message_id", "m")
    message = requests.request_message(content, message_id, **properties)
    with pytest.raises(Malformed, match=named):
        letters.read(message, shard_of(content.workflow_id), NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tq-identity", "\ud800"), ("tq-host", "\udfff"), ("tq-worker-id", "a\ud800")],
)
def test_what_an_outcome_says_of_its_worker_is_text(name: str, value: str) -> None:
    message = outcome("r/5")
    message.headers[name] = value
    with pytest.raises(Malformed, match=name):
        letters.read(message, SHARD, NAMES)
