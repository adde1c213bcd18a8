from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.client.operations import LOOKS_MAX, Operations
from tq_broker.exceptions import Conflict, InvalidArgument, NotFound
from tq_broker.model.limits import Limits, Side
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.model.settings import CapabilitiesDeclared
from tq_broker.queues import memory
from tq_broker.queues.broker import Delivery
from tq_broker.worker import Worker

QUICK_S = 0.05


@activity.defn(start_to_close_timeout=timedelta(seconds=30))
def work(number: int) -> int:
    return number


@activity.defn
def other() -> None: ...


@activity.defn
def alone() -> None: ...


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    url = f"memory://operations-{secrets.token_hex(4)}"
    with BlockingClient.connect(url) as connected:
        yield connected
    memory.forget(url)


@pytest.fixture
def operations(client: BlockingClient) -> Operations:
    return Operations(client.core)


def start(client: BlockingClient, count: int = 1, task_queue: str = "jobs") -> None:
    calls = [(number,) for number in range(count)]
    client.start_activities(work, calls, task_queue=task_queue, wait_result=False)


def worker(client: BlockingClient, name: str, *activities: Callable[..., Any]) -> Worker:
    return Worker(
        client,
        task_queue="jobs",
        activities=activities,
        identity=name,
        worker_id=name,
        host="here",
    )


def all_of(client: BlockingClient, task_queue: str = "jobs") -> list[Delivery]:
    core = client.core
    found = []
    while one := core.broker.get(str(core.names.activity(task_queue)), core.deadline()):
        found.append(one)
    return found


# --- looking ----------------------------------------------------------------------------------


def test_a_look_at_an_unused_namespace_leaves_no_trace(operations: Operations) -> None:
    assert not operations.exists()
    assert operations.task_queues(QUICK_S) == []
    assert operations.workers(QUICK_S) == []
    assert operations.parked() == []
    assert operations.reclaim(grace_s=0) == []
    for ask in (operations.describe, operations.peek, operations.purge):
        with pytest.raises(NotFound, match="no task queue 'jobs' in namespace 'default'"):
            ask("jobs")
    assert not operations.exists()


def test_task_queues_are_listed_with_what_waits(
    client: BlockingClient, operations: Operations
) -> None:
    start(client, 2, "b")
    start(client, 1, "a")
    found = operations.task_queues(QUICK_S)
    assert [(one.task_queue, one.backlog, one.consumers) for one in found] == [
        ("a", 1, 0),
        ("b", 2, 0),
    ]
    with worker(client, "w1", work):
        found = operations.task_queues(QUICK_S)
    assert [(one.task_queue, one.workers) for one in found] == [
        ("a", ()),
        ("b", ()),
        ("jobs", ("w1",)),
    ]


def test_a_description_compares_workers(client: BlockingClient, operations: Operations) -> None:
    with worker(client, "w1", work, other), worker(client, "w2", work, alone):
        told = operations.describe("jobs", wait_s=QUICK_S)
    assert told.summary.workers == ("w1", "w2")
    assert told.summary.consumers == 2
    assert told.activities == ("work",)
    assert told.mismatches == (("alone", ("w1",)), ("other", ("w2",)))
    assert told.oldest_age_s == 0.0


def test_what_waits_for_a_host_is_told(client: BlockingClient, operations: Operations) -> None:
    from tq_broker.common import Route

    with worker(client, "w1", work):
        client.execute_activity(work, 1, task_queue="jobs", route=Route.host("here"))
        told = operations.describe("jobs", wait_s=QUICK_S)
    assert [(one.kind, one.target, one.backlog) for one in told.private] == [("host", "here", 0)]


def test_the_age_of_the_oldest_is_only_told_when_asked(
    client: BlockingClient, operations: Operations
) -> None:
    start(client, 3)
    assert operations.describe("jobs", wait_s=QUICK_S).oldest_age_s is None
    told = operations.describe("jobs", read_head=True, wait_s=QUICK_S)
    assert told.oldest_age_s is not None
    assert 0 <= told.oldest_age_s < 60
    assert told.summary.backlog == 3


def test_a_wrong_name_is_an_error(operations: Operations) -> None:
    with pytest.raises(InvalidArgument, match="task_queue"):
        operations.describe("a\x00b")


# --- peeking ----------------------------------------------------------------------------------


def test_peeked_tasks_are_as_fresh_as_before(
    client: BlockingClient, operations: Operations
) -> None:
    start(client, 5)
    before = [one.id for one in operations.peek("jobs", 3)]
    first = operations.peek("jobs", 1)[0]
    assert (first.type, first.attempt, first.arguments) == ("work", 1, "[0]")
    assert first.size_bytes == len(b'{"args":[0]}')
    assert [one.id for one in operations.peek("jobs", 3)] == before
    left = all_of(client)
    assert not any(delivery.redelivered for delivery in left)
    assert [delivery.message.body for delivery in left] == [
        b'{"args":[%d]}' % number for number in range(5)
    ]


def test_a_queue_that_is_served_gives_only_its_head(
    client: BlockingClient, operations: Operations
) -> None:
    from tq_broker.queues.broker import SubscribeOptions

    start(client, 5)
    core = client.core
    # A consumer that holds one task and takes no more.
    wish = core.broker.subscribe(
        str(core.names.activity("jobs")), lambda _: None, SubscribeOptions(prefetch=1)
    )
    core.broker.wait_subscribed([wish], core.deadline())
    assert [one.arguments for one in operations.peek("jobs", 2)] == ["[1]", "[2]"]
    assert [one.arguments for one in operations.peek("jobs", 4)] == ["[3]", "[4]", "[1]", "[2]"]


def test_a_lost_attempt_stays_lost(client: BlockingClient, operations: Operations) -> None:
    start(client, 2)
    core = client.core
    taken = core.broker.get(str(core.names.activity("jobs")), core.deadline())
    assert taken is not None
    taken.reject(requeue=True)
    tasks = operations.peek("jobs")
    assert [(one.arguments, one.redelivered) for one in tasks] == [("[0]", True), ("[1]", False)]
    marks = {delivery.message.body: delivery.redelivered for delivery in all_of(client)}
    assert marks == {b'{"args":[0]}': True, b'{"args":[1]}': False}


def test_what_cannot_be_read_is_said(client: BlockingClient, operations: Operations) -> None:
    start(client)
    all_of(client)[0].ack()
    for headers, body in (({"tq-protocol": 9}, b""), ({"tq-activity-type": "x"}, b"{oops")):
        publish(client, Exchange.TASKS, "activity.jobs", headers, body)
    unknown, broken = operations.peek("jobs")
    assert unknown.arguments.startswith("unreadable: header tq-protocol")
    assert (unknown.type, unknown.age_s) == ("activity-task", None)
    assert broken.type == "x"
    assert broken.arguments.startswith("unreadable: body")


def test_long_arguments_are_cut(client: BlockingClient, operations: Operations) -> None:
    client.start_activity(
        "x",
        "y" * 1000,
        task_queue="jobs",
        start_to_close_timeout=timedelta(seconds=1),
        wait_result=False,
    )
    (one,) = operations.peek("jobs")
    assert len(one.arguments) == 200
    assert one.arguments.endswith("...")


@pytest.mark.parametrize("count", [0, 1001, True, "3"])
def test_a_wrong_count_is_an_error(operations: Operations, count: Any) -> None:
    with pytest.raises(InvalidArgument, match="it must be from 1 to 1000"):
        operations.peek("jobs", count)
    with pytest.raises(InvalidArgument, match="it must be from 1 to 10000"):
        operations.parked(0)


# --- doing ------------------------------------------------------------------------------------


def test_purge_counts(client: BlockingClient, operations: Operations) -> None:
    start(client, 3)
    assert operations.purge("jobs") == 3
    assert operations.purge("jobs") == 0


def test_reclaim_takes_what_is_idle(client: BlockingClient, operations: Operations) -> None:
    start(client, 1, "busy")
    start(client, 1, "idle")
    operations.purge("idle")
    with worker(client, "w1", work):
        assert operations.reclaim(grace_s=0.01) == ["idle"]
        assert operations.reclaim(["busy", "jobs"], grace_s=0.01) == []
    assert [one.task_queue for one in operations.task_queues(QUICK_S)] == ["busy", "jobs"]
    with pytest.raises(InvalidArgument):
        operations.reclaim([""], grace_s=0)


# --- parked -----------------------------------------------------------------------------------


def publish(
    client: BlockingClient,
    exchange: Exchange,
    key: str,
    headers: Mapping[str, Any],
    body: bytes = b'{"args":[7]}',
    message_id: str = "m1",
) -> None:
    core = client.core
    core.sender.ensure((), core.deadline())
    message = Message(body=body, message_id=message_id, kind="activity-task", headers=headers)
    core.broker.publish(
        Publication(core.names.exchange(exchange), key, message), core.deadline(), lambda _: None
    )


def park(client: BlockingClient, message_id: str = "m1", **headers: Any) -> None:
    marks = {
        "tq-activity-type": "work",
        "tq-parked-reason": "poison",
        "tq-parked-from": str(client.core.names.activity("jobs")),
        "tq-parked-ms": 1000,
    }
    marks |= {name.replace("_", "-"): value for name, value in headers.items()}
    publish(client, Exchange.PARKED, Kind.PARKED.value, marks, message_id=message_id)


def test_parked_messages_stay(client: BlockingClient, operations: Operations) -> None:
    park(client, "new", tq_parked_ms=2000)
    park(client, "old")
    for _ in range(3):
        assert [one.message_id for one in operations.parked()] == ["old", "new"]
    assert len(operations.parked(limit=1)) == 1


def test_a_message_that_was_looked_at_often_is_parked_anew(
    client: BlockingClient, operations: Operations
) -> None:
    park(client, x_delivery_count=LOOKS_MAX)
    (before,) = operations.parked()
    (after,) = operations.parked()
    assert before.key == after.key
    assert "x-delivery-count" in before.message.headers
    assert after.message.headers.get("x-delivery-count", 0) < LOOKS_MAX


def test_replay_makes_fresh_tasks(client: BlockingClient, operations: Operations) -> None:
    park(client, "one")
    park(client, "two")
    (one,) = operations.replay(["one"])
    assert (one.message_id, one.task_queue) == ("one", "jobs")
    (delivery,) = all_of(client)
    assert not delivery.redelivered
    assert delivery.message.headers == {"tq-activity-type": "work"}
    assert [left.message_id for left in operations.parked()] == ["two"]
    operations.replay([operations.parked()[0].key], task_queue="else")
    assert len(all_of(client, "else")) == 1
    assert operations.replay(None) == []


def test_what_nobody_can_read_is_replayed_too(
    client: BlockingClient, operations: Operations
) -> None:
    park(client, tq_protocol=99)
    operations.replay(None)
    (delivery,) = all_of(client)
    assert delivery.message.headers["tq-protocol"] == 99


def test_a_replay_that_fails_leaves_it_parked(
    client: BlockingClient, operations: Operations
) -> None:
    park(client, tq_parked_from="elsewhere")
    with pytest.raises(NotFound, match="does not tell where it came from"):
        operations.replay(None)
    assert len(operations.parked()) == 1
    with pytest.raises(InvalidArgument):
        operations.replay(None, task_queue="")


def test_drop_removes_for_ever(client: BlockingClient, operations: Operations) -> None:
    park(client, "one")
    park(client, "two")
    assert [one.message_id for one in operations.drop(["two"])] == ["two"]
    assert len(operations.drop(None)) == 1
    assert operations.parked() == []
    for act in (operations.drop, operations.replay):
        with pytest.raises(NotFound, match="'x' is not parked here"):
            act(["x"])


def test_a_peek_that_cannot_publish_gives_back(
    client: BlockingClient, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tq_broker.exceptions import Rejected

    start(client, 2)

    def refuse(publications: Any, needs: Any, deadline: float, done: Any) -> None:
        for index in range(len(publications)):
            done(index, Rejected("no"))

    monkeypatch.setattr(client.core.sender, "send_many", refuse)
    with pytest.raises(Rejected):
        operations.peek("jobs")
    assert [delivery.redelivered for delivery in all_of(client)] == [True, True]


# --- limits -----------------------------------------------------------------------------------


def test_limits_are_set_with_who_when_and_why(
    client: BlockingClient, operations: Operations
) -> None:
    with pytest.raises(NotFound, match="there is no task queue 'jobs'"):
        operations.limits("jobs")
    with pytest.raises(NotFound):
        operations.set_limits("jobs", lambda _: Limits(rate=1.0))
    start(client)
    assert operations.limits("jobs").limits.is_unlimited
    state = operations.set_limits("jobs", lambda _: Limits(rate=5.0), reason="too fast")
    assert state == operations.limits("jobs")
    assert state.limits == Limits(rate=5.0)
    assert state.setting is not None
    assert (state.setting.by, state.setting.reason) == (client.connection.identity, "too fast")
    assert state.setting.at_ms > 0
    told = operations.describe("jobs", wait_s=QUICK_S)
    assert dict(told.limits)[Side.ACTIVITY] == state
    assert dict(told.limits)[Side.WORKFLOW].limits.is_unlimited
    with pytest.raises(InvalidArgument, match="concurrency is 0"):
        operations.set_limits("jobs", lambda _: Limits(concurrency=0))
    with pytest.raises(InvalidArgument, match="the new limits are 5"):
        operations.set_limits("jobs", lambda _: 5)  # type: ignore[arg-type, return-value]


def test_who_comes_second_is_told_who_was_faster(
    client: BlockingClient, operations: Operations
) -> None:
    start(client)
    other = Operations(client.core)

    def meanwhile(before: Limits) -> Limits:
        other.set_limits("jobs", lambda _: Limits(rate=1.0), reason="emergency")
        return Limits(rate=2.0)

    with pytest.raises(Conflict, match=r"has set the limits of 'jobs' meanwhile \(emergency\)"):
        operations.set_limits("jobs", meanwhile)
    assert operations.limits("jobs").limits == Limits(rate=1.0)


# --- what requires capabilities -------------------------------------------------------------------


def capable(client: BlockingClient, count: int, *names: str) -> None:
    """Tasks that wait for workers with all of ``names``, of whom there were some."""
    record = CapabilitiesDeclared("jobs", names, 1)
    client.core.sender.append(record, client.core.deadline(), lambda error: None)
    for number in range(count):
        client.start_activity(work, number, task_queue="jobs", requires=names, wait_result=False)


def test_each_set_is_listed_and_described_and_who_has_it(
    client: BlockingClient, operations: Operations
) -> None:
    capable(client, 3, "gpu")
    capable(client, 1, "gpu", "ssd")
    listed = [(one.requires, one.backlog, one.workers) for one in operations.task_queues(QUICK_S)]
    assert listed == [(("gpu",), 3, ()), (("gpu", "ssd"), 1, ())]
    client.pause_task_queue("jobs")
    with Worker(client, task_queue="jobs", activities=[work], capabilities=["gpu"], identity="w"):
        told = operations.describe("jobs")
        assert [(one.requires, one.backlog, one.workers) for one in told.capable] == [
            (("gpu",), 3, ("w",)),
            (("gpu", "ssd"), 1, ()),
        ]
        assert told.workers[0].capabilities == ["gpu"]


def test_a_set_is_looked_at_and_purged_for_itself_or_with_the_rest(
    client: BlockingClient, operations: Operations
) -> None:
    start(client, 2)
    capable(client, 3, "gpu")
    capable(client, 1, "ssd")
    assert [one.arguments for one in operations.peek("jobs", requires=["gpu"])] == [
        "[0]", "[1]", "[2]",
    ]  # fmt: skip
    where = [(one.kind, one.target) for one in operations.peek("jobs")]
    assert where == [("activity", "")] * 2 + [("capable", "gpu")] * 3 + [("capable", "ssd")]
    assert operations.purge("jobs", requires=["gpu"]) == 3
    assert operations.purge("jobs") == 3
    with pytest.raises(NotFound, match="nobody has required tpu of task queue 'jobs'"):
        operations.purge("jobs", requires=["tpu"])
    with pytest.raises(NotFound, match="nobody has required gpu"):
        operations.peek("jobs", side="workflow", requires=["gpu"])


def test_idle_sets_are_reclaimed_with_their_task_queue(
    client: BlockingClient, operations: Operations
) -> None:
    capable(client, 1, "gpu")
    assert operations.reclaim(["jobs"], grace_s=0) == []
    assert operations.purge("jobs") == 1
    with Worker(client, task_queue="jobs", activities=[work], capabilities=["gpu"]):
        assert operations.reclaim(["jobs"], grace_s=0) == []
    # The worker has made the plain queue, too.
    assert operations.reclaim(["jobs"], grace_s=0) == ["jobs"]
    assert operations.task_queues(QUICK_S) == []
    assert operations.settings().capable("jobs") == []
