"""The plans: what is declared, with which arguments, and how it is bound."""

from __future__ import annotations

import pytest

from tq_broker.model.detours import Detour
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.model.rules import TaskKind
from tq_broker.queues import topology
from tq_broker.queues.sender import lock_name
from tq_broker.queues.topology import (
    DELAY_LEVELS,
    DELAY_UNIT_MS,
    BindExchange,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    Plan,
    QueueType,
    UnbindQueue,
)

NAMES = Names("n.1")
ACTIVITY = NAMES.activity("mail/eu")
LOCK = lock_name(NAMES, ACTIVITY)
PRIORITY = NAMES.priority(ACTIVITY)
HOST = NAMES.queue(Kind.HOST, "h", "q")
PROCESS = NAMES.queue(Kind.PROCESS, "w", "q")
LEASE = NAMES.queue(Kind.LEASE, "w")
REPLY = NAMES.queue(Kind.REPLY, "c")
CLAIM = NAMES.queue(Kind.CLAIM, "d")
CONTROL = NAMES.queue(Kind.CONTROL, "w")

DETOUR = Detour(TaskKind.ACTIVITY, "there", "", "q", 5_000)
PLANS = {
    "namespace": topology.namespace(NAMES),
    "task queue": topology.task_queue(NAMES, ACTIVITY, LOCK),
    "classic task queue": topology.task_queue(NAMES, ACTIVITY, LOCK, QueueType.CLASSIC),
    "priority queue": topology.priority_queue(NAMES, PRIORITY, LOCK),
    "host queue": topology.private_queue(NAMES, HOST),
    "process queue": topology.private_queue(NAMES, PROCESS),
    "detour": topology.detour_queue(NAMES, DETOUR),
    "lease queue": topology.held_queue(NAMES, LEASE),
    "reply queue": topology.reply_queue(NAMES, REPLY),
    "claim queue": topology.claim_queue(NAMES, CLAIM, "token", 5000),
    "control queue": topology.control_queue(NAMES, CONTROL, ("worker", "worker.w")),
    "settings log": topology.settings_log(NAMES),
    "delay ladder": topology.delay_ladder(NAMES),
}
CHURNING = {
    Kind.DETOUR,
    Kind.HOST,
    Kind.PROCESS,
    Kind.LEASE,
    Kind.REPLY,
    Kind.CONTROL,
    Kind.CLAIM,
    Kind.LOCK,
}

every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def queues(plan: Plan) -> list[DeclareQueue]:
    return [step for step in plan.steps if isinstance(step, DeclareQueue)]


def declared(plan: Plan) -> dict[str, DeclareQueue]:
    return {queue.name: queue for queue in queues(plan)}


def bindings(plan: Plan) -> list[tuple[str, str, str]]:
    return [
        (step.queue, step.exchange, step.routing_key)
        for step in plan.steps
        if isinstance(step, BindQueue)
    ]


@every_plan
def test_every_queue_says_its_type(plan: Plan) -> None:
    assert all(queue.arguments["x-queue-type"] for queue in queues(plan))


@every_plan
def test_names_that_churn_are_classic(plan: Plan) -> None:
    for queue in queues(plan):
        if QueueName.parse(queue.name).kind in CHURNING:
            assert queue.arguments["x-queue-type"] == "classic"


@every_plan
def test_a_queue_that_expires_has_dead_lettered_its_messages_long_before(plan: Plan) -> None:
    for queue in queues(plan):
        expires, ttl = queue.arguments.get("x-expires"), queue.arguments.get("x-message-ttl")
        if expires is not None and ttl is not None:
            assert expires >= 2 * ttl + 60_000
            assert "x-dead-letter-exchange" in queue.arguments


@every_plan
def test_a_shared_queue_never_expires(plan: Plan) -> None:
    for queue in queues(plan):
        if QueueName.parse(queue.name).kind not in CHURNING:
            assert "x-expires" not in queue.arguments


@every_plan
def test_names_are_of_the_namespace_and_fit(plan: Plan) -> None:
    for step in plan.steps:
        name = getattr(step, "name", None) or getattr(step, "queue", None) or ""
        assert len(name.encode()) <= 255
        if name:
            assert name.startswith("tq.n%2E1.")


@every_plan
def test_what_is_bound_was_declared_or_belongs_to_the_namespace(plan: Plan) -> None:
    exchanges = {s.name for s in PLANS["namespace"].steps if isinstance(s, DeclareExchange)}
    known_queues: set[str] = set()
    for step in plan.steps:
        match step:
            case DeclareExchange():
                exchanges.add(step.name)
            case DeclareQueue():
                known_queues.add(step.name)
            case BindQueue():
                assert step.queue in known_queues
                assert step.exchange in exchanges
            case BindExchange():
                assert {step.source, step.destination} <= exchanges
            case _:
                raise AssertionError(step)


@every_plan
def test_nothing_is_bound_to_or_dead_lettered_through_the_default_exchange(plan: Plan) -> None:
    assert all(exchange for _, exchange, _ in bindings(plan))
    for queue in queues(plan):
        assert queue.arguments.get("x-dead-letter-exchange", "some")


def test_a_namespace_has_its_exchanges_and_two_fixed_queues() -> None:
    plan = PLANS["namespace"]
    types = {s.name: s.type for s in plan.steps if isinstance(s, DeclareExchange)}
    assert types == {
        NAMES.exchange(Exchange.TASKS): "direct",
        NAMES.exchange(Exchange.REPLIES): "direct",
        NAMES.exchange(Exchange.CONTROL): "direct",
        NAMES.exchange(Exchange.DUE): "topic",
        NAMES.exchange(Exchange.UNROUTED): "fanout",
        NAMES.exchange(Exchange.PARKED): "fanout",
    }
    assert set(declared(plan)) == {"tq.n%2E1.parked", "tq.n%2E1.unrouted"}
    assert plan.lock is None


def test_only_what_is_due_has_an_alternate_exchange() -> None:
    """On the task exchange it would make a missing queue look like success."""
    alternates = {
        s.name: s.arguments["alternate-exchange"]
        for s in PLANS["namespace"].steps
        if isinstance(s, DeclareExchange) and s.arguments
    }
    assert alternates == {NAMES.exchange(Exchange.DUE): NAMES.exchange(Exchange.UNROUTED)}


def test_parked_messages_stay_for_ever() -> None:
    parked = declared(PLANS["namespace"])["tq.n%2E1.parked"]
    assert parked.arguments["x-queue-type"] == "quorum"
    assert not {"x-message-ttl", "x-expires", "x-max-length"} & set(parked.arguments)
    # From 4.0 RabbitMQ would drop what was looked at more than 20 times.
    assert parked.arguments["x-delivery-limit"] >= 1_000_000


def test_an_inbox_outlives_what_rabbitmq_counts_for_its_consumers() -> None:
    """Lost connections and hand-overs, before 4.3."""
    inbox = declared(topology.history_shard(NAMES, NAMES.history(1)))[str(NAMES.history(1))]
    assert 1_000 <= inbox.arguments["x-delivery-limit"] < 1_000_000


def test_a_task_queue_is_bound_where_tasks_and_due_tasks_arrive_and_guarded_by_a_lock() -> None:
    plan = PLANS["task queue"]
    name, key = str(ACTIVITY), "activity.mail%2Feu"
    assert bindings(plan) == [
        (name, NAMES.exchange(Exchange.TASKS), key),
        (name, NAMES.exchange(Exchange.DUE), f"#.{key}"),
    ]
    assert plan.lock == str(LOCK)


@pytest.mark.parametrize(
    ("kind", "limit"), [(QueueType.QUORUM, {"x-delivery-limit": 20}), (QueueType.CLASSIC, {})]
)
def test_a_task_queue_parks_what_comes_back_too_often(
    kind: QueueType, limit: dict[str, int]
) -> None:
    arguments = topology.task_queue_arguments(NAMES, kind)
    assert arguments == {
        "x-queue-type": kind.value,
        "x-dead-letter-exchange": NAMES.exchange(Exchange.PARKED),
        **limit,
    }
    plan = topology.task_queue(NAMES, ACTIVITY, LOCK, kind)
    assert declared(plan)[str(ACTIVITY)].arguments == arguments


def test_unbinding_undoes_the_bindings_of_a_task_queue() -> None:
    undone = [
        (step.queue, step.exchange, step.routing_key)
        for step in topology.unbind_task_queue(NAMES, ACTIVITY).steps
        if isinstance(step, UnbindQueue)
    ]
    assert undone == bindings(PLANS["task queue"])


@pytest.mark.parametrize("plan", ["host queue", "process queue", "lease queue"])
def test_what_strays_from_a_private_queue_is_routed_anew(plan: str) -> None:
    (queue,) = queues(PLANS[plan])
    assert queue.arguments["x-dead-letter-exchange"] == NAMES.exchange(Exchange.UNROUTED)
    # No dead-letter routing key: the key tells where it was going.
    assert "x-dead-letter-routing-key" not in queue.arguments
    (bound,) = bindings(PLANS[plan])
    assert bound[1:] == (NAMES.exchange(Exchange.TASKS), QueueName.parse(queue.name).key)


def test_what_waits_on_a_detour_for_too_long_goes_home() -> None:
    (queue,) = queues(PLANS["detour"])
    assert queue.arguments == {
        "x-queue-type": "classic",
        "x-expires": 70_000,
        "x-message-ttl": 5_000,
        "x-dead-letter-exchange": NAMES.exchange(Exchange.DUE),
        "x-dead-letter-routing-key": "activity.q",
    }


def test_a_claim_differs_by_its_token_and_holds_one_outcome() -> None:
    (queue,) = queues(PLANS["claim queue"])
    (other,) = queues(topology.claim_queue(NAMES, CLAIM, "other", 5000))
    assert queue.arguments != other.arguments
    assert (queue.arguments["x-max-length"], queue.arguments["x-expires"]) == (1, 5000)


def test_a_control_queue_goes_with_its_connection() -> None:
    plan = PLANS["control queue"]
    assert [queue.exclusive for queue in queues(plan)] == [True]
    assert [key for _, _, key in bindings(plan)] == ["worker", "worker.w"]
    others = [queue for name, p in PLANS.items() if name != "control queue" for queue in queues(p)]
    assert not any(queue.exclusive for queue in others)


@pytest.mark.parametrize(("plan", "queue"), [("reply queue", REPLY), ("claim queue", CLAIM)])
def test_replies_are_addressed_by_the_whole_name(plan: str, queue: QueueName) -> None:
    expected = (str(queue), NAMES.exchange(Exchange.REPLIES), str(queue))
    assert bindings(PLANS[plan]) == [expected]


def test_the_settings_log_is_a_bounded_stream() -> None:
    (queue,) = queues(PLANS["settings log"])
    assert queue.arguments["x-queue-type"] == "stream"
    assert queue.arguments["x-stream-max-segment-size-bytes"] > 0
    assert (
        queue.arguments["x-max-length-bytes"] > queue.arguments["x-stream-max-segment-size-bytes"]
    )


def test_each_level_of_the_ladder_waits_twice_as_long_as_the_one_below() -> None:
    ttls = [queue.arguments["x-message-ttl"] for queue in queues(PLANS["delay ladder"])]
    assert ttls == [DELAY_UNIT_MS * 2**level for level in range(DELAY_LEVELS)]


def test_each_level_of_the_ladder_leads_to_the_one_below_and_the_lowest_to_what_is_due() -> None:
    below = [NAMES.exchange(Exchange.DUE), *map(NAMES.delay_exchange, range(DELAY_LEVELS - 1))]
    plan = PLANS["delay ladder"]
    assert [q.arguments["x-dead-letter-exchange"] for q in queues(plan)] == below
    passing = [s for s in plan.steps if isinstance(s, BindExchange)]
    assert [s.destination for s in passing] == below
    assert [s.source for s in passing] == list(map(NAMES.delay_exchange, range(DELAY_LEVELS)))


def test_the_ladder_dead_letters_safely() -> None:
    for queue in queues(PLANS["delay ladder"]):
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
        assert queue.arguments["x-overflow"] == "reject-publish"


def test_the_ladder_is_bound_before_it_is_needed() -> None:
    """Whoever declares it and is cut off half-way leaves no level that leads nowhere."""
    seen = {NAMES.exchange(Exchange.DUE)}
    for step in PLANS["delay ladder"].steps:
        if isinstance(step, DeclareExchange):
            seen.add(step.name)
        elif isinstance(step, DeclareQueue):
            assert step.arguments["x-dead-letter-exchange"] in seen


def test_plans_add_up_in_order_with_the_lock_of_the_first_that_has_one() -> None:
    first, second = PLANS["namespace"], PLANS["task queue"]
    assert (first + second).steps == first.steps + second.steps
    assert (first + second).lock == (second + first).lock == str(LOCK)
    assert (first + first).lock is None
