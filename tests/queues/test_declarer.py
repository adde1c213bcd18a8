from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pika import spec

from tests.queues.amqp_server import PATIENCE_S, AmqpServer, Session
from tq_broker.clock import SystemClock
from tq_broker.exceptions import AccessRefused, DeadlineExceeded, InvalidArgument, NotFound
from tq_broker.queues import reader
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.topology import (
    BindExchange,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    DeleteQueue,
    Plan,
    UnbindQueue,
)

PLAN = Plan(
    (
        DeclareExchange("e", "topic", {"alternate-exchange": "f"}),
        DeclareQueue("q", {"x-queue-type": "quorum"}),
        DeclareQueue("own", exclusive=True),
        BindQueue("q", "e", "key"),
        BindExchange("f", "e", "#"),
    )
)


def closing(code: int, text: str, fits: Callable[[Any], bool] = lambda _: True) -> Any:
    def rule(session: Session, channel: int, method: Any) -> bool:
        if fits(method):
            session.close_channel(channel, code, text)
            return True
        return False

    return rule


def test_a_plan_is_sent_as_a_whole_with_one_answer_awaited(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    broker.apply(PLAN, soon())
    exchange = server.wait_for(spec.Exchange.Declare)[2]
    assert (exchange.type, exchange.durable, exchange.nowait) == ("topic", True, True)
    assert exchange.arguments == {"alternate-exchange": "f"}
    shared = server.wait_for(spec.Queue.Declare)[2]
    assert (shared.durable, shared.exclusive, shared.auto_delete) == (True, False, False)
    own = server.wait_for(spec.Queue.Declare)[2]
    assert (own.durable, own.exclusive, own.nowait) == (False, True, True)
    assert server.wait_for(spec.Queue.Bind)[2].nowait
    assert not server.wait_for(spec.Exchange.Bind)[2].nowait


def test_an_empty_plan_asks_nothing(broker: AmqpBroker, soon: Callable[[], float]) -> None:
    broker.apply(Plan(()), soon())


def test_what_exists_otherwise_is_used_with_one_warning(
    server: AmqpServer,
    broker: AmqpBroker,
    soon: Callable[[], float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'"
    differs = closing(406, text, lambda m: m.queue == "q" and not m.passive)
    server.rules[spec.Queue.Declare] = differs
    broker.apply(PLAN, soon())
    broker.apply(PLAN, soon())
    assert caplog.text.count("exists with other arguments") == 1
    assert text in caplog.text


def test_arguments_that_are_wrong_in_themselves_are_refused(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def answer(session: Session, channel: int, method: Any) -> bool:
        code, text = (404, "no queue") if method.passive else (406, "invalid arg 'x-odd'")
        session.close_channel(channel, code, text)
        return True

    server.rules[spec.Queue.Declare] = answer
    with pytest.raises(InvalidArgument, match="x-odd"):
        broker.apply(PLAN, soon())


def test_removing_what_is_not_there_is_harmless_and_binding_to_it_is_not(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    missing = closing(404, "NOT_FOUND - no queue 'q'")
    server.rules[spec.Queue.Unbind] = server.rules[spec.Queue.Delete] = missing
    broker.apply(Plan((UnbindQueue("q", "e", "k"), DeleteQueue("q"))), soon())
    server.rules[spec.Queue.Bind] = missing
    with pytest.raises(NotFound):
        broker.apply(Plan((BindQueue("q", "e", "k"),)), soon())


def test_a_missing_permission_names_the_resource(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    server.rules[spec.Queue.Declare] = closing(403, "access to queue 'q' refused for user 'u'")
    with pytest.raises(AccessRefused, match="queue 'q'"):
        broker.apply(PLAN, soon())


def test_a_claim_is_lost_when_the_queue_exists_otherwise(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    assert broker.claim(PLAN, soon())
    differs = closing(406, "inequivalent arg", lambda m: m.queue == "q" and not m.passive)
    server.rules[spec.Queue.Declare] = differs
    assert not broker.claim(PLAN, soon())


def test_a_lock_frames_its_plan_and_is_waited_for(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    taken = closing(
        405,
        "RESOURCE_LOCKED - exclusive access to locked queue 'lock'",
        lambda m: m.queue == "lock",
    )
    server.rules[spec.Queue.Declare] = taken
    plan = Plan((DeclareQueue("q"),), lock="lock")
    with pytest.raises(DeadlineExceeded, match="lock"):
        broker.apply(plan, clock.monotonic() + 0.2)
    with (
        pytest.raises(DeadlineExceeded, match="lock"),
        broker.lock("lock", clock.monotonic() + 0.2),
    ):
        pass
    server.rules.clear()
    broker.apply(plan, soon())
    assert server.wait_for(spec.Queue.Delete)[2].queue == "lock"


def test_an_exclusive_queue_of_others_is_no_lock_to_wait_for(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    text = "RESOURCE_LOCKED - exclusive access to locked queue 'own'"
    server.rules[spec.Queue.Declare] = closing(405, text, lambda m: m.queue == "own")
    for lock in (None, "lock"):
        with pytest.raises(AccessRefused, match="'own'"):
            broker.apply(Plan((DeclareQueue("own", exclusive=True),), lock), soon())


def test_a_lock_is_given_back_at_the_end_of_the_block(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    with broker.lock("lock", soon()):
        declared = server.wait_for(spec.Queue.Declare)[2]
        assert (declared.queue, declared.exclusive) == ("lock", True)
        # On one connection RabbitMQ would give it twice.
        with (
            pytest.raises(DeadlineExceeded, match="another thread"),
            broker.lock("lock", clock.monotonic() + 0.1),
        ):
            pass
    assert server.wait_for(spec.Queue.Delete)[2].queue == "lock"
    with broker.lock("lock", soon()):
        pass


def test_a_lock_of_a_lost_connection_is_not_given_back_twice(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    with broker.lock("lock", soon()):
        server.cut()
        broker.stats("q", soon())
        with broker.lock("lock", soon()):
            pass
        assert server.wait_for(spec.Queue.Delete)[2].queue == "lock"
    broker.stats("last", soon())
    while (method := server.wait_for(spec.Queue.Declare)[2]).queue != "last":
        assert method.queue != "lock"


def methods_on(server: AmqpServer, channel: int, last: type) -> list[tuple[str, str]]:
    """What comes on ``channel`` until ``last`` does: kinds and queues."""
    methods: list[Any] = []
    while not methods or not isinstance(methods[-1], last):
        _, number, method = server.seen.get(timeout=PATIENCE_S)
        methods += [method] if number == channel else []
    return [(method.NAME, getattr(method, "queue", "")) for method in methods]


def test_a_lock_that_comes_after_the_deadline_is_let_go_of(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock
) -> None:
    """Found: it belonged to the connection, which did not know, as long as that lived."""
    server.rules[spec.Queue.Declare] = lambda *_: True
    with pytest.raises(DeadlineExceeded), broker.lock("lock", clock.monotonic() + 0.2):
        pytest.fail("nobody has it")
    channel = server.wait_for(spec.Queue.Declare)[1]
    # Behind the declare, on its own channel: RabbitMQ takes one after the other.
    assert methods_on(server, channel, spec.Channel.Close) == [
        ("Queue.Delete", "lock"),
        ("Channel.Close", ""),
    ]


def test_the_lock_of_a_plan_that_takes_too_long_is_let_go_of(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock
) -> None:
    """Found: when the plan failed after the deadline, its lock stayed."""
    server.rules[spec.Queue.Declare] = server.rules[spec.Queue.Delete] = lambda *_: True
    with pytest.raises(DeadlineExceeded):
        broker.apply(Plan((DeclareQueue("q"),), lock="lock"), clock.monotonic() + 0.2)
    assert server.wait_for(spec.Queue.Delete)[2].queue == "lock"
    server.wait_for(spec.Channel.Close)
    assert server.wait_for(spec.Queue.Delete)[2].queue == "lock", "on another channel"


def test_a_lock_is_let_go_of_however_long_a_channel_for_that_takes(
    server: AmqpServer,
    broker: AmqpBroker,
    soon: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "POST_S", 0.1)
    with broker.lock("lock", soon()):
        # The administration channel ends, and there is no other for a while.
        server.rules[spec.Queue.Declare] = closing(404, "NOT_FOUND")
        assert broker.stats("q", soon()) is None
        late = threading.Event()

        def open_late(_session: Session, _channel: int, _method: Any) -> bool:
            if late.is_set():
                server.rules.clear()
            late.set()
            return bool(server.rules)

        server.rules[spec.Channel.Open] = open_late
    assert server.wait_for(spec.Queue.Delete)[2].queue == "lock"
    with broker.lock("lock", soon()):
        pass
